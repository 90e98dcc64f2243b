"""A dataset is a folder: ``dataset.json``, one sample index a split and MindRecord shards.

A *record* is a picture with its captions and the sound of each caption; a *sample* is one caption of a record with
the picture and that caption's sound. ``dataset.json`` is written last, so that a folder without it is unfinished.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig, ImageEncoderConfig
from src.data.errors import DataError
from src.data.record import COLUMNS, PAGE_BYTES, SCHEMA, Record, pack, unpack
from src.data.schema import MODALITIES, sound_layout
from src.files import write_text

FORMAT, VERSION = "opt-dataset", 2
# settings that shape the stored sound, by its kind (model.audio.input)
AUDIO_KEYS = {
    "fbank": ("sample_rate", "mels", "hop_ms", "window_ms", "max_frames"),
    "feature": ("feature_dim", "max_frames"),
    "wav2vec2": ("sample_rate", "hop_ms", "max_frames"),
}
HEADER_BYTES = 1 << 20
WRITE_ROWS = 128  # rows handed to MindRecord at once
OUR_FILES = re.compile(
    r"(.+-\d{5}\.mindrecord(\.db)?|(index|\.?codes)-.+\.npy|codes\.json|\.writing-(dataset|codes)\.json)"
)


@dataclass
class _Split:
    """What the writer keeps of one split: little more than three integers a sample."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))  # samples with text, image, audio
    regions: int = 0  # samples with regions
    records: int = 0
    pictures: dict[bytes, int] = field(default_factory=dict)  # digest → first record with that picture
    writer: Any = None
    in_shard: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class DatasetWriter:
    """Writes a dataset folder; use it as a context manager, which finishes the folder unless an exception leaves it.

    Args:
        folder: made if need be; an unfinished dataset in it is replaced, a finished one refused.
        audio: the settings that the stored sounds were made with.
        about: anything JSON that says where the data came from.
        shard_records: records a shard file.
    """

    def __init__(
        self, folder: str | Path, audio: AudioEncoderConfig, about: dict[str, Any], shard_records: int = 10000
    ) -> None:
        self.folder, self.audio, self.about, self.shard_records = Path(folder), audio, about, shard_records
        if (self.folder / "dataset.json").exists():
            raise DataError(f"{self.folder} already holds a dataset: delete it or write to another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if OUR_FILES.fullmatch(path.name):
                path.unlink()
        self._splits: dict[str, _Split] = {}

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._finish()

    def add(self, split: str, record: Record) -> None:
        """Appends a record to a split; its samples follow those of the records before it."""
        if not re.fullmatch(r"[\w-]+", split):
            raise DataError(f"split {split!r} cannot name files: use letters, digits, _ and -")
        row = pack(record, self.audio)
        state = self._splits.setdefault(split, _Split())
        digest, picture = record.picture_digest(), state.records
        if digest is not None:
            picture = state.pictures.setdefault(digest, state.records)
        for caption in range(len(record.captions)) or (-1,):
            state.samples.append((state.records, caption, picture))
            state.counts += record.presence(caption)
            state.regions += record.regions is not None
        state.records += 1
        state.rows.append(row)
        state.in_shard += 1
        if state.in_shard == self.shard_records:
            self._close_shard(split, state)
        elif len(state.rows) == WRITE_ROWS:
            self._flush(split, state)

    def _flush(self, split: str, state: _Split) -> None:
        path = self._shard_path(split, state)
        with _writing(path):
            if state.writer is None:
                from mindspore.mindrecord import FileWriter  # two seconds that only writing needs

                # MindRecord keeps the file's name inside its index: a shard cannot be renamed afterwards.
                state.writer = FileWriter(str(path), 1)
                state.writer.set_header_size(HEADER_BYTES)
                state.writer.set_page_size(PAGE_BYTES)
                state.writer.add_schema(SCHEMA, FORMAT)
            if state.rows:
                state.writer.write_raw_data(state.rows)
                state.rows = []

    def _close_shard(self, split: str, state: _Split) -> None:
        self._flush(split, state)
        path = self._shard_path(split, state)
        with _writing(path):
            state.writer.commit()
        files = [describe(path), describe(path.with_name(path.name + ".db"))]
        state.shards.append({"records": state.in_shard, "files": files})
        state.writer, state.in_shard = None, 0

    def _shard_path(self, split: str, state: _Split) -> Path:
        return self.folder / f"{split}-{len(state.shards):05d}.mindrecord"

    def _finish(self) -> None:
        if not self._splits:
            raise DataError(f"{self.folder}: no record was written, so there is no dataset")
        splits = {}
        for name, state in self._splits.items():
            if state.in_shard:
                self._close_shard(name, state)
            index = self.folder / f"index-{name}.npy"
            np.save(index, np.array(state.samples, np.int32))
            splits[name] = {
                "records": state.records,
                "samples": len(state.samples),
                "pictures": len(state.pictures),
                **{modality: int(count) for modality, count in zip(MODALITIES, state.counts, strict=True)},
                "regions": state.regions,
                "index": describe(index),
                "shards": state.shards,
            }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "audio": {key: getattr(self.audio, key) for key in ("input", *AUDIO_KEYS[self.audio.input])},
            "splits": splits,
            "about": self.about,
        }
        write_text(self.folder / "dataset.json", json.dumps(content, ensure_ascii=False, indent=1))


class Dataset:
    """One split of a dataset folder, checked when it is opened.

    Args:
        folder: the dataset folder.
        split: one of its splits.
        audio: the model's sound settings, which must be those of the stored sounds; None skips this check.
        image: the model's picture settings: what its encoder reads must be there if there are pictures.

    Attributes:
        info: the content of dataset.json.
        samples: int32 [n, 3]: record, caption (or −1), image_id.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        audio: AudioEncoderConfig | None = None,
        image: ImageEncoderConfig | None = None,
    ) -> None:
        self.folder, self.split = Path(folder), split
        self.info = read_info(folder)
        if split not in self.info["splits"]:
            known = ", ".join(self.info["splits"])
            raise DataError(f"{self.folder} has no split {split!r}: it has {known}")
        self._entry = self.info["splits"][split]
        if audio is not None and self._entry["audio"]:
            self._check_audio(audio)
        if image is not None:
            self._check_image(image)
        self._files = [file for shard in self._entry["shards"] for file in shard["files"]]
        for file in [self._entry["index"], *self._files]:
            _check_size(self.folder / file["name"], file["bytes"])
        self.samples: np.ndarray = np.load(self.folder / self._entry["index"]["name"])
        self._source: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def records(self) -> int:
        """Records of the split."""
        return self._entry["records"]

    def digest(self) -> str:
        """The sha256 of the shards' own: it changes when they do."""
        return hashlib.sha256(" ".join(file["sha256"] for file in self._files).encode()).hexdigest()

    def count(self, modality: int) -> int:
        """Samples that have a modality (TEXT, IMAGE, AUDIO)."""
        return self._entry[MODALITIES[modality]]

    def read(self, record_indices: Iterable[int]) -> Iterator[Record]:
        """Records in the order asked for, read from the shards one by one."""
        source = self._open()
        audio = self.info["audio"]
        layout = sound_layout(audio["input"], audio.get("mels", 0), audio.get("feature_dim", 0))
        for index in record_indices:
            if not 0 <= index < self.records:
                raise DataError(f"{self.folder}: split {self.split!r} has no record {index}")
            try:
                columns = source[int(index)]
            except RuntimeError as error:
                raise DataError(self._damage(index, error)) from None
            yield unpack(columns, *layout)

    def _open(self) -> Any:
        if self._source is None:
            from mindspore.dataset import MindDataset  # two seconds that only reading needs

            shards = [str(self.folder / shard["files"][0]["name"]) for shard in self._entry["shards"]]
            # Its items are read by index, without a pipeline: no start-up cost, no threads, nothing kept in memory.
            source = MindDataset(shards, list(COLUMNS), num_parallel_workers=1, shuffle=False)
            try:
                source[0]
            except RuntimeError as error:
                raise DataError(self._damage(0, error)) from None
            self._source = source
        return self._source

    def _damage(self, index: int, error: RuntimeError) -> str:
        """Names the file that is no longer what was written."""
        for file in self._files:
            if _digest(self.folder / file["name"]) != file["sha256"]:
                return f"{self.folder / file['name']} is damaged: prepare the dataset again"
        return f"{self.folder}: record {index} of split {self.split!r} cannot be read ({_reason(error)})"

    def _check_image(self, image: ImageEncoderConfig) -> None:
        wanted, other = ("regions", "image") if image.input == "region" else ("image", "regions")
        if self._entry[other] and not self._entry[wanted]:
            raise DataError(
                f"{self.folder}: split {self.split!r} has {other} but no {wanted}, which "
                f"model.image.input={image.input} reads: change the config or prepare the dataset with them"
            )

    def _check_audio(self, audio: AudioEncoderConfig) -> None:
        for key in ("input", *AUDIO_KEYS[self.info["audio"]["input"]]):
            stored, wanted = self.info["audio"][key], getattr(audio, key)
            # Sound that was cut later than the model wants is cut again; other settings cannot be undone.
            if wanted > stored if key == "max_frames" else wanted != stored:
                raise DataError(
                    f"{self.folder} holds sound made with {key}={stored}, model.audio.{key} is {wanted}: "
                    "change the config or prepare the dataset again"
                )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what MindRecord raises while it writes a shard into a DataError."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}): make room, or write to another disk") from None


def _reason(error: RuntimeError) -> str:
    """The line of MindRecord's message that says what is wrong."""
    lines = str(error).splitlines()
    return next((line for line in lines if "ERROR]" in line), lines[0]).replace("[ERROR]", "").strip()


def read_info(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's dataset.json, of this format and version."""
    path = Path(folder) / "dataset.json"
    if not str(folder):
        raise DataError("data.path is empty: name a dataset folder; make one by python -m src.data.prepare")
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such dataset folder (data.path); make one by python -m src.data.prepare")
    if not path.is_file():
        raise DataError(f"{folder} is no finished dataset (no dataset.json): run python -m src.data.prepare again")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is not JSON: prepare the dataset again") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT or not isinstance(info.get("splits"), dict):
        raise DataError(f"{path} does not describe a dataset of this project")
    if info.get("version") != VERSION:
        raise DataError(f"{path} has format version {info.get('version')}, this code reads {VERSION}: prepare it again")
    return info


def describe(path: Path) -> dict[str, Any]:
    """A file's name, size and sha256."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing: copy it from where the dataset was made, or prepare the dataset again")
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes, dataset.json says {size}: prepare the dataset again")

"""A dataset is a folder: ``dataset.json``, one sample index a split and MindRecord shards.

A *record* is an image with its captions and an audio clip of each caption. A *sample* is one caption of a record with
its image and that caption's audio clip. ``dataset.json`` is written last, so that a folder without it is unfinished.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig, ImageEncoderConfig
from src.data.decoding import brief, whole_text
from src.data.errors import BadRecordError, DataError
from src.data.mindrecord import READ_ERRORS, Shards
from src.data.record import Record, checksum, unpack
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT, audio_layout
from src.files import digest

FORMAT, VERSION = "opt-dataset", 2
# what the index adds up of a sample: that it has text, image, audio, regions; that its record tells left from right
HAS = (1, 2, 4, 8, 16)
REGIONS, SIDED = 3, 4  # their places there, behind the modalities
AGAIN = "copy it from where the dataset was made, or prepare the dataset again"
# settings that shape the stored audio, by its kind (model.audio.input)
AUDIO_KEYS = {
    "fbank": ("sample_rate", "mels", "hop_ms", "window_ms", "max_frames"),
    "feature": ("feature_dim", "max_frames"),
    "wav2vec2": ("sample_rate", "hop_ms", "max_frames"),
}


class Dataset:
    """One split of a dataset folder, checked when it is opened.

    Args:
        folder: the dataset folder.
        split: one of its splits.
        audio: the model's audio settings, which must match the stored audio clips; None skips this check.
        image: the model's image settings: what its encoder reads must be there if there are images.

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
        small = self._entry["index"], self._entry["checksums"]
        for file in (*small, *self._files):
            _check_size(self.folder / file["name"], file["bytes"])
        self._index, self._checksums = (_load(self.folder / file["name"], file["sha256"]) for file in small)
        self.samples = self._index[:, :3]
        self._presence: dict[str, np.ndarray] = {}  # of an index that does not say it, once it was asked for
        if (len(self.samples), len(self._checksums)) != (self._entry["samples"], self.records):
            raise DataError(f"{self.folder / 'dataset.json'} is damaged: {AGAIN}")
        shards = [(self.folder / shard["files"][0]["name"], shard["records"]) for shard in self._entry["shards"]]
        self._shards = Shards(*zip(*shards, strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def records(self) -> int:
        """Records of the split."""
        return self._entry["records"]

    def digest(self) -> str:
        """The sha256 over those of the shards: it changes if they do."""
        return hashlib.sha256(" ".join(file["sha256"] for file in self._files).encode()).hexdigest()

    def count(self, modality: int) -> int:
        """Samples that have a modality (TEXT, IMAGE, AUDIO)."""
        return self._entry[MODALITIES[modality]]

    def presence(self, image_input: str = "patch") -> np.ndarray:
        """bool [n, 3]: which samples have text, image (or what else model.image.input says), audio."""
        if self._index.shape[1] > 3:
            bits = np.array([HAS[TEXT], HAS[REGIONS if image_input == "region" else IMAGE], HAS[AUDIO]], np.int32)
            return self._index[:, 3:] & bits > 0
        if image_input not in self._presence:
            self._presence[image_input] = self._ask_records(image_input)
        return self._presence[image_input]

    def _ask_records(self, image_input: str) -> np.ndarray:
        """:meth:`presence` where an earlier version's index does not say it: the records do, those that can be read."""
        images = self.count_regions() if image_input == "region" else self.count(IMAGE)
        counts = [self.count(TEXT), images, self.count(AUDIO)]
        if set(counts) <= {0, len(self)}:
            return np.tile(np.array(counts) > 0, (len(self), 1))
        found = np.zeros((len(self), len(MODALITIES)), bool)
        records, captions, _ = self.samples.T
        for row, record, caption in zip(found, self.read_good(records), captions.tolist(), strict=True):
            row[:] = False if record is None else record.presence(caption, image_input)
        return found

    def sided(self) -> np.ndarray:
        """bool [n]: samples whose record tells left from right of its image, as far as the index says it."""
        return (self._index[:, 3:] & HAS[SIDED] > 0).any(1)  # one of an earlier version has no such column

    def count_regions(self) -> int:
        """Samples that have features of regions."""
        return self._entry["regions"]

    def read(self, record_indices: Iterable[int]) -> Iterator[Record]:
        """Records in the requested order, read from the shards one by one.

        Raises:
            BadRecordError: one is not as it was written.
        """
        layout = stored_layout(self.info)
        for index in record_indices:
            if not 0 <= index < self.records:
                raise DataError(f"{self.folder}: split {self.split!r} has no record {index}")
            yield self._record(int(index), layout)

    def read_good(self, record_indices: Iterable[int]) -> Iterator[Record | None]:
        """As :meth:`read`, but None in the place of a record that is not as it was written."""
        for index in record_indices:
            try:
                yield next(self.read([index]))
            except BadRecordError:
                yield None

    def name(self, index: int, key: str = "") -> str:
        """A record for messages: its shard, split and number, and its key if that is known."""
        shard, _ = self._shards.locate(index)
        return record_name(self._shards.paths[shard], self.split, index, key)

    def _record(self, index: int, layout: tuple[type, tuple[int, ...]]) -> Record:
        key = ""
        try:
            row = self._shards.row(index)
            key, problem = row["key"], "is damaged (its checksum is another one)"
            if checksum(row) == self._checksums[index]:
                return unpack(row, *layout)
        except READ_ERRORS as error:
            problem = f"cannot be {'decoded' if key else 'read'} ({brief(error)})"
        raise BadRecordError(f"{self.name(index, key)} {problem}: {AGAIN}", index)

    def _check_image(self, image: ImageEncoderConfig) -> None:
        wanted, other = ("regions", "image") if image.input == "region" else ("image", "regions")
        if self._entry[other] and not self._entry[wanted]:
            raise DataError(
                f"{self.folder}: split {self.split!r} has {other} but no {wanted}, which "
                f"model.image.input={image.input} reads: change the config or prepare the dataset with them"
            )

    def _check_audio(self, audio: AudioEncoderConfig) -> None:
        stored = self.info["audio"]
        wanted = {key: getattr(audio, key) for key in ("input", *AUDIO_KEYS[stored["input"]])}
        # Clips longer than the model reads are cut again; other settings cannot be changed afterwards.
        differ = [
            key
            for key, value in wanted.items()
            if (value > stored[key] if key == "max_frames" else value != stored[key])
        ]
        if differ:
            held = " ".join(f"{key}={stored[key]}" for key in differ)
            asked = " ".join(f"{key}={wanted[key]}" for key in differ)
            raise DataError(
                f"{self.folder} holds audio prepared with {held}, model.audio has {asked}: "
                f"set {_settings(stored, differ)} in the configuration, or prepare again: {self._again(audio)}"
            )

    def _again(self, audio: AudioEncoderConfig) -> str:
        """The command that prepares the dataset for these settings, whatever configuration it was given before."""
        stored, defaults = self.info["audio"], AudioEncoderConfig()
        wanted = {key: getattr(audio, key) for key in ("input", *AUDIO_KEYS[audio.input])}
        named = [key for key, value in wanted.items() if not value == getattr(defaults, key) == stored.get(key)]
        corpus = (self.info.get("about") or {}).get("source", "CORPUS")
        return f"python tools/prepare_data.py {corpus} … --output NEW_FOLDER {_settings(wanted, named)}"


def _settings(values: dict[str, Any], keys: Iterable[str]) -> str:
    return " ".join(f"model.audio.{key}={values[key]}" for key in keys)


def record_name(shard: Path, split: str, index: int, key: str = "") -> str:
    """How messages name a record."""
    return f"{shard}: split {split!r}, record {index}{f' ({key!r})' if key else ''}"


def read_info(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's dataset.json, of this format and version."""
    check_folder_name(folder)
    path = Path(folder) / "dataset.json"
    if not str(folder):
        raise DataError("data.path is empty: name a dataset folder; make one by python tools/prepare_data.py")
    if not Path(folder).is_dir():
        raise DataError(
            f"{folder}: no such dataset folder (data.path, data.sources); make one by python tools/prepare_data.py"
        )
    if not path.is_file():
        raise DataError(f"{folder} is no finished dataset (no dataset.json): run python tools/prepare_data.py again")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON: prepare the dataset again") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT or not isinstance(info.get("splits"), dict):
        raise DataError(f"{path} does not describe a dataset of this project: choose another folder")
    if info.get("version") != VERSION:
        raise DataError(
            f"{path} has format version {info.get('version')}, this code reads {VERSION}: prepare the dataset again"
        )
    if not _is_whole(info):
        raise DataError(f"{path} is damaged: {AGAIN}")
    return info


def _is_whole(info: dict[str, Any]) -> bool:
    """Whether a dataset.json has all that is read of it; what its numbers and names say is compared with the files."""
    try:
        audio = info["audio"]
        stored = all(isinstance(audio[key], int) for key in AUDIO_KEYS[audio["input"]])
        return stored and isinstance(info["about"], dict) and all(map(_is_whole_split, info["splits"].values()))
    except (KeyError, TypeError, AttributeError, ValueError):
        return False


def _is_whole_split(entry: dict[str, Any]) -> bool:
    shards = entry["shards"]
    files = [entry["index"], entry["checksums"], *(file for shard in shards for file in shard["files"])]
    described = all(
        isinstance(file[key], kind) for file in files for key, kind in (("name", str), ("bytes", int), ("sha256", str))
    )
    counted = all(isinstance(entry[key], int) for key in ("samples", "regions", *MODALITIES))
    paired = all(len(shard["files"]) == 2 and shard["records"] > 0 for shard in shards)
    return described and counted and paired and sum(shard["records"] for shard in shards) == entry["records"]


def check_folder_name(folder: str | Path) -> None:
    """Raises DataError for a folder of which MindRecord takes no path."""
    if whole_text(str(folder)) != str(folder):
        raise DataError(f"{folder}: MindRecord takes only paths that are UTF-8: rename the folder, or choose another")


def stored_layout(info: dict[str, Any]) -> tuple[type, tuple[int, ...]]:
    """Type and frame shape of a dataset's audio clips."""
    audio = info["audio"]
    return audio_layout(audio["input"], audio.get("mels", 0), audio.get("feature_dim", 0))


def describe(path: Path) -> dict[str, Any]:
    """A file's name, size and sha256."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():  # also where its name is damaged
        raise DataError(f"{path} is missing: {AGAIN}")
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes, dataset.json says {size}: prepare the dataset again")


def _load(path: Path, sha256: str) -> np.ndarray:
    """An array that must be as it was written: a wrong number in it would be another record or caption."""
    if digest(path) != sha256:
        raise DataError(f"{path} is damaged: {AGAIN}")
    return np.load(path)

"""Writes a dataset folder, shard by shard; a new writer keeps the shards that a killed one finished."""

import contextlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig
from src.data.digests import DigestTable
from src.data.errors import DataError
from src.data.mindrecord import HEADER_BYTES
from src.data.parts import PART, PROGRESS, check_progress, read_entries, read_part, sync, write_part
from src.data.record import PAGE_BYTES, SCHEMA, Packed, Record, pack_record
from src.data.schema import MODALITIES, TEXT
from src.data.store import AUDIO_KEYS, FORMAT, HAS, VERSION, check_folder_name, describe
from src.files import write_text

SPLITS = ("train", "dev", "test")
WRITE_ROWS = 128  # rows handed to MindRecord at once
REJECTED = "rejected.jsonl"  # of who prepares the dataset: rows that it has not taken
OUR_FILES = re.compile(
    r"(.+-\d{5}\.mindrecord(\.db)?|(index|checksums|\.?codes)-.+\.npy|codes\.json|\.part-.+|\.progress\.json"
    r"|\.writing-(dataset|codes|\.progress)\.json)"
)


@dataclass
class _Split:
    """What the writer keeps of one split: some thirty bytes a sample."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    samples: array = field(default_factory=lambda: array("i"))  # record, caption, image and HAS bits of each
    counts: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))  # samples with text, image, audio
    regions: int = 0  # samples with regions
    checksums: array = field(default_factory=lambda: array("I"))
    images: DigestTable = field(default_factory=DigestTable)  # digest → first record with that image
    writer: Any = None
    in_shard: list[tuple[int, int, Packed]] = field(default_factory=list)  # as write_part takes them, without content
    unwritten: list[dict[str, Any]] = field(default_factory=list)

    def index(self, packed: Packed) -> None:
        record = len(self.checksums)
        image = self.images.setdefault(packed.image, record) if packed.image else record
        for caption, presence in enumerate(packed.presence):
            marks = (*presence, packed.regions, packed.sided)
            has = sum(bit for bit, present in zip(HAS, marks, strict=True) if present)
            self.samples.extend((record, caption if presence[TEXT] else -1, image, has))
            self.counts += presence
            self.regions += packed.regions
        self.checksums.append(packed.checksum)


class DatasetWriter:
    """Writes a dataset folder; use it as a context manager, which finishes the folder unless an exception is raised.

    Args:
        folder: made if necessary; an unfinished dataset in it is replaced. A finished one is an error, and so are files
            of other origin that have its names.
        audio: the settings that the stored audio clips were made with.
        about: JSON that says where the data came from; it may be extended before the end.
        shard_records: records a shard file.
        resume: keep the finished shards of an unfinished dataset made with the same settings and ``about``.
    """

    def __init__(
        self,
        folder: str | Path,
        audio: AudioEncoderConfig,
        about: dict[str, Any],
        shard_records: int = 10000,
        resume: bool = False,
    ) -> None:
        self.folder, self.about, self.shard_records = Path(folder), dict(about), shard_records
        self.audio = audio
        check_folder_name(folder)
        if (self.folder / "dataset.json").exists():
            raise DataError(f"{self.folder} already holds a dataset: delete it, or choose another --output")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._require_own()
        settings = {"version": VERSION, "audio": self._audio(), "about": self.about, "shard_records": shard_records}
        self._splits: dict[str, _Split] = {}
        self._finished = np.zeros(0, np.int8)  # by row of the input: place of its split in _names, or −1
        self._sources = np.zeros(0, np.uint64)  # by row of the input: the digest that its split goes by, if finished
        self._said = np.zeros(0, np.uint64)  # the same of what the row said
        self._names: list[str] = []
        if resume and (self.folder / PROGRESS).exists():
            check_progress(self.folder / PROGRESS, settings)
            self._take_parts()
        self._clear()
        write_text(self.folder / PROGRESS, json.dumps(settings, ensure_ascii=False))

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._finish()

    @property
    def records(self) -> int:
        """Records of all splits so far."""
        return sum(len(state.checksums) for state in self._splits.values())

    def add(self, split: str, record: Record) -> None:
        """Appends a record to a split; its samples follow those of the records before it."""
        self.add_packed(split, pack_record(record, self.audio), self.records)

    def add_packed(self, split: str, packed: Packed, row: int, said: int = 0) -> None:
        """Appends a record; ``row`` is its place in the input, ``said`` the digest of what stands there.

        Records stand in the order in which they are added, behind those of finished shards, also of such with later
        rows: what was rejected may have been mended.
        """
        if not re.fullmatch(r"[\w-]+", split):
            raise DataError(f"split {split!r} cannot name files: use letters, digits, _ and -")
        state = self._splits.setdefault(split, _Split())
        state.index(packed)
        state.unwritten.append(packed.row)
        state.in_shard.append((row, said, replace(packed, row={})))
        if len(state.in_shard) == self.shard_records:
            self._close_shard(split, state)
        elif len(state.unwritten) == WRITE_ROWS:
            self._flush(split, state)

    def split_of(self, image: int) -> str | None:
        """The split that holds an image (by its digest) already."""
        return next((name for name, state in self._splits.items() if state.images.get(image) is not None), None)

    @property
    def rows_finished(self) -> int:
        """Rows of the input up to the last one in a finished shard of an earlier writer."""
        return len(self._finished)

    def is_finished(self, row: int) -> bool:
        """True for a row of the input that is in a finished shard of an earlier writer."""
        return row < len(self._finished) and self._finished[row] >= 0

    def finished(self, row: int) -> tuple[str, int]:
        """The split of a finished row, and :attr:`Packed.source`, by which it was chosen."""
        return self._names[self._finished[row]], int(self._sources[row])

    def says_the_same(self, row: int, said: int) -> bool:
        """Whether what stands at a finished row of the input is what was there when it was stored."""
        return int(self._said[row]) == said

    def _flush(self, split: str, state: _Split) -> None:
        path = self._shard_path(split, state)
        with _writing(path):
            if state.writer is None:
                from mindspore.mindrecord import FileWriter  # it takes two seconds, which only writing needs

                # MindRecord keeps the file's name inside its index: a shard cannot be renamed afterwards.
                state.writer = FileWriter(str(path), 1)
                state.writer.set_header_size(HEADER_BYTES)
                state.writer.set_page_size(PAGE_BYTES)
                state.writer.add_schema(SCHEMA, FORMAT)
            if state.unwritten:
                state.writer.write_raw_data(state.unwritten)
                state.unwritten = []

    def _close_shard(self, split: str, state: _Split) -> None:
        self._flush(split, state)
        path = self._shard_path(split, state)
        with _writing(path):
            state.writer.commit()
        files = [path, path.with_name(path.name + ".db")]
        for file in files:
            sync(file)
        shard = {"records": len(state.in_shard), "files": [describe(file) for file in files]}
        write_part(self.folder / _part_name(split, state), shard, state.in_shard)
        state.shards.append(shard)
        state.writer, state.in_shard = None, []

    def _shard_path(self, split: str, state: _Split) -> Path:
        return self.folder / f"{split}-{len(state.shards):05d}.mindrecord"

    def _audio(self) -> dict[str, Any]:
        return {key: getattr(self.audio, key) for key in ("input", *AUDIO_KEYS[self.audio.input])}

    def _take_parts(self) -> None:
        """Reads the parts of the folder's whole shards, and indexes their records."""
        parts: dict[str, list[Path]] = {}
        for path in sorted(self.folder.iterdir()):
            if match := PART.fullmatch(path.name):
                parts.setdefault(match[1], []).append(path)
        self._names = list(parts)
        for number, (split, paths) in enumerate(parts.items()):
            state = self._splits[split] = _Split()
            for path in paths:
                shard, rows, said, sources = read_part(path)
                if path.name != _part_name(split, state) or not all(map(self._is_whole, shard["files"])):
                    break  # this one and those after it are made again
                state.shards.append(shard)
                more = (0, max(0, rows.max() + 1 - len(self._finished)))
                self._finished = np.pad(self._finished, more, constant_values=-1)
                self._sources, self._said = np.pad(self._sources, more), np.pad(self._said, more)
                self._finished[rows], self._said[rows], self._sources[rows] = number, said, sources
                for packed in read_entries(path):
                    state.index(packed)

    def _is_whole(self, file: dict[str, Any]) -> bool:
        path = self.folder / file["name"]
        return path.is_file() and path.stat().st_size == file["bytes"]

    def _require_own(self) -> None:
        """Raises DataError where files would be replaced that no unfinished dataset has left."""
        if (self.folder / PROGRESS).exists():
            return
        for path in sorted(self.folder.iterdir()):
            if not path.name.startswith(".") and (OUR_FILES.fullmatch(path.name) or path.name == REJECTED):
                raise DataError(f"{path} is in the way, and of no unfinished dataset: choose another --output")

    def _clear(self) -> None:
        """Removes the files of an earlier writer except finished shards."""
        kept = {file["name"] for state in self._splits.values() for shard in state.shards for file in shard["files"]}
        kept |= {f".part-{name}-{n:05d}.npz" for name, state in self._splits.items() for n in range(len(state.shards))}
        kept.add(PROGRESS)  # is written over: without it a kill would leave files that nothing explains
        for path in self.folder.iterdir():
            if OUR_FILES.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def _finish(self) -> None:
        if not self.records:
            raise DataError(f"{self.folder}: no record was written: the input holds none")
        splits = {}
        for name in sorted((name for name, state in self._splits.items() if state.checksums), key=_order):
            state = self._splits[name]
            if state.in_shard:
                self._close_shard(name, state)
            splits[name] = self._describe_split(name, state)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "audio": self._audio(),
            "splits": splits,
            "about": self.about,
        }
        write_text(self.folder / "dataset.json", json.dumps(content, ensure_ascii=False, indent=1))
        for path in self.folder.glob(".p*"):
            if PART.fullmatch(path.name) or path.name == PROGRESS:
                path.unlink()

    def _describe_split(self, name: str, state: _Split) -> dict[str, Any]:
        samples = np.frombuffer(state.samples, np.int32).reshape(-1, 4)
        index, checksums = self.folder / f"index-{name}.npy", self.folder / f"checksums-{name}.npy"
        np.save(index, samples)
        np.save(checksums, np.frombuffer(state.checksums, np.uint32))
        for file in (index, checksums):
            sync(file)
        return {
            "records": len(state.checksums),
            "samples": len(samples),
            "pictures": len(state.images),
            **{modality: int(count) for modality, count in zip(MODALITIES, state.counts, strict=True)},
            "regions": state.regions,
            "index": describe(index),
            "checksums": describe(checksums),
            "shards": state.shards,
        }


def _order(split: str) -> tuple[int, str]:
    """The usual splits first."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _part_name(split: str, state: _Split) -> str:
    return f".part-{split}-{len(state.shards):05d}.npz"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns MindRecord's errors in writing a shard into a DataError."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}): make room, or write to another disk") from None


def _reason(error: RuntimeError) -> str:
    """The line of MindRecord's message that says what is wrong."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if "ERROR]" in line), lines[0]).replace("[ERROR]", "").strip()

"""Vectors of all that a folder, a file of texts or a manifest holds, in a file; what a kill leaves is gone on with.

    vectors.npy      float32 [rows, E], unit vectors
    vectors.jsonl    a line for each row: {"kind": "image", "name": "a/1.png"}
    vectors.parquet  in place of both: columns kind, name, id, vector

While they are made they stand in .writing-vectors.npy/ with state.json, which says how far they are whole. Items are
embedded in the same groups whether the work was interrupted or not, so that the result is the same.
"""

import functools
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.data.decoding import parse_json
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.files import digest, json_line, write_text
from src.inference.feature_manifest import named_files
from src.inference.gallery import fingerprint_of
from src.inference.library import Model
from src.inference.media import MODALITY, find_files
from src.models.batches import progress

GROUP = 256  # items whose vectors reach the disk together: a kill loses so many
HEADER = 128  # bytes of an .npy before its numbers
PARQUET_ROWS = 8192  # that are in memory at once
COLUMNS = ("kind", "name", "id")  # of a .parquet, before the vector


@dataclass(frozen=True)
class Entry:
    """One item and what the names' file says of it."""

    kind: str
    item: str | Path  # a text, or a file
    about: dict[str, str]


@dataclass(frozen=True)
class Group:
    """What became of some items."""

    about: list[dict[str, str]]  # of each that was read
    vectors: list[np.ndarray]  # float32 [E] each
    skipped: int  # that could not be read
    partial: int  # of which the model reads only a part


@dataclass
class State:
    """How far the files are whole."""

    plan: str  # identity of the model and of the input
    items: int = 0
    rows: int = 0
    named: int = 0  # bytes of the names
    skipped: int = 0
    partial: int = 0  # items of which the model reads only a part
    finished: bool = False


def check_output(output: Path, source: Path) -> None:
    """Raises DataError unless such a file can be written of an input."""
    if output.suffix not in (".npy", ".parquet"):
        raise DataError(f"--output {output}: expected a name that ends in .npy or .parquet")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"--output {output}: needs pyarrow: pip install pyarrow, or name an .npy")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"--output {output} is inside --input {source}: the next call would read it: name another place"
        )
    names = output.with_suffix(".jsonl")
    if output.suffix == ".npy" and names.exists() and not _holds_names(names):
        raise DataError(f"--output {output} would replace {names}, which holds no names of vectors: name another place")
    if output.exists() and not (_is_table(output) if output.suffix == ".parquet" else names.exists()):
        raise DataError(f"--output {output} is there and was not written by this command: name another place")


def read_entries(
    source: Path, media: Path | None = None, only: str | None = None, regions: bool = False
) -> Iterator[Entry | DataError]:
    """The items of a folder, of a .txt with a text a line, or of a manifest; a line that is none as its error.

    Args:
        media: folder that a manifest's paths start from; by default its own.
        only: of MODALITIES; None: all.
        regions: of a manifest's rows that have both, read the regions and not the image.

    Raises:
        DataError: it is neither, or holds nothing to read.
    """
    if os.path.isdir(source):
        found: Iterator[Entry | DataError] = _of_files(find_files(source, (TEXT, IMAGE, AUDIO)), source)
    elif not os.path.isfile(source):
        raise DataError(f"--input {source}: no such file or folder")
    elif source.suffix.lower() == ".txt":
        found = _of_texts(source)
    elif source.suffix.lower() == ".jsonl":
        found = _of_manifest(source, media or source.parent, ("regions", "image") if regions else ("image", "regions"))
    else:
        raise DataError(f"--input {source}: expected a folder, a .txt with a text a line, or a manifest .jsonl")
    return (entry for entry in found if isinstance(entry, DataError) or only in (None, entry.kind))


def embed_input(model: Model, checkpoint: Path, source: Path, output: Path, **choice: Any) -> None:
    """Writes the vectors of an input and prints where they are.

    Args:
        checkpoint: folder of the model.
        choice: ``media`` and ``only`` of :func:`read_entries`.

    Raises:
        DataError: nothing can be read, or the beginning of another work stands where this one's goes.
    """
    config = model.config
    read = functools.partial(read_entries, source, **choice, regions=config.model.image.input == "region")
    plan = (
        fingerprint_of(checkpoint, config.model, model.engine.ema),
        config.runtime.precision,
        _identity(source, read()),
        sorted(choice.items()),
    )
    work = _Work(output, hashlib.sha256(repr(plan).encode()).hexdigest(), model.dim)
    state = work.state
    if state.items:
        print(f"goes on behind {state.items} items that {work.folder} holds", file=sys.stderr)
    if not state.finished:
        entries = itertools.islice(read(), state.items, None)
        with progress(None, "embedding") as bar:
            while group := list(itertools.islice(entries, GROUP)):
                work.append(embed_group(model, group), len(group))
                bar.update(len(group))
    if not state.rows:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise DataError(f"--input {source}: nothing of it can be read" if state.items else f"--input {source} is empty")
    work.finish()
    if state.partial:
        print(f"note: of {state.partial} items the model reads only a part", file=sys.stderr)
    print(f"{output}: {state.rows} vectors of {model.dim} numbers; skipped items: {state.skipped}")


def embed_group(model: Model, group: list[Entry | DataError]) -> Group:
    """The vectors of what can be read, in order; what cannot be read is named on stderr."""
    found: dict[int, np.ndarray] = {}
    errors = {at: entry for at, entry in enumerate(group) if isinstance(entry, DataError)}
    partial = 0
    for kind in MODALITIES:
        own = [at for at, entry in enumerate(group) if at not in errors and entry.kind == kind]
        failed: dict[int, DataError] = {}
        for batch in model.embed_each(kind, [group[at].item for at in own], failed.__setitem__):
            found |= {own[number]: vector for number, vector in zip(batch.numbers, batch.vectors, strict=True)}
            partial += sum(bool(model.notes(medium)) for medium in batch.media)
        errors |= {own[number]: error for number, error in failed.items()}
    for at in sorted(errors):
        print(f"skipped: {errors[at]}", file=sys.stderr)
    order = sorted(found)
    return Group([group[at].about for at in order], [found[at] for at in order], len(errors), partial)


class _Work:
    """The files while they are made.

    Args:
        output: what they become.
        plan: identity of the work; another one's files are refused.
        width: E.
    """

    def __init__(self, output: Path, plan: str, width: int) -> None:
        self.output, self.width = output, width
        self.folder = output.with_name(f".writing-{output.name}")
        self.vectors, self.names = self.folder / "vectors.npy", self.folder / "names.jsonl"
        self.state = self._read_state(plan)
        if self.state.finished:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, whole in ((self.vectors, HEADER + 4 * width * self.state.rows), (self.names, self.state.named)):
            with open(path, "ab") as file:
                file.truncate(whole)  # what a kill has left behind the last whole group goes

    def append(self, group: Group, items: int) -> None:
        """Adds a group of so many items: the files first, then what says that they are whole."""
        state, lines = self.state, b"".join(json_line(about) + b"\n" for about in group.about)
        for path, data in ((self.vectors, b"".join(row.tobytes() for row in group.vectors)), (self.names, lines)):
            with open(path, "ab") as file:
                file.write(data)
                _sync(file)
        state.items, state.rows = state.items + items, state.rows + len(group.vectors)
        state.named, state.skipped = state.named + len(lines), state.skipped + group.skipped
        state.partial += group.partial
        self._write_state()

    def finish(self) -> None:
        """Gives the files their names; a kill in between is made up for by the next call."""
        if not self.state.finished:
            with open(self.vectors, "r+b") as file:
                file.write(npy_header(self.state.rows, self.width))
                _sync(file)
            self.state.finished = True
            self._write_state()
        if self.output.suffix == ".parquet":
            if self.vectors.exists() and self.names.exists():  # else the kill came while they were removed
                made = self.folder / "made.parquet"
                write_parquet(made, np.load(self.vectors, mmap_mode="r"), self.names)
                os.replace(made, self.output)
        else:
            for path, place in ((self.names, self.output.with_suffix(".jsonl")), (self.vectors, self.output)):
                if path.exists():
                    os.replace(path, place)
        shutil.rmtree(self.folder)

    def _read_state(self, plan: str) -> State:
        path = self.folder / "state.json"
        if not path.is_file():
            return State(plan)
        try:
            state = State(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            state = State("")
        if state.plan != plan:
            begun = f"{self.folder} was begun with another model, another input or files that have changed since"
            raise DataError(f"{begun}: remove it, or name another --output")
        return state

    def _write_state(self) -> None:
        write_text(self.folder / "state.json", json.dumps(asdict(self.state)))


def npy_header(rows: int, width: int) -> bytes:
    """The first bytes of an .npy of float32 [rows, width], always as many."""
    about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    room = HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + about.ljust(room - 1).encode() + b"\n"


def write_parquet(path: Path, vectors: np.ndarray, names: Path) -> None:
    """A row for each vector: kind, name, id (null where there is none), vector: a list of E float32."""
    import pyarrow as pa  # an optional requirement
    import pyarrow.parquet as pq

    width = vectors.shape[1]
    texts = [(name, pa.string()) for name in COLUMNS]
    schema = pa.schema([*texts, ("vector", pa.list_(pa.float32(), width))])
    with open(names, "rb") as lines, pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(vectors), PARQUET_ROWS):
            rows = vectors[start : start + PARQUET_ROWS]
            about = [json.loads(line) for line in itertools.islice(lines, len(rows))]
            columns = [pa.array([one.get(name) for one in about], pa.string()) for name, _ in texts]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _holds_names(path: Path) -> bool:
    """Whether an earlier call wrote the file, as its first line shows: any other one is the user's, maybe the input."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        try:
            row = parse_json(file.readline(), "no JSON")
        except DataError:
            return False
    return isinstance(row, dict) and {"kind", "name"} <= row.keys() <= {"kind", "name", "id"}


def _is_table(path: Path) -> bool:
    """Whether it is a .parquet of names and vectors, as an earlier call wrote it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names == [*COLUMNS, "vector"]
    except (pa.ArrowException, OSError):
        return False


def _of_files(files: list[Path], folder: Path) -> Iterator[Entry]:
    for file in files:
        kind = MODALITIES[MODALITY[file.suffix.lower()]]
        yield Entry(kind, file, {"kind": kind, "name": file.relative_to(folder).as_posix()})


def _lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """The lines of a UTF-8 file that are not blank, from 1 on."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield number, DataError(f"{path}, line {number}: not UTF-8 text")
                continue
            if text:
                yield number, text


def _of_texts(path: Path) -> Iterator[Entry | DataError]:
    for _, line in _lines(path):
        yield line if isinstance(line, DataError) else Entry("text", line, {"kind": "text", "name": line})


def _of_manifest(path: Path, media: Path, image: tuple[str, str]) -> Iterator[Entry | DataError]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = line if isinstance(line, DataError) else parse_json(line, f"{where}: malformed JSON")
        except DataError as error:
            row = error
        if isinstance(row, DataError):
            yield row
        elif not isinstance(row, dict):
            yield DataError(f'{where}: expected an object like {{"id": …, "image": …, "captions": […]}}')
        else:
            yield from _of_row(row, media, image)


def _of_row(row: dict[str, Any], media: Path, image: tuple[str, str]) -> Iterator[Entry]:
    """The captions, the image, by the first key of ``image`` that there is, and the audio clips of a manifest's row."""
    key = {"id": str(row["id"])} if isinstance(row.get("id"), str | int) else {}
    files = [("image", name) for name in named_files(row, image[0]) or named_files(row, image[1])]
    files += [("audio", name) for name in named_files(row, "audio")]
    captions = named_files(row, "captions") or named_files(row, "caption")
    yield from (Entry("text", text, {"kind": "text", "name": text} | key) for text in captions)
    yield from (Entry(kind, media / name, {"kind": kind, "name": name} | key) for kind, name in files)


def _identity(source: Path, entries: Iterable[Entry | DataError]) -> str:
    """What changes where an input does: a file's content, and sizes and times of the files that it names or holds."""
    found = hashlib.sha256(digest(source).encode() if source.is_file() else b"")
    for entry in entries:
        if isinstance(entry, Entry) and isinstance(entry.item, Path):
            stamp = f"{entry.about['name']}\0{_stamp(entry.item)}\n"
            found.update(stamp.encode(errors="surrogatepass"))  # JSON can name what no file is called
    return found.hexdigest()


def _stamp(file: Path) -> str:
    """Size and time of a file; of what is none nothing, as reading it will tell."""
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())

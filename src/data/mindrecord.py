"""Reads rows of MindRecord files: the bytes are MindSpore's, the reader is our own.

MindSpore's reader takes the file at its word: a byte that changed in its header, its texts or its index may end the
whole process (SIGABRT, SIGSEGV), which no caller can catch. Here whatever a damaged file holds is an exception.

    t-00000.mindrecord      header, then pages: length of the JSON (8 bytes, little endian), JSON, zeros; of a row
                            a page of blobs holds: length of all (8, little endian), then of each blob: length (8, big
                            endian), bytes; a page of texts: length (8, little endian), msgpack {name: text}
    t-00000.mindrecord.db   SQLite: where each row's blobs and texts lie
"""

import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.data.record import BYTES, COLUMNS, PAGE_BYTES

HEADER_BYTES = 1 << 20  # of the files that DatasetWriter makes
MOST_HEADER = 1 << 24  # MindRecord's default
MOST_OPEN = 200  # files at once: systems allow 1,024
# raised for a file, an index or a row that is not as it was written
READ_ERRORS = (OSError, sqlite3.Error, ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError)
PLACE = "PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END"

Row = dict[str, Any]  # COLUMNS: bytes or str


class Shards:
    """The rows of several files under one numbering.

    Args:
        paths: MindRecord files.
        records: rows of each.
    """

    def __init__(self, paths: Sequence[Path], records: Sequence[int]) -> None:
        self.paths = list(paths)
        self.ends = np.cumsum(records)
        self._places: dict[int, np.ndarray] = {}  # by shard: int32 [rows, 6], the columns of PLACE; −1: unknown
        self._files: dict[int, tuple[BinaryIO, int, int]] = {}  # by shard: file, bytes of its header and of a page
        self._lock = threading.Lock()  # a file must not be closed while another thread reads it

    def locate(self, index: int) -> tuple[int, int]:
        """The shard that holds a row, and the row's number there."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - (int(self.ends[shard - 1]) if shard else 0)

    def row(self, index: int) -> Row:
        """One row. It need not be as it was written: compare its checksum.

        Raises:
            READ_ERRORS: it cannot be read.
        """
        shard, number = self.locate(index)
        if shard not in self._places:  # two threads may read it at the same time: both find the same
            rows = int(self.ends[shard]) - (int(self.ends[shard - 1]) if shard else 0)
            self._places[shard] = _read_places(self.paths[shard], rows)
        *blobs, page, start, end = self._places[shard][number].tolist()
        return _unpack_blobs(self._read(shard, *blobs)) | _unpack_texts(self._read(shard, page, start, end))

    def _read(self, shard: int, page: int, start: int, end: int) -> bytes:
        """The content of a stretch of a page, without its length."""
        with self._lock:
            file, header_bytes, page_bytes = self._open(shard)
            if page < 0 or not 0 <= start <= end - 8 <= page_bytes:
                raise ValueError("its index does not say where it is")
            data = os.pread(file.fileno(), end - start, header_bytes + page * page_bytes + start)
        if len(data) != end - start or int.from_bytes(data[:8], "little") != len(data) - 8:
            raise ValueError("it is not where its index says")
        return data[8:]

    def _open(self, shard: int) -> tuple[BinaryIO, int, int]:
        found = self._files.pop(shard, None)
        if found is None:
            if len(self._files) >= MOST_OPEN:
                self._files.pop(next(iter(self._files)))[0].close()  # the one that was not used for longest
            file = open(self.paths[shard], "rb")  # noqa: SIM115 - it stays open
            found = file, *_read_header(file)
        self._files[shard] = found
        return found


def _read_header(file: BinaryIO) -> tuple[int, int]:
    """Bytes of a file's header and of a page; where it does not say them, those of DatasetWriter."""
    try:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, MOST_HEADER)))
        sizes = header["header_size"], header["page_size"]
        if all(size > 0 and not size & (size - 1) for size in sizes):
            return sizes
    except READ_ERRORS:
        pass
    return HEADER_BYTES, PAGE_BYTES


def _read_places(path: Path, rows: int) -> np.ndarray:
    """Where the rows of a file lie: int32 [rows, 6], the columns of PLACE; −1 for those that cannot be known."""
    places = np.full((rows, 6), -1, np.int32)
    # immutable: no lock file is wanted, which a folder that is read only could not hold
    index = sqlite3.connect(f"{path.absolute().as_uri()}.db?mode=ro&immutable=1", uri=True)
    try:
        try:
            found = np.array(index.execute(f"SELECT ROW_ID, {PLACE} FROM INDEXES").fetchall(), np.int32)
            places[found[:, 0]] = found[:, 1:]
        except READ_ERRORS:  # a page of it is damaged: what the others say is as good as ever
            for row in range(rows):
                places[row] = _read_place(index, row)
    finally:
        index.close()
    return places


def _read_place(index: sqlite3.Connection, row: int) -> Sequence[int]:
    try:
        (place,) = index.execute(f"SELECT {PLACE} FROM INDEXES WHERE ROW_ID = ?", (row,)).fetchall()
        return np.array(place, np.int32)
    except READ_ERRORS:
        return [-1] * 6


def _unpack_blobs(data: bytes) -> Row:
    """The columns of bytes, in the order of the schema."""
    found, start = {}, 0
    for name in BYTES:
        end = start + 8 + int.from_bytes(data[start : start + 8], "big")
        found[name] = data[start + 8 : end]
        start = end
    if start != len(data):
        raise ValueError("its bytes are not as they were written")
    return found


def _unpack_texts(data: bytes) -> Row:
    """The columns of text: msgpack of a map from names to texts."""
    if not data or data[0] & 0xF0 != 0x80:
        raise ValueError("its texts are not as they were written")
    texts, start = [], 1
    for _ in range(2 * (data[0] & 0x0F)):
        text, start = _unpack_text(data, start)
        texts.append(text)
    found = dict(zip(texts[::2], texts[1::2], strict=True))
    return {name: found[name] for name in COLUMNS if name not in BYTES}


def _unpack_text(data: bytes, start: int) -> tuple[str, int]:
    """A text of msgpack, and where it ends."""
    kind, start = data[start], start + 1
    if kind & 0xE0 == 0xA0:
        length = kind & 0x1F
    else:
        size = {0xD9: 1, 0xDA: 2, 0xDB: 4}[kind]
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    return data[start : start + length].decode(), start + length

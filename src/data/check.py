"""Checks a dataset folder: its files against their checksums, then every record against its own, decoded.

Each shard is read on its own, so that damage to one hides nothing of the others: what is not listed is good.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from src.data.decoding import brief
from src.data.errors import DataError
from src.data.image import open_rgb
from src.data.mindrecord import READ_ERRORS, Row, Shards
from src.data.record import checksum, unpack
from src.data.store import describe, read_info, record_name, stored_layout

SHOWN = 20  # problems that are printed; there may be millions
CHUNK = 64  # records in memory at once


class Findings:
    """The problems of a folder: a count, and the first of them."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[str]()

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)


def report(folder: Path, workers: int) -> None:
    """Checks a dataset folder and prints what is wrong, or that nothing is.

    Raises:
        DataError: the folder has problems.
    """
    if workers < 1:
        raise DataError(f"--workers {workers}: give at least 1")
    found, good = check(folder, workers)
    for problem in found.first:
        print(problem)
    if found.count:
        further = f" ({found.count - SHOWN} more are not listed)" if found.count > SHOWN else ""
        raise DataError(f"{folder}: {found.count} problems{further}, {good} records are good; {found.first[0]}")
    print(f"{folder}: all {good} records are good")


def check(folder: Path, workers: int = 1) -> tuple[Findings, int]:
    """The problems of a dataset folder and the number of its records that are good.

    Raises:
        DataError: there is no dataset.json of this format.
    """
    found, info = Findings(), read_info(folder)
    good = 0
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are valid: prepare has accepted them
    for split, entry in info["splits"].items():
        shards = [file for shard in entry["shards"] for file in shard["files"]]
        for file in tqdm([entry["index"], entry["checksums"], *shards], f"{split}: files", unit=" files"):
            _check_file(folder / file["name"], file, found)
        good += _check_records(folder, split, info, workers, found)
    return found, good


def _check_file(path: Path, wanted: dict[str, Any], found: Findings) -> None:
    if not path.is_file():
        found.add(f"{path}: the file is missing")
    elif (size := path.stat().st_size) != wanted["bytes"]:
        found.add(f"{path}: the file has {size} bytes, dataset.json says {wanted['bytes']}")
    elif describe(path)["sha256"] != wanted["sha256"]:
        found.add(f"{path}: the file is damaged (another sha256 than dataset.json says)")


def _check_records(folder: Path, split: str, info: dict[str, Any], workers: int, found: Findings) -> int:
    """Reads every record of a split; returns how many are good."""
    entry = info["splits"][split]
    try:
        checksums = np.load(folder / entry["checksums"]["name"])
        samples = np.load(folder / entry["index"]["name"])
        counts = np.bincount(samples[:, 0], minlength=entry["records"])
        if len(checksums) != len(counts) or len(counts) != entry["records"]:
            raise ValueError(f"they are of {len(checksums)} and {len(counts)} records, not {entry['records']}")
    except (EOFError, *READ_ERRORS) as error:
        found.add(f"{folder}: index or checksums of split {split!r} cannot be used ({error}): no record is checked")
        return 0
    layout, good, first = stored_layout(info), 0, 0
    with ThreadPoolExecutor(workers) as pool, tqdm(total=entry["records"], desc=split, unit=" records") as bar:
        for shard in entry["shards"]:
            path = folder / shard["files"][0]["name"]
            numbers = range(first, first + shard["records"])
            rows = zip(_read(path, len(numbers)), checksums[numbers], counts[numbers], strict=True)
            for number, problem in zip(numbers, _in_chunks(pool, partial(_problem, layout=layout), rows), strict=True):
                bar.update()
                good += not problem
                if problem:
                    found.add(f"{record_name(path, split, number)} {problem}")
            first += shard["records"]
    return good


def _in_chunks(pool: ThreadPoolExecutor, function: Any, rows: Iterator) -> Iterator[str]:
    """The function of each row, some at a time, in their order."""
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield from pool.map(function, chunk)
            chunk = []
    yield from pool.map(function, chunk)


def _read(path: Path, count: int) -> Iterator[Row | str]:
    """A shard's rows, or why they cannot be read."""
    shard = Shards([path], [count])
    for number in range(count):
        try:
            yield shard.row(number)
        except READ_ERRORS as error:
            yield f"cannot be read ({brief(error)})"


def _problem(read: tuple[Row | str, int, int], layout: tuple[type, tuple[int, ...]]) -> str:
    """What is wrong with a record; nothing if it is good."""
    row, wanted, samples = read
    if isinstance(row, str):
        return row
    key = row["key"]
    if checksum(row) != wanted:
        return f"({key!r}) is damaged (its checksum is another one)"
    try:
        record = unpack(row, *layout)
        if record.image is not None:
            open_rgb(record.image, "its image")
    except (DataError, *READ_ERRORS) as error:
        return f"({key!r}) cannot be decoded ({error})"
    if max(len(record.captions), 1) != samples:
        return f"({key!r}) has {len(record.captions)} captions, the index {samples} samples"
    return ""

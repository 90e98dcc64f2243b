"""The parts of finished shards, from which a new writer resumes the work of a killed one.

A *part* says which rows of the input a shard holds and what the index needs to know about them. It is written and
renamed once the shard is complete, so that a shard without a part is an unfinished one.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from src.data.errors import DataError
from src.data.record import Packed

PROGRESS = ".progress.json"  # the settings that an unfinished folder is made with
PART = re.compile(r"\.part-(.+)-\d{5}\.npz")


def check_progress(path: Path, settings: dict[str, Any]) -> None:
    """Raises DataError if the unfinished folder was begun with other settings; it names the first that differs."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        pairs = {**stored, **stored.pop("about"), **stored["audio"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not describe an unfinished dataset: begin without --resume") from None
    settings = json.loads(json.dumps(settings))  # tuples are lists there
    wanted = {**settings, **settings["about"], **settings["audio"]}
    for key in sorted(pairs.keys() | wanted.keys()):
        if key not in ("about", "audio") and pairs.get(key) != wanted.get(key):
            raise DataError(
                f"{path.parent} was begun with {key}={pairs.get(key)}, now it is {wanted.get(key)}: "
                "use the same settings, or begin without --resume"
            )


def write_part(path: Path, shard: dict[str, Any], entries: list[tuple[int, Packed]]) -> None:
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        np.savez(
            file,
            shard=np.array(json.dumps(shard)),
            rows=np.array([row for row, _ in entries], np.int64),
            samples=np.array([len(packed.presence) for _, packed in entries], np.int32),
            presence=np.array([presence for _, packed in entries for presence in packed.presence], np.uint8),
            regions=np.array([packed.regions for _, packed in entries], bool),
            images=np.array([packed.image for _, packed in entries], np.uint64),
            checksums=np.array([packed.checksum for _, packed in entries], np.uint32),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_part(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A part's shard and rows of the input."""
    try:
        with np.load(path) as part:
            return json.loads(part["shard"].item()), part["rows"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise DataError(f"{path} is damaged: begin without --resume") from None


def read_entries(path: Path) -> Iterator[Packed]:
    """A part's records, without their content."""
    with np.load(path) as part:
        presence = np.split(part["presence"], np.cumsum(part["samples"])[:-1])
        columns = [part[name].tolist() for name in ("regions", "images", "checksums")]
    for present, regions, image, crc in zip(presence, *columns, strict=True):
        yield Packed({}, tuple(map(tuple, present.tolist())), regions, image, crc)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

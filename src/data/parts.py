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
    """Raises DataError if the unfinished folder was begun with other settings; it names the first that differs.

    The input may have been mended since: what the finished shards hold of it is compared row by row.
    """
    try:
        stored = _by_name(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not describe an unfinished dataset: begin without --resume") from None
    wanted = _by_name(json.loads(json.dumps(settings)))  # tuples are lists there
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise DataError(
                f"{path.parent} was begun with {key}={stored.get(key)}, now it is {wanted.get(key)}: "
                "use the same settings, or begin without --resume"
            )


def _by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings side by side; those of the audio keep their prefix, for one of them has the input's name."""
    about = {key: value for key, value in settings["about"].items() if key != "input"}
    audio = {f"model.audio.{key}": value for key, value in settings["audio"].items()}
    return {key: value for key, value in settings.items() if key not in ("about", "audio")} | about | audio


def write_part(path: Path, shard: dict[str, Any], entries: list[tuple[int, int, Packed]]) -> None:
    """Writes what a shard holds: of each record its row of the input, the digest of what that said, and the record."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        np.savez(
            file,
            shard=np.array(json.dumps(shard)),
            rows=np.array([row for row, _, _ in entries], np.int64),
            said=np.array([said for _, said, _ in entries], np.uint64),
            sources=np.array([packed.source for _, _, packed in entries], np.uint64),
            samples=np.array([len(packed.presence) for _, _, packed in entries], np.int32),
            presence=np.array([presence for _, _, packed in entries for presence in packed.presence], np.uint8),
            regions=np.array([packed.regions for _, _, packed in entries], bool),
            sided=np.array([packed.sided for _, _, packed in entries], bool),
            images=np.array([packed.image for _, _, packed in entries], np.uint64),
            checksums=np.array([packed.checksum for _, _, packed in entries], np.uint32),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_part(path: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """A part's shard, its rows of the input, the digests of what these said, and those that their splits go by."""
    try:
        with np.load(path) as part:
            return json.loads(part["shard"].item()), part["rows"], part["said"], part["sources"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise DataError(f"{path} is damaged, or of an earlier version: begin without --resume") from None


def read_entries(path: Path) -> Iterator[Packed]:
    """A part's records, without their content."""
    with np.load(path) as part:
        presence = np.split(part["presence"], np.cumsum(part["samples"])[:-1])
        columns = [part[name].tolist() for name in ("regions", "images", "checksums", "sided")]
    for present, *values in zip(presence, *columns, strict=True):
        yield Packed({}, tuple(map(tuple, present.tolist())), *values)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

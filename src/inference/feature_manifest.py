"""Reads the manifest whose media become features, and writes the one that names the features instead."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.data.decoding import parse_json
from src.data.errors import DataError
from src.files import json_line, write_bytes

MANIFEST = "manifest.jsonl"
PATHS = ("image", "regions", "audio")  # keys of a row that name files
LONGEST_NAME = 230  # bytes of a part of a path: file systems take 255, endings and what stands before them included
Entry = dict[str, Any] | bytes  # a row, or a line that is none


def read_manifest(path: Path) -> list[Entry]:
    """The manifest's objects; a line that is none stays as it is, for the preparation to reject."""
    if not os.path.isfile(path):
        raise DataError(f"--input {path}: no such file")
    entries: list[Entry] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = parse_json(line, "malformed JSON")
        except DataError:
            entry = line
        if line.strip():
            entries.append(entry if isinstance(entry, dict) else line)
    return entries


def named_files(entry: Entry, kind: str) -> list[str]:
    """The files of a kind that a row names; a row that is wrong is left to the preparation."""
    value = entry.get(kind) if isinstance(entry, dict) else None
    listed = value if isinstance(value, list) else [value]
    # a caption with several recordings has a list of them
    names = [name for item in listed for name in (item if isinstance(item, list) else [item])]
    return [name for name in names if isinstance(name, str) and name]


def count_own_regions(entries: Sequence[Entry]) -> int:
    """How many rows name regions beside their image, which features of the images would replace."""
    return sum(bool(named_files(entry, "image") and named_files(entry, "regions")) for entry in entries)


def safe_name(name: str) -> str:
    """A path inside the folder; one that leads out of it, or is no usual name, is replaced by its digest."""
    parts = Path(name).parts
    short = all(len(part.encode(errors="surrogatepass")) <= LONGEST_NAME for part in parts)
    if short and re.fullmatch(r"[^\0-\x1f]+", name) and not Path(name).is_absolute() and ".." not in parts:
        return name
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def write_manifest(output: Path, entries: Sequence[Entry], media: Path, names: dict[str, dict[str, Path]]) -> None:
    """Writes the manifest with features in place of audio clips and beside images; paths start from its own folder.

    Where an image or an audio clip has no features, its row stays without them. Regions that a row named itself stay
    where no features of images were made, or the row has no image.

    Args:
        media: folder that the paths of the entries start from.
        names: the files of features by kind, "image" or "audio", and by the name of what they were made of.
    """
    way = os.path.relpath(media.resolve(), output.resolve())  # a ".." behind a link leads out of what it points to
    lines = [entry if isinstance(entry, bytes) else json_line(_moved(entry, output, way, names)) for entry in entries]
    write_bytes(output / MANIFEST, b"\n".join(lines) + b"\n")


def _moved(entry: dict[str, Any], output: Path, way: str, names: dict[str, dict[str, Path]]) -> dict[str, Any]:
    """A row of the new manifest; ``way`` leads from its folder to that of the media."""
    moved, features = dict(entry), {"audio": names.get("audio")}  # those of an image stand beside it
    for key in PATHS:
        if key in entry:
            moved[key] = _files(entry[key], output, way, features.get(key))
    if "image" in names and (images := named_files(entry, "image")):
        moved.pop("regions", None)
        if images[0] in names["image"]:
            moved["regions"] = names["image"][images[0]].relative_to(output).as_posix()
    return moved


def _files(value: Any, output: Path, way: str, features: dict[str, Path] | None) -> Any:
    """A row's files as paths of features, null where one has none; without any features as paths of the media."""
    if isinstance(value, list):
        return [_recordings(item, output, way, features) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if features is None:
        return os.path.join(way, value)
    return features[value].relative_to(output).as_posix() if value in features else None


def _recordings(value: Any, output: Path, way: str, features: dict[str, Path] | None) -> Any:
    """A caption's audio; of several recordings those that have features, null where none has."""
    if not isinstance(value, list):
        return _files(value, output, way, features)
    found = [(_files(name, output, way, features), name) for name in value]
    kept = [path for path, name in found if path is not None or name is None]
    return kept if kept or not value else None

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


def safe_name(name: str) -> str:
    """A path inside the folder; one that leads out of it, or is no usual name, is replaced by its digest."""
    parts = Path(name).parts
    short = all(len(part.encode(errors="surrogatepass")) <= LONGEST_NAME for part in parts)
    if short and re.fullmatch(r"[^\0-\x1f]+", name) and not Path(name).is_absolute() and ".." not in parts:
        return name
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def write_manifest(output: Path, entries: Sequence[Entry], media: Path, names: dict[str, dict[str, Path]]) -> None:
    """Writes the manifest with features in place of audio clips and beside images; paths start from its own folder.

    Where an image or an audio clip has no features, its row stays without them.
    """
    lines: list[bytes] = []
    for entry in entries:
        if isinstance(entry, dict):
            entry = dict(entry)
            if "image" in names:
                for path in filter(None, map(names["image"].get, named_files(entry, "image"))):
                    entry["regions"] = path.relative_to(output).as_posix()
            if isinstance(entry.get("image"), str):
                entry["image"] = os.path.relpath(media / entry["image"], output)
            if "audio" in entry:
                entry["audio"] = _audio(entry["audio"], output, media, names.get("audio"))
        lines.append(entry if isinstance(entry, bytes) else json_line(entry))
    write_bytes(output / MANIFEST, b"\n".join(lines) + b"\n")


def _audio(value: Any, output: Path, media: Path, features: dict[str, Path] | None) -> Any:
    """A row's audio as paths of features, null where one has none; without any features as paths of the clips."""
    if isinstance(value, list):
        return [_recordings(item, output, media, features) for item in value]
    if not isinstance(value, str):
        return value
    if features is None:
        return os.path.relpath(media / value, output)
    return features[value].relative_to(output).as_posix() if value in features else None


def _recordings(value: Any, output: Path, media: Path, features: dict[str, Path] | None) -> Any:
    """A caption's audio; of several recordings those that have features, null where none has."""
    if not isinstance(value, list):
        return _audio(value, output, media, features)
    found = [(_audio(name, output, media, features), name) for name in value]
    kept = [path for path, name in found if path is not None or name is None]
    return kept if kept or not value else None

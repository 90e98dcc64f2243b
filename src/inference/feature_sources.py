"""What features were made of. Those of an image or audio clip that has changed are made again, others' are refused.

    sources.jsonl    a line for each file of features, of several the last one counts:
        {"features": "regions/1.png.npz", "source": "../photos/1.png", "bytes": 812, "mtime_ns": 17…, "sha256": "9f…"}

Size and time spare reading a file that nobody has touched; the content decides about one that was copied or moved.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.decoding import parse_json
from src.data.errors import DataError
from src.files import digest, json_line

SOURCES = "sources.jsonl"


@dataclass(frozen=True)
class Job:
    """A file of media and where its features go."""

    source: Path
    target: Path


class Sources:
    """The media of a folder of features.

    Args:
        folder: of features, which need not exist.
        begun: an earlier call wrote into it; otherwise files in it are the user's.
    """

    def __init__(self, folder: Path, begun: bool) -> None:
        self.folder, self.begun = folder, begun
        self.known = {row["features"]: row for row in self._read()}

    def has_features(self, job: Job) -> bool:
        """Whether the features are there, and of the medium as it is now; they may outlive it.

        Raises:
            DataError: in their place stands what was made of another medium, or was not made by this command.
        """
        if not job.target.is_file():
            return False
        known, here = self.known.get(self._name(job)), job.source.is_file()
        if known is None:
            if not self.begun:
                raise DataError(f"{job.target} is there and was not extracted: choose another --output")
            self.note(job)  # earlier versions kept no record, and a kill may come before its line
            return True
        touched = here and not self._stamp(job.source).items() <= known.items()
        if here and (not touched or _content(job.source) == known.get("sha256", "")):
            return True
        if known.get("source") != self._place(job.source):
            other = os.path.normpath(self.folder / str(known.get("source")))
            raise DataError(f"{job.target} holds features of {other}, not of {job.source}: choose another --output")
        return not here

    def note(self, job: Job) -> None:
        """Adds the line of features that are there."""
        if job.source.is_file() and (content := _content(job.source)):
            row = {"features": self._name(job)} | self._stamp(job.source) | {"sha256": content}
            with open(self.folder / SOURCES, "ab") as file:
                file.write(json_line(row) + b"\n")

    def _read(self) -> Iterator[dict[str, Any]]:
        path = self.folder / SOURCES
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                row = parse_json(line, "no JSON")
            except DataError:  # cut by a kill
                continue
            if isinstance(row, dict) and isinstance(row.get("features"), str):
                yield row

    def _name(self, job: Job) -> str:
        return job.target.relative_to(self.folder).as_posix()

    def _stamp(self, source: Path) -> dict[str, Any]:
        stat = source.stat()
        return {"source": self._place(source), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}

    def _place(self, source: Path) -> str:
        """The path from the folder, so that both can be moved together."""
        return os.path.relpath(source.parent.resolve() / source.name, self.folder.resolve())


def _content(source: Path) -> str | None:
    """Its sha256; None where it cannot be read, which is told where features are made of it."""
    try:
        return digest(source)
    except OSError:
        return None

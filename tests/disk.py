"""What has reached the disk: files that are flushed to it (fsync), and those that are renamed before they are."""

import os
from pathlib import Path

import pytest


class Disk:
    """Watches, from now on, what is flushed and what is renamed.

    ``renamed`` holds of every rename the new name, the files under the old one that were not flushed as they are, and
    those of the folder that it happens in.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: dict[int, int] = {}  # inode → bytes
        self.renamed: list[tuple[str, set[str], set[str]]] = []
        flush = os.fsync

        def note(number: int) -> None:
            flush(number)
            state = os.fstat(number)
            self.flushed[state.st_ino] = state.st_size

        monkeypatch.setattr(os, "fsync", note)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))

    def _noting(self, rename):
        def call(old: str | Path, new: str | Path) -> None:
            self.renamed.append((Path(new).name, self.pending(Path(old)), self.pending(Path(new).parent)))
            rename(old, new)

        return call

    def pending(self, place: Path) -> set[str]:
        """Names of the files of a folder, or of a file, that a power cut would leave empty or short."""
        files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
        return {file.name for file in files if self.flushed.get(file.stat().st_ino) != file.stat().st_size}

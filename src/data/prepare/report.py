"""The result of a preparation: the list of rejected rows, and the tables printed at the end."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from src.data.errors import DataError
from src.data.prepare.rows import Row
from src.data.schema import MODALITIES
from src.data.store import read_info


class Tally(contextlib.AbstractContextManager):
    """Counts rows and lists the rejected ones in a file, which is removed if there are none.

    Args:
        rejected: file to write, one JSON object a row: file, line, id, reason.
        english: captions that are not translated are English.

    Attributes:
        unused: to be set before the counts are read: ids of translations that no caption used.
    """

    def __init__(self, rejected: Path, english: bool) -> None:
        self.path, self.english = rejected, english
        self.rows = self.bad = self.moved = self.captions = self.translated = 0
        self.unused: list[str] = []
        self._reasons: Counter[str] = Counter()
        self._first = ""
        self._file = rejected.open("w", encoding="utf-8", errors="backslashreplace")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.bad:
            self.path.unlink()

    def reject(self, row: Row, reason: str) -> None:
        self.rows, self.bad = self.rows + 1, self.bad + 1
        self._first = self._first or f"{row.file}:{row.line}: {reason}"
        self._reasons[_kind(reason)] += 1
        entry = {"file": row.file, "line": row.line, "id": row.key, "reason": reason}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def store(self, row: Row, moved: bool) -> None:
        self.rows += 1
        self.captions += len(row.captions)
        self.translated += row.translated
        self.moved += moved

    def check(self, max_bad: float, output: Path) -> None:
        """Raises DataError if there are too many bad rows, or no good ones."""
        if self.bad > max_bad * max(self.rows, 1):
            raise DataError(
                f"{self.bad} of {self.rows} rows are bad, more than --max-bad {max_bad} allows (--resume with a larger "
                f"one keeps the shards written); {self.path} lists them, the first is {self._first}"
            )
        if self.bad == self.rows:
            raise DataError(f"there are no rows to write to {output}")

    def about(self) -> dict[str, Any]:
        """Counts for dataset.json."""
        counts = {"rows": self.rows, "rejected": self.bad, "moved": self.moved}
        if self.english:
            counts |= {"translated": self.translated, "english": self.captions - self.translated}
            counts["unused_translations"] = len(self.unused)
        return counts

    def print(self, folder: Path) -> None:
        columns = {name: name for name in ("records", "samples", "images", *MODALITIES, "regions")}
        columns["images"] = "pictures"  # the stored name of the count of different images
        print(f"{'split':12}" + "".join(f"{name:>10}" for name in columns))
        for split, entry in read_info(folder)["splits"].items():
            print(f"{split:12}" + "".join(f"{entry[name]:10}" for name in columns.values()))
        if self.english:
            print(f"captions: {self.translated} translated, {self.captions - self.translated} kept in English")
        if self.unused:
            print(f"translations that no caption used: {len(self.unused)}, the first one of id {self.unused[0]!r}")
        if self.moved:
            print(f"rows moved to the split that already has their image: {self.moved}")
        print(f"rejected rows: {self.bad}" + (f" of {self.rows}, listed in {self.path}" if self.bad else ""))
        for reason, count in self._reasons.most_common():
            print(f"{count:10}  {reason}")


def _kind(reason: str) -> str:
    """A reason without the names and details that differ between rows."""
    return reason.split(" (")[0].rsplit(": ", 1)[-1]

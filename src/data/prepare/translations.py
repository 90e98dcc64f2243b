"""Chinese captions for English corpora, from a file of ids and captions.

{"id": "770337", "caption": "一个男人骑着红色的自行车"}       one object a line (.jsonl), or
770337<TAB>一个男人骑着红色的自行车                        id and text a line (any other name)
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.cli import CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.common import SPLIT_NAMES
from src.data.prepare.rows import Row, check_caption, read_lines, read_objects


def add_argument(parser: CommandParser, ids: str) -> None:
    """Adds --translations; ``ids`` says what identifies a caption of the corpus."""
    text = f"Chinese captions: JSONL of id and caption, or id<TAB>caption a line; the id is {ids}"
    parser.add_argument("--translations", type=user_path, help=text + ". Captions without a translation stay English")


class Translations:
    """Captions by id.

    Args:
        path: the file, or None for no translations at all.
        by_split: the ids begin with a split, which may be called by any of its names (``val/0`` is ``dev/0``).

    Attributes:
        rejected: a rejected row for each line that cannot be used.
    """

    def __init__(self, path: Path | None, by_split: bool = False) -> None:
        self.path = path
        self.rejected: list[Row] = []
        self._texts: dict[str, str] = {}
        self._used: set[str] = set()
        for number, line in _lines(path) if path else ():
            if isinstance(line, Row):
                self.rejected.append(line)
                continue
            key, text = line
            try:
                caption = check_caption(text)
                if not isinstance(key, (str, int)) or not str(key):
                    raise DataError("the id is missing or neither a text nor a whole number")
                name = _with_stored_split(str(key)) if by_split else str(key)
                if name in self._texts:
                    raise DataError(f"{key!r}: there has been a translation of this id before")
                self._texts[name] = caption
            except DataError as error:
                self.rejected.append(Row(path.name, number, str(key or ""), reason=str(error)))

    def __len__(self) -> int:
        return len(self._texts)

    def __call__(self, key: Any, english: str) -> tuple[str, int]:
        """The translation and 1, or the English caption and 0 if there is no translation of this id."""
        found = self._texts.get(str(key))
        if found is None:
            return english, 0
        self._used.add(str(key))
        return found, 1

    def unused(self) -> list[str]:
        """The ids whose translation no caption has taken so far, as in the file but for the names of splits."""
        return [key for key in self._texts if key not in self._used]

    def apply(self, captions: list[tuple[Any, str]]) -> tuple[tuple[str, ...], int]:
        """The captions of an image, translated where possible, and the number of translated ones."""
        pairs = [self(key, english) for key, english in captions]
        return tuple(text for text, _ in pairs), sum(found for _, found in pairs)


def _with_stored_split(key: str) -> str:
    split, slash, rest = key.partition("/")
    return SPLIT_NAMES.get(split, split) + slash + rest


def _lines(path: Path) -> Iterator[tuple[int, tuple[Any, Any] | Row]]:
    """Numbers and (id, caption) of the lines; a rejected row for any other line."""
    if not os.path.isfile(path):
        raise DataError(f"--translations {path}: no such file")
    if path.suffix == ".jsonl":
        for number, entry in read_objects(path):
            yield number, entry if isinstance(entry, Row) else (entry.get("id"), entry.get("caption"))
        return
    for number, line in read_lines(path):
        if isinstance(line, Row) or "\t" not in line:
            yield (
                number,
                line if isinstance(line, Row) else Row(path.name, number, reason="there is no tab in the line"),
            )
        else:
            key, text = line.split("\t", 1)
            yield number, (key.strip(), text)

"""metrics.jsonl as it is read again: of a log that a kill has cut short or a disk has damaged, what is whole."""

import json
from typing import Any, NamedTuple


class LogLine(NamedTuple):
    """A line of a log: its bytes with the end of line, and what it holds."""

    raw: bytes
    content: dict[str, Any]


def read_lines(data: bytes) -> tuple[list[LogLine], int]:
    """The lines of a log that hold a step, and how many others there are.

    The last line is not counted among these: it may still be in writing, or was cut short by a kill.
    """
    rows = data.splitlines(keepends=True)
    contents = list(map(_content, rows))
    found = [LogLine(raw, content) for raw, content in zip(rows, contents, strict=True) if content is not None]
    return found, contents[:-1].count(None)


def _content(row: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(row)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) else None

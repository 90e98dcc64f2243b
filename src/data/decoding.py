"""The one net around decoders: whatever they raise about a file is a DataError that names it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.errors import DataError

MOST_BYTES = 1 << 30  # of a file or array that is read into memory at once


@contextlib.contextmanager
def decoding(failure: str) -> Iterator[None]:
    """Turns what is raised inside into a DataError, ``{failure} (reason)``; a DataError passes unchanged."""
    try:
        yield
    except DataError:
        raise
    # Decoders raise anything about a damaged file, also MemoryError and RecursionError: a list of types is never whole.
    except Exception as error:
        raise DataError(f"{failure} ({brief(error)})") from None


def brief(error: BaseException) -> str:
    """What an exception says, on one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def check_file(path: str | Path, kind: str) -> None:
    """Raises DataError unless there is a regular file: a name may also be too long, and a pipe would never end."""
    if not os.path.isfile(path):  # unlike Path's it takes any text
        raise DataError(f"{path}: no such {kind}")


def read_bytes(path: str | Path, kind: str, most: int = MOST_BYTES) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    check_file(path, kind)
    with decoding(f"{path}: not a readable {kind}"):
        if (size := os.path.getsize(path)) > most:
            raise DataError(f"{path}: {size} bytes are too many for {kind}, at most {most} are read")
        with open(path, "rb") as file:
            return file.read()


def parse_json(text: str | bytes, failure: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: it is malformed, or nested too deep to be read.
    """
    with decoding(failure):
        return json.loads(text)


def whole_text(text: str) -> str:
    """A text that UTF-8 can hold: pairs of surrogates are joined, half a pair becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

"""What corpora of recorded speech share: a row is a recording and its transcript, without an image."""

from collections.abc import Sequence
from pathlib import Path

from src.cli import CommandParser
from src.data.errors import DataError
from src.data.prepare.common import check_split
from src.data.prepare.rows import Row, check_caption


def add_split(parser: CommandParser) -> None:
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="its split: train, dev (or val), test; default: by hash of the recording's name",
    )


def splits_of(given: list[str] | None, inputs: Sequence[Path]) -> list[str | None]:
    """The split of each input; None where none is given.

    Raises:
        DataError: their numbers differ, or there is no such split.
    """
    splits = given or [None] * len(inputs)
    if len(splits) != len(inputs):
        raise DataError(f"{len(inputs)} inputs but {len(splits)} --split: give one for each, or none at all")
    return [None if split is None else check_split(split) for split in splits]


def spoken_row(file: Path, number: int, name: str, text: str, recording: Path, split: str | None) -> Row:
    """A recording with what a line of a file says of it; rejected where that is nothing."""
    if not text.strip():
        return Row(file.name, number, name, reason="the transcript is empty")
    return Row(file.name, number, name, None, (check_caption(text),), (recording,), split)

"""What corpora of recorded speech share: a row is a recording and its transcript, without an image."""

from pathlib import Path

from src.data.prepare.rows import Row, check_caption


def spoken_row(file: Path, number: int, name: str, text: str, recording: Path, split: str | None) -> Row:
    """A recording with what a line of a file says of it; rejected where that is nothing."""
    if not text.strip():
        return Row(file.name, number, name, reason="the transcript is empty")
    return Row(file.name, number, name, None, (check_caption(text),), (recording,), split)

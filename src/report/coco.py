"""COCO's result format, which public tools of caption metrics read."""

from collections.abc import Sequence
from pathlib import Path

from src.files import write_json


def save_captions(path: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    """A list of {"image_id", "caption"}."""
    entries = zip(names, captions, strict=True)
    write_json(path, [{"image_id": coco_id(name), "caption": text} for name, text in entries])


def coco_id(name: str) -> int | str:
    """An image's number in COCO, which stands behind the split in the keys of its records; other names as they are."""
    number = name.rpartition("/")[2]
    return int(number) if number.isdecimal() and str(int(number)) == number else name

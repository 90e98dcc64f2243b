"""COCO's result format, which public tools of caption metrics read."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.files import write_json

# the keys of COCO's records: of its own annotations a number, perhaps behind the split; elsewhere the file's name
COCO_KEY = re.compile(r"(?:(?:train|dev|val|test)/)?(0|[1-9][0-9]*)|COCO_(?:train|val|test)20[0-9]{2}_([0-9]{12})")

COCO_FILE = re.compile(r"COCO_\w+_[0-9]{12}")


def save_captions(path: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    """A list of {"image_id", "caption"}."""
    entries = zip(coco_ids(names), captions, strict=True)
    write_json(path, [{"image_id": image, "caption": text} for image, text in entries])


def keys_of_files(files: Sequence[str]) -> list[str]:
    """Of paths of COCO's own images the keys that its records have, where no other file's is the same; or the path."""
    stems = [Path(file).stem for file in files]
    counts = Counter(stems)
    own = [bool(COCO_FILE.fullmatch(stem)) and counts[stem] == 1 for stem in stems]
    return [stem if is_own else file for stem, is_own, file in zip(stems, own, files, strict=True)]


def coco_ids(names: Sequence[str]) -> list[int | str]:
    """The images' numbers in COCO, where their names hold one that no other name holds; other names as they are."""
    found = [COCO_KEY.fullmatch(name) for name in names]
    numbers = [int(match[1] or match[2]) if match else None for match in found]
    counts = Counter(numbers)  # train/5 and dev/5 are two images of some other corpus
    pairs = zip(names, numbers, strict=True)
    return [name if number is None or counts[number] > 1 else number for name, number in pairs]

"""Captions in the JSON format of MS COCO; several files make one dataset.

    coco --annotations captions_train.json --images train2017 --split train \
         --annotations captions_val.json --images val2017 --split test --output data/coco
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.errors import DataError
from src.data.prepare.common import Row, add_common_arguments, check_captions, guard, write_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", type=Path, action="append", required=True, help="captions JSON; repeatable")
    parser.add_argument("--images", type=Path, action="append", required=True, help="its folder of pictures")
    parser.add_argument("--split", action="append", help="its split (default: by hash of the picture)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> None:
    count = len(args.annotations)
    splits = args.split or [None] * count
    if len(args.images) != count or len(splits) != count:
        raise DataError("give one --images (and one --split, or none at all) for each --annotations")
    rows: list[Row] = []
    for path, images, split in zip(args.annotations, args.images, splits, strict=True):
        if not images.is_dir():
            raise DataError(f"--images {images}: no such folder")
        rows.extend(read_rows(path, images, split))
    about = {"source": "coco", "input": [path.name for path in args.annotations]}
    write_dataset(rows, len(rows), args, about)


def read_rows(path: Path, images: Path, split: str | None) -> Iterator[Row]:
    """A row for each picture with all its captions, and a rejected one for each caption of an unknown picture."""
    content = _load(path)
    captions: dict[Any, list[Any]] = {}
    known = {_get(entry, "id") for entry in content["images"]}
    for number, entry in enumerate(content["annotations"], 1):
        owner = _get(entry, "image_id")
        if owner is None or owner not in known:
            reason = f"annotation {_get(entry, 'id')} belongs to picture {owner}, which is not in the list of images"
            yield Row(path.name, number, reason=reason)
        else:
            captions.setdefault(owner, []).append(_get(entry, "caption"))
    for number, entry in enumerate(content["images"], 1):
        yield _row(entry, captions.get(_get(entry, "id"), []), path.name, number, images, split)


def _row(entry: Any, captions: list[Any], file: str, number: int, images: Path, split: str | None) -> Row:
    key, name = _get(entry, "id"), _get(entry, "file_name")
    if key is None or not isinstance(name, str) or not name:
        return Row(file, number, reason="the picture has no id or no file_name")
    key = f"{split}/{key}" if split else str(key)  # COCO's ids repeat in other collections
    return guard(lambda: Row(file, number, key, images / name, check_captions(captions), (), split), file, number, key)


def _get(entry: Any, name: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, (str, int)) else None


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise DataError(f"--annotations {path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} is not in COCO's caption format: it has no list of {name}")
    return content

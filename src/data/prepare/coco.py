"""Captions in the JSON format of MS COCO's official annotations; several files make one dataset.

    coco --annotations captions_train2017.json --images train2017 --split train \\
         --annotations captions_val2017.json --images val2017 --split test --output data/coco

A record's id is SPLIT/ID, or SPLIT/FOLDER/ID where several folders of a split have an image of that id; ID or FOLDER/ID
without --split.
"""

import functools
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser
from src.data.errors import DataError
from src.data.prepare import translations
from src.data.prepare.common import add_common_arguments, add_file_arguments, file_groups, write_dataset
from src.data.prepare.ids import Ids, ids_of
from src.data.prepare.rows import Corpus, Row, check_caption, check_name, describe_inputs, guard, read_json
from src.data.prepare.translations import Translations


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "captions JSON")
    translations.add_argument(parser, "the annotation's id")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    about = describe_inputs("coco", args.annotations, "--annotations")
    chinese = Translations(args.translations)
    sources = [_Captions(*group, chinese) for group in groups]
    _, folders, splits = zip(*groups, strict=True)
    ids = ids_of(splits, folders, [map(str, source.captions) for source in sources], by_split=True)
    rows = chain(chinese.rejected, *(source.rows(called) for source, called in zip(sources, ids, strict=True)))
    total = sum(map(len, [chinese.rejected, *sources]))
    write_dataset(Corpus(rows, total, about, english=True, unused=chinese.unused), args)


class _Captions:
    """The rows of one file: one for each image with all its captions, and a rejected one for each bad caption."""

    def __init__(self, path: Path, images: Path, split: str | None, chinese: Translations) -> None:
        self.file, self.folder, self.split, self.chinese = path.name, images, split, chinese
        content = read_json(path)
        for name in ("images", "annotations"):
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                raise DataError(f"{path} is not in COCO's caption format: it has no list of {name}")
        self.images = content["images"]
        self.captions: dict[Any, list[tuple[Any, str]]] = {_get(entry, "id"): [] for entry in self.images}
        self.rejected = [
            row for row in map(self._take, range(len(content["annotations"])), content["annotations"]) if row
        ]

    def __len__(self) -> int:
        return len(self.rejected) + len(self.images)

    def rows(self, called: Ids) -> Iterator[Row]:
        yield from self.rejected
        for number, entry in enumerate(self.images, 1):
            yield guard(functools.partial(self._row, number, entry, called), self.file, number)

    def _take(self, index: int, entry: Any) -> Row | None:
        """Adds a caption to its image; returns a rejected row if that is impossible."""
        key, owner = _get(entry, "id"), _get(entry, "image_id")
        try:
            if owner is None or owner not in self.captions:
                raise DataError(f"annotation {key} belongs to image {owner}, which is not in the list of images")
            self.captions[owner].append((key, check_caption(_get(entry, "caption"))))
        except DataError as error:
            return Row(self.file, index + 1, "" if key is None else str(key), reason=str(error))
        return None

    def _row(self, number: int, entry: Any, called: Ids) -> Row:
        key = _get(entry, "id")
        if key is None:
            raise DataError("the image has no id")
        image = self.folder / check_name(_get(entry, "file_name"))
        captions, translated = self.chinese.apply(self.captions[key])
        return Row(self.file, number, called(str(key)), image, captions, (), self.split, translated)


def _get(entry: Any, name: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, (str, int)) else None

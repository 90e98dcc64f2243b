"""The caption set of AI Challenger 2017: 210,000 images with five Chinese captions each.

    aic --annotations caption_train_annotations_20170902.json --images caption_train_images_20170902 --split train \\
        --annotations caption_validation_annotations_20170910.json --images caption_validation_images_20170910 \\
        --split test --output data/aic

A record's id is the image's name, or SPLIT/NAME (SPLIT/FOLDER/NAME, FOLDER/NAME) where several folders have that name.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser
from src.data.errors import DataError
from src.data.prepare.common import add_common_arguments, add_file_arguments, file_groups, write_dataset
from src.data.prepare.ids import Ids, ids_of
from src.data.prepare.rows import Corpus, Row, check_caption, check_name, describe_inputs, read_json


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "annotations JSON")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    about = describe_inputs("aic", args.annotations, "--annotations")
    contents = list(map(read_json, args.annotations))
    for path, content in zip(args.annotations, contents, strict=True):
        if not isinstance(content, list):
            raise DataError(f"{path} is not in AI Challenger's caption format: it is no list")
    _, folders, splits = zip(*groups, strict=True)
    ids = ids_of(splits, folders, [_names(content) for content in contents])
    rows = (_rows(content, *group, called) for content, group, called in zip(contents, groups, ids, strict=True))
    write_dataset(Corpus(chain.from_iterable(rows), sum(map(len, contents)), about), args)


def _names(entries: list[Any]) -> Iterator[str]:
    names = (entry.get("image_id") for entry in entries if isinstance(entry, dict))
    return (name for name in names if isinstance(name, str))


def _rows(entries: list[Any], path: Path, images: Path, split: str | None, called: Ids) -> Iterator[Row]:
    """A row for each image, and a rejected one for each bad caption."""
    for number, entry in enumerate(entries, 1):
        try:
            if not isinstance(entry, dict):
                raise DataError("the entry is not a JSON object")
            name, listed = check_name(entry.get("image_id")), entry.get("caption")
            if not isinstance(listed, list):
                raise DataError("the caption is not a list of texts")
        except DataError as error:
            yield Row(path.name, number, reason=str(error))
            continue
        key, captions = called(name), []
        for caption in listed:
            try:
                captions.append(check_caption(caption))
            except DataError as error:
                yield Row(path.name, number, key, reason=str(error))
        yield Row(path.name, number, key, images / name, tuple(captions), (), split)

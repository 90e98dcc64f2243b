"""COCO-CN: Chinese captions of images of MS COCO 2014.

    coco-cn --annotations coco-cn-version1805v1.1 --images coco2014 --output data/coco-cn

The images lie in the folders train2014 and val2014 of --images; val becomes dev.
"""

from collections.abc import Iterator
from pathlib import Path

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.caption_lines import read_captions
from src.data.prepare.common import add_common_arguments, write_dataset
from src.data.prepare.rows import Corpus, Row, check_folder, describe_inputs, read_lines

LISTS = {"train": "coco-cn_train.txt", "dev": "coco-cn_val.txt", "test": "coco-cn_test.txt"}
WRITTEN, TRANSLATED = "imageid.human-written-caption.txt", "imageid.manually-translated-caption.txt"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--annotations", type=user_path, required=True, help="the unpacked folder coco-cn-version1805v1.1"
    )
    parser.add_argument("--images", type=user_path, required=True, help="folder of train2014 and val2014")
    parser.add_argument(
        "--with-translated", action="store_true", help="also the manually translated captions, five a test image"
    )
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    check_folder(args.images, "--images")
    check_folder(args.annotations, "--annotations")
    texts = [args.annotations / name for name in (WRITTEN, TRANSLATED)[: 1 + args.with_translated]]
    lists = {split: args.annotations / name for split, name in LISTS.items()}
    about = describe_inputs("coco-cn", [*lists.values(), *texts], "--annotations")
    rows, listed = [], {}
    for split, path in lists.items():
        for number, name in read_lines(path):
            if isinstance(name, Row):
                rows.append(name)
            elif name.strip() in listed:
                rows.append(Row(path.name, number, name.strip(), reason="the image has been listed before"))
            else:
                listed[name.strip()] = (split, path.name, number)
    captions: dict[str, list[str]] = {name: [] for name in listed}
    for path in texts:
        rows += _take(path, captions)
    total = len(rows) + len(listed)
    write_dataset(Corpus(_rows(rows, listed, captions, args.images), total, about), args)


def _take(path: Path, captions: dict[str, list[str]]) -> Iterator[Row]:
    """Puts the file's captions to their images; rejected rows for those that are nobody's."""
    for line in read_captions(path):
        if isinstance(line, Row):
            yield line
        elif line[1] not in captions:
            yield Row(path.name, line[0], line[1], reason="the caption's image is in no list of images")
        else:
            captions[line[1]].append(line[2])


def _rows(
    rejected: list[Row], listed: dict[str, tuple[str, str, int]], captions: dict[str, list[str]], images: Path
) -> Iterator[Row]:
    yield from rejected
    for name, (split, file, number) in listed.items():
        try:
            folder = name.split("_")[1:2]  # COCO_val2014_000000043734
            if folder not in (["train2014"], ["val2014"]):
                raise DataError("the name is not that of an image of COCO 2014")
            if not captions[name]:
                raise DataError("the image has no caption")
            yield Row(file, number, name, images / folder[0] / f"{name}.jpg", tuple(captions[name]), (), split)
        except DataError as error:
            yield Row(file, number, name, reason=str(error))

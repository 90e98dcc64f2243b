"""Conceptual Captions: a TSV of caption and URL, and the downloaded images.

    cc3m --annotations Train_GCC-training.tsv --images cc3m/train --name "{row}.jpg" --split train --output data/cc3m

Images are named by row (--name, as in "{row:09d}.jpg"), or by a mapping file of lines row<TAB>path or URL<TAB>path.
A record's id is SPLIT/ROW, or SPLIT/FILE/ROW where a split has several files; ROW or FILE/ROW without --split.
"""

import functools
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare import translations
from src.data.prepare.common import add_common_arguments, add_file_arguments, check_one_each, file_groups, write_dataset
from src.data.prepare.ids import prefixes
from src.data.prepare.rows import Corpus, Row, check_caption, count_lines, describe_inputs, guard, read_lines
from src.data.prepare.translations import Translations

HEADER = "caption\turl"  # some downloaders write one

Finder = Callable[[int, str], str]  # row and URL → the image's path


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "TSV of caption and URL")
    parser.add_argument(
        "--name", default="{row}.jpg", metavar="PATTERN", help="path of a row's image (default: %(default)s)"
    )
    parser.add_argument(
        "--first-row", type=int, default=0, metavar="N", help="number of the first row in image names (default: 0)"
    )
    parser.add_argument(
        "--mapping",
        type=user_path,
        action="append",
        metavar="FILE",
        help="TSV of row or URL and path, instead of --name; one for each --annotations",
    )
    ids = "SPLIT/ROW, or SPLIT/FILE/ROW where a split has several files; ROW or FILE/ROW without --split"
    translations.add_argument(parser, ids)
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    about = describe_inputs("cc3m", [*args.annotations, *(args.mapping or ())], "--annotations or --mapping")
    if args.mapping:
        check_one_each(args, "annotations", "mapping", ", or none at all")
    chinese = Translations(args.translations, by_split=bool(args.split))
    rejected = list(chinese.rejected)
    finders = []
    for number in range(len(groups)):
        finders.append(_mapping(args.mapping[number], rejected) if args.mapping else _by_name(args.name))
    starts = prefixes([split for _, _, split in groups], args.annotations)
    rows = [
        _Captions(*group, start, find, args.first_row, chinese)
        for group, start, find in zip(groups, starts, finders, strict=True)
    ]
    about |= {"first_row": args.first_row, "name": None if args.mapping else args.name}
    total = len(rejected) + count_lines(args.annotations)
    write_dataset(Corpus(chain(rejected, *rows), total, about, english=True, unused=chinese.unused), args)


def _by_name(name: str) -> Finder:
    try:
        if name.format(row=1) == name.format(row=2):
            raise DataError(f"--name {name}: it must contain the row, as in {{row}}.jpg")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise DataError(f"--name {name}: only the row can be replaced in it, as in {{row:09d}}.jpg") from None
    return lambda row, url: name.format(row=row)


def _mapping(path: Path, rejected: list[Row]) -> Finder:
    """Reads a mapping file; its bad lines are added to the rejected rows."""
    places: dict[str, str] = {}
    for number, line in read_lines(path):
        key, tab, place = ("", "", "") if isinstance(line, Row) else line.partition("\t")
        if isinstance(line, Row):
            rejected.append(line)
        elif not tab or not key.strip() or not place.strip():
            rejected.append(Row(path.name, number, reason="the line is not row<TAB>path or URL<TAB>path"))
        elif _names_row(place) and not _names_row(key):
            reason = "the columns are the other way round: the line is not row<TAB>path or URL<TAB>path"
            rejected.append(Row(path.name, number, reason=reason))
        elif key.strip() in places:
            rejected.append(Row(path.name, number, key.strip(), reason="the row or URL has been mapped before"))
        else:
            places[key.strip()] = place.strip()

    def find(row: int, url: str) -> str:
        place = places.get(str(row)) or places.get(url)
        if place is None:
            raise DataError(f"the image is not in the mapping ({path.name})")
        return place

    return find


def _is_url(text: str) -> bool:
    return text.strip().lower().startswith(("http://", "https://"))


def _names_row(text: str) -> bool:
    """Whether a column of a mapping is a row or URL."""
    return text.strip().isdecimal() or _is_url(text)


class _Captions:
    """The rows of one file, one a line; their ids begin with ``start``."""

    def __init__(
        self, path: Path, images: Path, split: str | None, start: str, find: Finder, first: int, chinese: Translations
    ) -> None:
        self.path, self.images, self.split, self.start = path, images, split, start
        self.find, self.first, self.chinese = find, first, chinese

    def __iter__(self) -> Iterator[Row]:
        first = self.first - 1  # line numbers begin with 1
        for number, line in read_lines(self.path):
            if number == 1 and line == HEADER:
                first -= 1
            elif isinstance(line, Row):
                yield line
            else:
                key = f"{self.start}{first + number}"
                row = functools.partial(self._row, number, first + number, key, line)
                yield guard(row, self.path.name, number, key)

    def _row(self, number: int, row: int, key: str, line: str) -> Row:
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"the line is not caption<TAB>URL ({len(columns)} columns)")
        if _is_url(columns[0]) and not _is_url(columns[1]):
            raise DataError("the columns are the other way round: the line is URL<TAB>caption, not caption<TAB>URL")
        text, translated = self.chinese(key, check_caption(columns[0]))
        image = self.images / self.find(row, columns[1].strip())
        return Row(self.path.name, number, key, image, (text,), (), self.split, translated)

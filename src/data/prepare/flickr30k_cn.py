"""Flickr30k-CN: Chinese captions of Flickr30k, one file for each split.

    flickr30k-cn --annotations flickr30k_cn_train.txt --images flickr30k-images --split train \\
                 --annotations flickr30k_cn_test.txt --images flickr30k-images --split test --output data/flickr30k-cn

A line consists of the image's name (with or without .jpg and #number), white space and the caption. The files of the
first distribution, such as seg.flickr30kzhbbosontrain.caption.txt, separate words by spaces and need --segmented.
A record's id is the image's name, or SPLIT/NAME (SPLIT/FOLDER/NAME, FOLDER/NAME) where several folders have that name.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from src.cli import Arguments, CommandParser
from src.data.prepare.caption_lines import read_captions
from src.data.prepare.common import add_common_arguments, add_file_arguments, file_groups, write_dataset
from src.data.prepare.ids import Ids, ids_of
from src.data.prepare.rows import Corpus, Row, describe_inputs


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "captions, a line each")
    parser.add_argument("--segmented", action="store_true", help="the captions are segmented into words: join them")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    about = describe_inputs("flickr30k-cn", args.annotations, "--annotations")
    sources = [_Captions(*group, args.segmented) for group in groups]
    about["segmented"] = args.segmented
    _, folders, splits = zip(*groups, strict=True)
    ids = ids_of(splits, folders, [source.images for source in sources])
    rows = (source.rows(called) for source, called in zip(sources, ids, strict=True))
    write_dataset(Corpus(chain.from_iterable(rows), sum(map(len, sources)), about), args)


class _Captions:
    """The rows of one file: one for each image with all its captions, and a rejected one for each bad line."""

    def __init__(self, path: Path, images: Path, split: str | None, segmented: bool) -> None:
        self.file, self.folder, self.split = path.name, images, split
        self.rejected: list[Row] = []
        self.images: dict[str, tuple[int, list[str]]] = {}
        for line in read_captions(path, segmented):
            if isinstance(line, Row):
                self.rejected.append(line)
            else:
                self.images.setdefault(line[1], (line[0], []))[1].append(line[2])

    def __len__(self) -> int:
        return len(self.rejected) + len(self.images)

    def rows(self, called: Ids) -> Iterator[Row]:
        yield from self.rejected
        for name, (number, captions) in self.images.items():
            yield Row(self.file, number, called(name), self.folder / f"{name}.jpg", tuple(captions), (), self.split)

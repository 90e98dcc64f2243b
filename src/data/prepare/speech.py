"""Your own recorded speech, without images: files of transcripts, each with a folder of recordings.

    speech --transcripts train.tsv --audio recordings --split train --transcripts test.tsv --audio recordings \\
           --split test --output data/speech

A line is a recording's path in --audio, a tab and what is said: a/1.wav<TAB>今天下雨. WAV, FLAC, Ogg and MP3 are read.
A record's id is that path; with several folders, SPLIT/PATH, or SPLIT/FOLDER/PATH where a split has several of them, or
FOLDER/PATH where no --split is given.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from src.cli import Arguments, CommandParser, user_path
from src.data.prepare.common import add_common_arguments, add_split, check_one_each, splits_of, write_dataset
from src.data.prepare.ids import prefixes
from src.data.prepare.rows import Corpus, Row, check_folder, count_lines, describe_inputs, read_lines
from src.data.prepare.transcripts import spoken_row


def add_arguments(parser: CommandParser) -> None:
    listed = {"action": "append", "type": user_path, "required": True}
    parser.add_argument("--transcripts", **listed, metavar="FILE", help="path, tab, text; repeatable")
    parser.add_argument("--audio", **listed, metavar="DIR", help="folder that its paths start from")
    add_split(parser, "the recording's name")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    splits = splits_of(args, "transcripts")
    check_one_each(args, "transcripts", "audio")
    about = describe_inputs("speech", args.transcripts, "--transcripts")
    folders = [check_folder(folder, "--audio") for folder in args.audio]
    several = len({folder.resolve() for folder in folders}) > 1
    starts = prefixes(splits, folders) if several else [""] * len(folders)
    rows = map(_rows, args.transcripts, folders, splits, starts)
    write_dataset(Corpus(chain(*rows), count_lines(args.transcripts), about), args)


def _rows(file: Path, folder: Path, split: str | None, prefix: str) -> Iterator[Row]:
    for number, line in read_lines(file):
        if isinstance(line, Row):
            yield line
            continue
        name, tab, text = line.partition("\t")
        name = name.strip()
        if tab and name:
            yield spoken_row(file, number, prefix + name, text, folder / name, split)
        else:
            yield Row(file.name, number, name, reason="the line is not a path, a tab and a text")

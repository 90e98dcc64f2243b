"""LibriSpeech: read English, in the folders in which it is unpacked.

    librispeech --input LibriSpeech/train-clean-100 --split train --input LibriSpeech/dev-clean --split dev \\
                --input LibriSpeech/test-clean --split test --output data/librispeech

A chapter is a folder SPEAKER/CHAPTER of recordings (.flac) with SPEAKER-CHAPTER.trans.txt, a line for each: its name, a
space and the text in capitals.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.common import add_common_arguments, add_split, splits_of, write_dataset
from src.data.prepare.rows import Corpus, Row, check_folder, count_lines, read_lines
from src.data.prepare.transcripts import spoken_row


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--input", action="append", type=user_path, required=True, metavar="DIR", help="such as dev-clean; repeatable"
    )
    add_split(parser, "the recording's name")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    chapters: list[tuple[Path, str | None]] = []
    for folder, split in zip(args.input, splits_of(args, "input"), strict=True):
        files = sorted(check_folder(folder, "--input").rglob("*.trans.txt"))
        if not files:
            raise DataError(f"--input {folder}: no SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt in it")
        chapters += [(file, split) for file in files]
    files = [file for file, _ in chapters]
    sizes = [{"name": file.name, "bytes": file.stat().st_size} for file in files]
    rows = chain.from_iterable(_rows(*chapter) for chapter in chapters)
    write_dataset(Corpus(rows, count_lines(files), {"source": "librispeech", "input": sizes}), args)


def _rows(file: Path, split: str | None) -> Iterator[Row]:
    for number, line in read_lines(file):
        if isinstance(line, Row):
            yield line
        else:
            name, _, text = line.strip().partition(" ")
            yield spoken_row(file, number, name, text, file.parent / f"{name}.flac", split)

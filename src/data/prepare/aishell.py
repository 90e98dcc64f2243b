"""AISHELL-1: read Mandarin, in the folder in which it is unpacked, with the archives of its speakers unpacked too.

    aishell --input data_aishell --output data/aishell

transcript/aishell_transcript_v0.8.txt has a line for each recording: its name, a space and the text in words, which are
joined. Recordings are wav/SPLIT/SPEAKER/NAME.wav; those without a line are rejected, as lines without a recording are.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.caption_lines import join_words
from src.data.prepare.common import add_common_arguments, check_split, write_dataset
from src.data.prepare.rows import Corpus, Row, check_folder, describe_inputs, guard, read_lines
from src.data.prepare.transcripts import spoken_row


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--input", type=user_path, required=True, metavar="DIR", help="folder of wav and transcript")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    recordings = check_folder(args.input / "wav", "--input")
    files = sorted((args.input / "transcript").glob("aishell_transcript*.txt"))
    if len(files) != 1:
        raise DataError(f"--input {args.input}: expected one transcript/aishell_transcript….txt, found {len(files)}")
    about = describe_inputs("aishell", files, "--input")
    rows = _Utterances(files[0], recordings)
    write_dataset(Corpus(iter(rows), len(rows), about), args)


class _Utterances:
    """A row for each line, and a rejected one for each recording that no line transcribes."""

    def __init__(self, file: Path, recordings: Path) -> None:
        self.file, self.folder = file, recordings
        self.lines = list(read_lines(file))
        self.places: dict[str, Path] = {}
        for folder, _, names in os.walk(recordings):
            self.places |= {name.removesuffix(".wav"): Path(folder, name) for name in names if name.endswith(".wav")}
        told = {line.split(None, 1)[0] for _, line in self.lines if isinstance(line, str)}
        self.untold = sorted(self.places.keys() - told)

    def __len__(self) -> int:
        return len(self.lines) + len(self.untold)

    def __iter__(self) -> Iterator[Row]:
        for number, line in self.lines:
            if isinstance(line, Row):
                yield line
            else:
                name, _, text = line.strip().partition(" ")
                yield guard(lambda n=number, k=name, t=text: self._row(n, k, t), self.file.name, number, name)
        for name in self.untold:
            yield Row(self.places[name].name, 1, name, reason="the recording has no line among the transcripts")

    def _row(self, number: int, name: str, text: str) -> Row:
        place = self.places.get(name)
        if place is None:
            raise DataError(f"{self.folder}: no such recording ({name}.wav)")
        split = check_split(place.relative_to(self.folder).parts[0])
        return spoken_row(self.file, number, name, join_words(text), place, split)

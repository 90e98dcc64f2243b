"""Rows of a corpus: the metadata of records before their media are read, or the reason why a row is rejected."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.decoding import brief, parse_json, whole_text
from src.data.digests import digest
from src.data.errors import DataError
from src.data.record import Question


@dataclass(frozen=True)
class Clip:
    """A part of a recording, in seconds."""

    path: Path
    start: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One image with captions and audio clips, not yet read; or the reason why there is none."""

    file: str
    line: int  # of a text file; position in the list of a JSON file, from 1
    key: str = ""
    image: Path | None = None
    captions: tuple[str, ...] = ()
    audio: tuple[Path | Clip | None, ...] = ()
    split: str | None = None  # None: by hash of the image
    translated: int = 0  # captions that come from a translation file
    reason: str = ""
    regions: Path | None = None  # what a detector found in the image
    questions: tuple[Question, ...] = ()  # one for each caption, where these are questions

    def said(self) -> int:
        """A digest of what the row says: all but the place of the files, which may have moved."""
        files = [_without_folder(file) for file in (self.image, self.regions, *self.audio)]
        said = (self.key, files, self.captions, self.split, self.questions, self.reason)
        return digest(repr(said).encode("utf-8", "surrogatepass"))


def _without_folder(file: Path | Clip | None) -> object:
    if isinstance(file, Clip):
        return file.path.name, file.start, file.seconds
    return file and file.name


@dataclass(frozen=True)
class Corpus:
    """A corpus as its module reads it.

    Attributes:
        rows: read lazily.
        total: the number of rows, for the progress bar.
        about: where the data came from, for dataset.json; the same for the same input.
        english: captions that are not translated are English, and are counted.
        unused: called after all rows; the ids of translations that none of them used.
    """

    rows: Iterator[Row]
    total: int
    about: dict[str, Any] = field(default_factory=dict)
    english: bool = False
    unused: Callable[[], list[str]] = list


def guard(make: Callable[[], Row], file: str, line: int, key: str = "") -> Row:
    """The row that ``make`` returns, or a rejected one with the reason why there is none."""
    try:
        return make()
    except DataError as error:
        return Row(file, line, key, reason=str(error))
    except Exception as error:  # an entry may hold any value of JSON in any place
        return Row(file, line, key, reason=f"the row cannot be used ({brief(error)})")


def check_captions(captions: Any) -> tuple[str, ...]:
    """A caption or a list of them, as a tuple; raises DataError for anything else or for an empty one."""
    listed = [captions] if isinstance(captions, str) else captions
    if not isinstance(listed, list) or not all(isinstance(caption, str) for caption in listed):
        raise DataError("the captions are neither a text nor a list of texts")
    return tuple(check_caption(caption) for caption in listed)


def check_caption(caption: Any) -> str:
    """A caption without space around it and halves of emoji in it; raises DataError if nothing is left."""
    if not isinstance(caption, str):
        raise DataError("the caption is not a text")
    if not caption.strip():
        raise DataError("a caption is empty")
    return whole_text(caption.strip())


def check_question(kind: Any, answers: Any) -> Question:
    """Type and answers of a question; raises DataError where there is no answer, or it is not a text."""
    if not isinstance(kind, str) or not kind.strip():
        raise DataError("the type of the question is not a text")
    listed = [answers] if isinstance(answers, str) else answers
    if not isinstance(listed, list) or not listed or not all(isinstance(answer, str) for answer in listed):
        raise DataError("the answers are neither a text nor a list of texts")
    if not all(answer.strip() for answer in listed):
        raise DataError("an answer is empty")
    return Question(whole_text(kind.strip()), tuple(whole_text(answer.strip()) for answer in listed))


def check_name(name: Any) -> str:
    """The file name of an image; raises DataError for anything else."""
    if not isinstance(name, str) or not name.strip():
        raise DataError("the image has no file name")
    return name


def check_folder(path: Path, option: str) -> Path:
    """Raises DataError unless the folder that an option names exists."""
    if not os.path.isdir(path):
        raise DataError(f"{option} {path}: no such folder")
    return path


def describe_inputs(source: str, paths: list[Path], option: str) -> dict[str, Any]:
    """A corpus and its annotation files, for dataset.json; raises DataError if one is missing."""
    return {"source": source, "input": describe_files(paths, option)}


def describe_files(paths: list[Path], option: str) -> list[dict[str, Any]]:
    """Names and sizes of files that an option names; raises DataError if one is missing."""
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f"{option} {path}: no such file")
    return [{"name": path.name, "bytes": path.stat().st_size} for path in paths]


def read_json(path: Path) -> Any:
    """The content of a JSON file; :func:`describe_inputs` has seen that it is there."""
    return parse_json(path.read_bytes(), f"{path} is not JSON")


def count_lines(paths: list[Path]) -> int:
    """Lines that are not blank."""
    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(bool(line.decode("utf-8-sig", "replace").strip()) for line in file)
    return total


def read_lines(path: Path) -> Iterator[tuple[int, str | Row]]:
    """Numbers (from 1) and texts of the lines that are not blank; a rejected row for a line that is not UTF-8.

    A line of nothing but ideographic spaces is blank, too.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text: str | Row = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                text = Row(path.name, number, reason=f"not UTF-8 text ({error.reason} at byte {error.start})")
            if isinstance(text, Row) or text.strip():
                yield number, text


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | Row]]:
    """The JSON objects of a JSONL file, numbered from 1; a rejected row for any other line."""
    for number, line in read_lines(path):
        if isinstance(line, Row):
            yield number, line
            continue
        try:
            entry = parse_json(line, "malformed JSON")
        except DataError as error:
            yield number, Row(path.name, number, reason=str(error))
            continue
        if isinstance(entry, dict):
            yield number, entry
        else:
            yield number, Row(path.name, number, reason="the line is not a JSON object")

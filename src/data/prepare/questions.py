"""questions.jsonl: one question about an image a line, with the answers of one person or of several.

    {"image": "42.jpg", "question": "左边有几只猫？", "answers": ["两只", "2"], "type": "count", "split": "train"}
    {"image": "42.jpg", "question": "背景是什么颜色？", "answers": "红色", "audio": "42b.wav"}

Lines of one image and split that follow each other share a record. Its id is that of the first, or the image's path and
the number of the line. ``type`` groups the questions of an evaluation; ``audio`` is the spoken question. A null is the
same as no value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.common import add_common_arguments, check_split, write_dataset
from src.data.prepare.rows import (
    Corpus,
    Row,
    check_caption,
    check_folder,
    check_name,
    check_question,
    count_lines,
    describe_inputs,
    read_objects,
)
from src.data.record import Question

KEYS = ("id", "image", "question", "answers", "type", "audio", "split")
UNTYPED = "question"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--input", type=user_path, required=True, metavar="FILE", help="the questions, one JSON object a line"
    )
    parser.add_argument("--media", type=user_path, help="folder that the media paths start from (default: the file's)")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    about = describe_inputs("questions", [args.input], "--input")
    media = check_folder(args.media or args.input.parent, "--media")
    write_dataset(Corpus(read_rows(args.input, media), count_lines([args.input]), about), args)


@dataclass(frozen=True)
class _Line:
    """A question of a line, and of which record it is."""

    image: str
    split: str | None
    key: str
    text: str
    question: Question
    audio: Path | None


def read_rows(path: Path, media: Path) -> Iterator[Row]:
    """A row for the questions of each image; a line that cannot be used is a row of its own, with the reason."""
    group: list[tuple[int, _Line]] = []
    for number, entry in read_objects(path):
        try:
            line = entry if isinstance(entry, Row) else _parse(entry, media)
        except DataError as error:
            line = Row(path.name, number, _key(entry), reason=str(error))
        if isinstance(line, Row):
            yield line
            continue
        if group and (line.image, line.split) != (group[0][1].image, group[0][1].split):
            yield _row(path.name, media, group)
            group = []
        group.append((number, line))
    if group:
        yield _row(path.name, media, group)


def _row(file: str, media: Path, group: list[tuple[int, _Line]]) -> Row:
    (number, first), lines = group[0], [line for _, line in group]
    texts, questions = tuple(line.text for line in lines), tuple(line.question for line in lines)
    audio = tuple(line.audio for line in lines)
    image, key = media / first.image, first.key or f"{first.image}:{number}"
    return Row(file, number, key, image, texts, audio if any(audio) else (), first.split, questions=questions)


def _parse(entry: dict[str, Any], media: Path) -> _Line:
    entry = {name: value for name, value in entry.items() if value is not None}
    unknown = sorted(entry.keys() - set(KEYS))
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}: the keys are {', '.join(KEYS)}")
    image, audio, split = check_name(entry.get("image")), entry.get("audio"), entry.get("split")
    if audio is not None and not (isinstance(audio, str) and audio):
        raise DataError("the audio is not a path")
    try:
        text = check_caption(entry.get("question"))
    except DataError:
        raise DataError("the question is empty or not a text") from None
    question = check_question(entry.get("type", UNTYPED), entry.get("answers"))
    split = None if split is None else check_split(split)
    return _Line(image, split, _key(entry), text, question, None if audio is None else media / audio)


def _key(entry: dict[str, Any]) -> str:
    key = entry.get("id")
    return str(key) if isinstance(key, str | int) else ""

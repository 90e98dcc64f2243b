"""VQA v2: questions about MS COCO images with the answers of ten people, as they are downloaded.

    vqa2 --questions v2_OpenEnded_mscoco_train2014_questions.json \\
         --annotations v2_mscoco_train2014_annotations.json --images train2014 --split train \\
         --questions v2_OpenEnded_mscoco_val2014_questions.json \\
         --annotations v2_mscoco_val2014_annotations.json --images val2014 --split test --output data/vqa2

All questions of an image are one record. Of the files' content what is stored is held in memory: about 1 GB for train.
"""

import functools
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.common import add_common_arguments, add_file_arguments, check_one_each, file_groups, write_dataset
from src.data.prepare.rows import Corpus, Row, check_caption, check_question, describe_inputs, guard, read_json
from src.data.record import Question

TYPES = ("answer_type", "question_type")


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "annotations JSON")
    parser.add_argument(
        "--questions", type=user_path, action="append", required=True, metavar="FILE", help="its questions JSON"
    )
    parser.add_argument(
        "--types",
        choices=TYPES,
        default=TYPES[0],
        help="by what an evaluation groups questions: three types of answers (the default), or how questions begin",
    )
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    check_one_each(args, "annotations", "questions")
    about = describe_inputs("vqa2", [*args.questions, *args.annotations], "--questions, --annotations")
    sources = [
        _Questions(questions, *group, args.types) for questions, group in zip(args.questions, groups, strict=True)
    ]
    write_dataset(Corpus(chain(*sources), sum(map(len, sources)), about | {"types": args.types}), args)


class _Questions:
    """The rows of a pair of files: one for each image with its questions, and a rejected one for each bad entry."""

    def __init__(self, questions: Path, annotations: Path, images: Path, split: str | None, types: str) -> None:
        self.questions_file, self.file, self.folder, self.split = questions.name, annotations.name, images, split
        self.types, self.rejected = types, []
        content = read_json(questions)
        entries, subtype = _listed(content, "questions", questions), content.get("data_subtype")
        if not isinstance(subtype, str):
            raise DataError(f"{questions} is not in the format of VQA v2: it has no data_subtype")
        self.subtype = subtype
        self.texts: dict[int, tuple[int, str]] = {}  # question_id → image_id and question
        for number, entry in enumerate(entries, 1):
            self._take(self._take_question, number, entry, self.questions_file)
        del content, entries
        self.images: dict[int, list[tuple[int, str, Question]]] = {}  # image_id → place, question and its answers
        for number, entry in enumerate(_listed(read_json(annotations), "annotations", annotations), 1):
            self._take(self._take_answers, number, entry, self.file)
        for key in self.texts:
            self.rejected.append(Row(self.questions_file, 0, str(key), reason="the question has no annotation"))

    def __len__(self) -> int:
        return len(self.rejected) + len(self.images)

    def __iter__(self) -> Iterator[Row]:
        yield from self.rejected
        for image, asked in self.images.items():
            yield guard(functools.partial(self._row, image, asked), self.file, asked[0][0], str(image))

    def _take(self, take: Any, number: int, entry: Any, file: str) -> None:
        """Hands an entry over; where it cannot be used, a rejected row has the reason."""
        key = entry.get("question_id") if isinstance(entry, dict) else None
        try:
            if not _whole(key):
                raise DataError("the entry has no question_id")
            take(number, entry, key)
        except DataError as error:
            self.rejected.append(Row(file, number, "" if key is None else str(key), reason=str(error)))

    def _take_question(self, number: int, entry: dict[str, Any], key: int) -> None:
        if not _whole(entry.get("image_id")):
            raise DataError("the question has no image_id")
        if key in self.texts:
            raise DataError(f"question {key} is listed before")
        try:
            self.texts[key] = entry["image_id"], check_caption(entry.get("question"))
        except DataError:
            raise DataError("the question is empty or not a text") from None

    def _take_answers(self, number: int, entry: dict[str, Any], key: int) -> None:
        if key not in self.texts:
            raise DataError(f"question {key} is not in {self.questions_file}, or was annotated before")
        image, text = self.texts.pop(key)
        given = entry.get("answers")
        if not isinstance(given, list) or not all(isinstance(answer, dict) for answer in given):
            raise DataError("the answers are not a list of objects")
        question = check_question(entry.get(self.types), [answer.get("answer") for answer in given])
        # the same words come a million times
        question = Question(sys.intern(question.kind), tuple(map(sys.intern, question.answers)))
        self.images.setdefault(image, []).append((number, text, question))

    def _row(self, image: int, asked: list[tuple[int, str, Question]]) -> Row:
        name = f"COCO_{self.subtype}_{image:012}"
        numbers, texts, questions = zip(*asked, strict=True)
        path = self.folder / f"{name}.jpg"
        return Row(self.file, numbers[0], name, path, texts, (), self.split, questions=questions)


def _listed(content: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise DataError(f"{path} is not in the format of VQA v2: it has no list of {name}")
    return content[name]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

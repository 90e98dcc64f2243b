"""Batches of questions about images, with their answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from src.config import Config, ModelConfig
from src.data import masking
from src.data.answers import AnswerList
from src.data.coverage import MEASURED, Coverage, Given, Lengths, Texts
from src.data.errors import DataError
from src.data.order import evenly_apart
from src.data.pipeline import Batch, Loader, Sample
from src.data.record import Question
from src.data.schema import ANSWER_SLOTS, Field, answer_fields
from src.data.store import Dataset


@dataclass(frozen=True)
class QuestionCoverage(Coverage):
    """What was found in the samples of one dataset's split, which are questions."""

    known: int  # of the questions, an answer is in model.answers; all where there is no list
    written: Coverage | None  # of their answers, where the text decoder learns to write these

    def require_known(self, most: float) -> None:
        """Raises DataError also if no question counts for the loss, or for the answers' tokens."""
        super().require_known(most)
        if self.written is not None:
            self.written.require_known(most)
        if self.lacking == self.questions:
            raise DataError(f"{self.name}: none of the questions has what {self.given.key} names")
        if not self.known:
            raise DataError(f"{self.name}: no question has an answer in model.answers: {self._hint}")

    def notes(self, model: ModelConfig, unknown: float = 0.0) -> list[str]:
        found = super().notes(model, unknown)
        if self.known < self.questions:
            share = 1 - self.known / self.questions
            found.append(f"{self.name}: {share:.1%} of the questions have no answer in model.answers: {self._hint}")
        return found + ([] if self.written is None else self.written.notes(model, unknown))

    @property
    def questions(self) -> int:
        """Its texts."""
        return len(self.texts.values)

    @property
    def _hint(self) -> str:
        return f"python tools/build_answers.py --output answers.txt {self.folder} makes a list"


class QuestionLoader(Loader):
    """A loader whose samples' texts are questions; see :func:`src.data.schema.answer_fields` for what it adds.

    What is given and which answer is generated are sampled from (seed, epoch, sample). A sample without answers has
    none in its row, and counts for nothing.

    Args:
        config, split, options: as of :class:`src.data.pipeline.Loader`.

    Raises:
        DataError: a source holds captions and no questions, or there is no such file of answers.
    """

    def __init__(self, config: Config, split: str, *ranks: int, **options: Any) -> None:
        super().__init__(config, split, *ranks, **options)
        for dataset in self.sources.datasets:
            first = next(filter(None, dataset.read_good(range(dataset.records))), None)
            if first is not None and not first.questions:
                raise DataError(
                    f"{dataset.folder}: split {split!r} holds no questions with answers, which task={config.task} "
                    "reads: prepare it from vqa2, questions or demo --questions"
                )
        self.answers = AnswerList(config.model.answers) if config.model.answers else None

    def coverage(self) -> list[Coverage]:
        return list(map(self._cover, self.sources.datasets, super().coverage()))

    @property
    def given(self) -> Given:
        """A question that is neither read nor heard, or lacks the image that it should have, teaches nothing."""
        return Given("objectives.answer.given", self.config.objectives.answer.given, whole=True)

    def _cover(self, dataset: Dataset, found: Coverage) -> Coverage:
        """Adds what of the same samples' answers the model knows."""
        records, captions, _ = dataset.samples[evenly_apart(len(dataset), MEASURED)].T
        known, texts = 0, Texts(self.tokenizer)
        writes = self.config.objectives.answer.head == "generate"
        for record, caption in zip(dataset.read_good(records), captions.tolist(), strict=True):
            if record is None or caption < 0:
                continue
            answers = record.questions[caption].answers
            known += self.answers is None or self.answers.targets(answers, ANSWER_SLOTS)[1].any()
            for answer in answers if writes else ():
                texts.add(answer)
        written = None
        if writes:
            nothing = Lengths(np.zeros(0, np.int64), 0)
            counts = texts.counts(self.config.model)
            written = Coverage(f"answers of {found.name}", found.whole, found.folder, *counts, nothing, 0, None, 0)
        return QuestionCoverage(**vars(found), known=int(known), written=written)

    def fields(self, size: int) -> dict[str, Field]:
        return super().fields(size) | answer_fields(self.config.model)

    def _fill(self, batch: Batch, augment: bool, row: int, sample: Sample) -> tuple[str, str]:
        found = super()._fill(batch, augment, row, sample)
        question = question_of(sample)
        if question is None:
            return found
        rng = masking.sample_rng(self.config.seed, sample.epoch, sample.number, masking.ANSWER)
        given, presence = self.given, batch["presence"][row]
        batch["answer_given"][row] = masking.sample_given(given.choices, presence, 0.0, rng, given.whole)
        answer = question.answers[rng.integers(len(question.answers))]
        tokens = self.tokenizer.encode(answer, self.config.model.text.max_len)
        batch["answer_ids"][row], batch["answer_mask"][row] = tokens
        if self.answers is not None:
            slots = self.answers.targets(question.answers, ANSWER_SLOTS)
            batch["answer_classes"][row], batch["answer_values"][row] = slots
        return found


def question_of(sample: Sample) -> Question | None:
    """What makes the text of a sample a question; None where it is a caption."""
    questions = sample.record.questions
    return questions[sample.caption] if questions and sample.caption >= 0 else None

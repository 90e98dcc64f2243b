"""Batches of questions about images, with their answers."""

from typing import Any

from src.config import Config
from src.data import masking
from src.data.answers import AnswerList
from src.data.errors import DataError
from src.data.pipeline import Batch, Loader, Sample
from src.data.record import Question
from src.data.schema import ANSWER_SLOTS, Field, answer_fields


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
            if not next(dataset.read([0])).questions:
                raise DataError(
                    f"{dataset.folder}: split {split!r} holds no questions with answers, which task={config.task} "
                    "reads: prepare it from vqa2, questions or demo --questions"
                )
        self.answers = AnswerList(config.model.answers) if config.model.answers else None

    def fields(self, size: int) -> dict[str, Field]:
        return super().fields(size) | answer_fields(self.config.model)

    def _fill(self, batch: Batch, augment: bool, row: int, sample: Sample) -> tuple[str, str]:
        found = super()._fill(batch, augment, row, sample)
        question = question_of(sample)
        if question is None:
            return found
        rng = masking.sample_rng(self.config.seed, sample.epoch, sample.number, masking.ANSWER)
        given, presence = self.config.objectives.answer.given, batch["presence"][row]
        batch["answer_given"][row] = masking.sample_given(given, presence, 0.0, rng)
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

"""Visual question answering on a split: the accuracy of VQA v2 for each way in which a question is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.config import EvalConfig
from src.data.order import evenly_apart
from src.data.pipeline import Batch, Evaluated
from src.data.record import Question
from src.data.schema import AUDIO, MODALITIES, TEXT
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.inference.encode import Items
from src.metrics.vqa import VqaAccuracy
from src.models.batches import progress
from src.sharing import divide

EXAMPLES = 12  # answers that metrics.json shows, from all over the split


class VqaEvaluator(Evaluator):
    """Answers questions batch by batch, so that memory does not grow with the split."""

    name = "vqa"

    def needs(self, settings: EvalConfig) -> Needs | None:
        return Needs()

    def run(self, split: Split) -> dict[str, Any]:
        """``vqa``: by what is given (text+image, image+audio, …), see :meth:`VqaAccuracy.result`, with ``examples``."""
        loader, settings = split.loader, split.settings
        count = min(len(loader.dataset), settings.vqa.max_items or len(loader.dataset))
        shown = set(evenly_apart(count, EXAMPLES).tolist())
        choices = {
            choice: frozenset(map(MODALITIES.index, choice.split("+")))
            for choice in dict.fromkeys(self.engine.config.objectives.answer.given)
        }
        scores = {choice: VqaAccuracy() for choice in choices}
        examples: dict[str, list[dict[str, Any]]] = {choice: [] for choice in choices}

        def ask(evaluated: Evaluated) -> list[tuple[str, Question, str, int, tuple[str, str]]]:
            """How a question was given, the question, the answer, the sample's number, its key and text."""
            batch, n, names = evaluated
            numbers, items = batch["sample_id"][:n], {}
            asked, answers = _questions(split, numbers), []
            answered = np.array([question is not None for question in asked])
            for choice, given in choices.items():
                rows = np.flatnonzero(answered & batch["presence"][:n, sorted(given)].all(1))
                for row, answer in zip(rows.tolist(), self._answer(batch, rows, given, items), strict=True):
                    answers.append((choice, asked[row], answer, int(numbers[row]), names[row]))
            return answers

        batches = progress(loader.evaluation(settings.batch_size, count), "questions", -(-count // settings.batch_size))
        for answers in divide(batches, ask):
            for choice, question, answer, number, (key, text) in answers:
                worth = scores[choice].add(question.kind, answer, question.answers)
                if number in shown:
                    said = {"question": text, "answer": answer, "answers": question.answers}
                    examples[choice].append({"key": key, **said, "worth": worth})
        found = {choice: score.result() for choice, score in scores.items()}
        return {"vqa": {choice: {**result, "examples": examples[choice]} for choice, result in found.items() if result}}

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {logged_name(choice): found["accuracy"] for choice, found in metrics.get("vqa", {}).items()}

    def _answer(self, batch: Batch, rows: np.ndarray, given: frozenset[int], items: dict[int, Items]) -> list[str]:
        """Answers of some rows of a batch, whose ``items`` of a modality are encoded where it is first needed."""
        if not len(rows):
            return []
        for which in given - items.keys():
            items[which] = self._encode(batch, which)
        return self.engine.answerer.answer({which: items[which].take(rows) for which in given})

    def _encode(self, batch: Batch, which: int) -> Items:
        """All rows of a batch, so that one graph does; what a row lacks is zeros."""
        encoder = self.engine.encoder
        if which == TEXT:
            return encoder.text(batch["text_ids"], batch["text_mask"])
        if which == AUDIO:
            return encoder.audio(batch["audio"], batch["audio_frames"])
        return encoder.image(*(batch[name] for name in self.engine.model.image_fields))


def logged_name(choice: str) -> str:
    """What training logs the accuracy of a choice of objectives.answer.given as."""
    return f"vqa_{choice.replace('+', '_')}"


def _questions(split: Split, numbers: np.ndarray) -> list[Question | None]:
    """The questions of samples of the split; None for a caption."""
    records, captions = split.loader.dataset.samples[numbers, :2].T
    found = split.loader.dataset.read(records)
    pairs = zip(found, captions.tolist(), strict=True)
    return [record.questions[caption] if record.questions and caption >= 0 else None for record, caption in pairs]

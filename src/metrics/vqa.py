"""The accuracy of answers to questions about images, as VQA v2 defines it, beside the best constant answers."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from src.data.answers import normalise, scores


@dataclass
class _Kind:
    """The questions of one type so far."""

    questions: int = 0
    worth: float = 0.0  # of the predictions, added up
    answers: Counter[str] = field(default_factory=Counter)  # what each answer would have been worth, added up

    def majority(self) -> tuple[str, float]:
        """The answer that is worth most if every question gets it, and what; of equal ones the first by alphabet."""
        return min(self.answers.items(), key=lambda pair: (-pair[1], pair[0]))


class VqaAccuracy:
    """Adds up answers one by one; it keeps no question, and each different answer once."""

    def __init__(self) -> None:
        self.kinds: defaultdict[str, _Kind] = defaultdict(_Kind)

    def add(self, kind: str, prediction: str, answers: Sequence[str]) -> float:
        """One question: its type, what was predicted, what people answered. Returns what the prediction is worth."""
        values, state = scores(answers), self.kinds[kind]
        found = values.get(normalise(prediction), 0.0)
        state.questions += 1
        state.worth += found
        state.answers.update(values)
        return found

    def result(self) -> dict[str, Any]:
        """``accuracy``, ``majority`` (every question gets the best constant answer of its type), ``questions``, and
        the same by type with that ``answer``; empty without a question."""
        if not self.kinds:
            return {}
        types = {}
        for kind, state in sorted(self.kinds.items()):
            answer, worth = state.majority()
            types[kind] = {
                "accuracy": state.worth / state.questions,
                "majority": worth / state.questions,
                "answer": answer,
                "questions": state.questions,
            }
        count = sum(found["questions"] for found in types.values())
        means = {
            name: sum(found[name] * found["questions"] for found in types.values()) / count
            for name in ("accuracy", "majority")
        }
        return {**means, "questions": count, "types": types}

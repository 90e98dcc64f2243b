"""A metric of the demo's captions: which facts of a scene a generated text states correctly; and a scene's objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.demo.captions import FACT_KINDS, facts_right, parse


@dataclass(frozen=True)
class FactMetric:
    """Compares the facts of generated texts with those of their references.

    Args:
        world: name of the demo's world.
    """

    world: str

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "FactMetric | None":
        """The metric of a corpus that dataset.json describes as a world of the demo's; None for any other."""
        return cls(about["world"]) if about.get("source") == "demo" else None

    def objects(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Names of the kinds of object in a scene, by its captions; none if they are no captions of the world."""
        known = [facts for facts in (parse(text, self.world) for text in captions) if facts is not None]
        return tuple(sorted({item.name for facts in known for item in facts.items}))

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        """``facts_right``, the share of predictions that state a reference's facts and no others; ``facts`` by kind.

        Items whose references are no captions of the world do not count; if there are no others, the result is empty.
        """
        rows = [self.compare(text, group) for text, group in zip(predictions, references, strict=True)]
        rows = [row for row in rows if row]
        if not rows:
            return {}
        kinds = {kind: sum(row[kind] for row in rows) / len(rows) for kind in FACT_KINDS}
        return {"facts_right": sum(all(row.values()) for row in rows) / len(rows), "facts": kinds}

    def compare(self, prediction: str, references: Sequence[str]) -> dict[str, bool]:
        """Which kinds of facts are right, by the best reference; empty if no reference is a caption of the world."""
        said = parse(prediction, self.world)
        known = [facts for facts in (parse(text, self.world) for text in references) if facts is not None]
        return max((facts_right(said, facts) for facts in known), key=lambda row: sum(row.values()), default={})

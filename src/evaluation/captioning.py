"""Captions of pictures and transcripts of sounds, measured against what the dataset says."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from src.data.demo import captions as demo
from src.evaluation import captions


def caption_figures(predictions: list[str], references: list[list[str]], world: str | None) -> dict[str, Any]:
    """Metrics on words with those on characters inside, and the share of facts right where a demo world was drawn.

    Args:
        predictions: one a picture.
        references: the captions of each picture.
        world: name of the demo's world, or None.
    """
    scored = captions.score(predictions, references)
    figures: dict[str, Any] = {}
    if world:
        figures.update(fact_figures(predictions, references, world))
    return {**figures, **scored["words"], "characters": scored["characters"], "pictures": len(predictions)}


def transcript_figures(predictions: list[str], references: list[str], world: str | None) -> dict[str, Any]:
    """Characters and words (jieba's) wrong as shares of those said, sentences right, and the share of facts right.

    Punctuation does not count. A sentence cut into other words than its reference has more words wrong than characters.
    """
    wrong, said = _errors(predictions, references, captions.characters)
    wrong_words, said_words = _errors(predictions, references, captions.words)
    figures: dict[str, Any] = {
        "character_error_rate": sum(wrong) / max(1, said),
        "word_error_rate": sum(wrong_words) / max(1, said_words),
        "sentences_right": sum(count == 0 for count in wrong) / len(wrong),
    }
    if world:
        figures.update(fact_figures(predictions, [[text] for text in references], world))
    return {**figures, "sounds": len(predictions)}


def _errors(
    predictions: list[str], references: list[str], tokenise: Callable[[str], list[str]]
) -> tuple[list[int], int]:
    """Edits of every prediction, and the tokens of all references."""
    pairs = [(tokenise(text), tokenise(reference)) for text, reference in zip(predictions, references, strict=True)]
    return [edit_distance(*pair) for pair in pairs], sum(len(reference) for _, reference in pairs)


def fact_figures(predictions: list[str], references: list[list[str]], world: str) -> dict[str, Any]:
    """``facts_right``, the share of predictions that state a reference's facts and no others, and each kind's share.

    Items without a reference that is a sentence of the world do not count.
    """
    rows = [facts_of(prediction, group, world) for prediction, group in zip(predictions, references, strict=True)]
    rows = [row for row in rows if row]
    if not rows:
        return {}
    kinds = {kind: sum(row[kind] for row in rows) / len(rows) for kind in demo.FACT_KINDS}
    return {"facts_right": sum(all(row.values()) for row in rows) / len(rows), "facts": kinds}


def facts_of(prediction: str, references: Sequence[str], world: str) -> dict[str, bool]:
    """Which kinds of facts are right by the reference that fits best; empty where no reference states any."""
    said = demo.parse(prediction, world)
    known = [facts for facts in (demo.parse(text, world) for text in references) if facts is not None]
    return max((demo.facts_right(said, facts) for facts in known), key=lambda row: sum(row.values()), default={})


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    row = np.arange(len(second) + 1)
    for number, item in enumerate(first, 1):
        differs = np.array([item != other for other in second], np.int64)
        best = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + differs)])
        # an insertion costs one a step: the best of all starts to the left, in one pass
        row = np.minimum.accumulate(best - np.arange(len(best))) + np.arange(len(best))
    return int(row[-1])

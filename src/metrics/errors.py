"""Word and character error rates of transcripts."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from src.metrics.captions import characters, has_words, words

APOSTROPHES = "'\u2019"


def error_rates(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Character and word error rate (:func:`spoken_words`) and the share of sentences without an error.

    Case, white space and punctuation do not count. A Chinese sentence cut into other words than its reference has more
    wrong words than characters.
    """
    wrong, said = _errors(predictions, references, characters)
    wrong_words, said_words = _errors(predictions, references, spoken_words)
    return {
        "character_error_rate": sum(wrong) / max(1, said),
        "word_error_rate": sum(wrong_words) / max(1, said_words),
        "sentences_right": sum(count == 0 for count in wrong) / len(wrong),
    }


def spoken_words(text: str) -> list[str]:
    """Words, lower case: by jieba where there is Chinese, otherwise what stands between spaces, as DON'T does."""
    if any(unicodedata.east_asian_width(character) in "WF" for character in text):
        return words(text)
    plain = "".join("'" if character in APOSTROPHES else character for character in text.lower())
    kept = (
        "".join(character for character in word if character == "'" or has_words(character)) for word in plain.split()
    )
    return [word for word in kept if word.strip("'")]


def _errors(
    predictions: list[str], references: list[str], tokenise: Callable[[str], list[str]]
) -> tuple[list[int], int]:
    """Edits of every prediction, and the tokens of all references."""
    pairs = [(tokenise(text), tokenise(reference)) for text, reference in zip(predictions, references, strict=True)]
    return [edit_distance(*pair) for pair in pairs], sum(len(reference) for _, reference in pairs)


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    row = np.arange(len(second) + 1)
    for number, item in enumerate(first, 1):
        differs = np.array([item != other for other in second], np.int64)
        best = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + differs)])
        # an insertion costs one a step: the best of all starts to the left, in one pass
        row = np.minimum.accumulate(best - np.arange(len(best))) + np.arange(len(best))
    return int(row[-1])

"""Caption metrics: corpus BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, by words and by characters.

The results equal those of the COCO caption evaluation (pycocoevalcap) on the same tokens. As there, punctuation does
not count and case is ignored. Chinese has no spaces: ``words`` are those of jieba; ``characters`` do not depend on a
segmenter and are the results to compare across projects.
"""

import math
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from src.data.segmenter import segmenter

Tokens = Sequence[str]
NGrams = Counter[tuple[str, ...]]

MAX_N = 4
ROUGE_BETA = 1.2  # weight of recall against precision
CIDER_SIGMA = 6.0  # width of the Gaussian penalty on a difference in length
TINY, SMALL = 1e-15, 1e-9  # the reference implementation's guards against empty counts


class Weighted(NamedTuple):
    """A caption as tf-idf weights with their norm for each n; its length is in bigrams, as pycocoevalcap has it."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    bigrams: int


def score(predictions: list[str], references: list[list[str]]) -> dict[str, dict[str, float]]:
    """All metrics of predictions, each against the references of its image.

    Returns: {"words": {"bleu1": …, "bleu4": …, "rouge_l": …, "cider_d": …}, "characters": {…}}. CIDEr-D weighs n-grams
    by how few images have them, so it is 0 for a single image and comparable only on the same set of images.
    """
    if not predictions:
        raise ValueError("no captions to score")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} captions but references of {len(references)} images")
    return {
        "words": _score_tokens(predictions, references, words),
        "characters": _score_tokens(predictions, references, characters),
    }


def words(text: str) -> list[str]:
    """Words by jieba, lower case, without white space and punctuation."""
    return [word for word in segmenter().lcut(text.lower()) if not all(map(_is_ignored, word))]


def characters(text: str) -> list[str]:
    """Characters, lower case, without white space and punctuation."""
    return [character for character in text.lower() if not _is_ignored(character)]


def has_words(text: str) -> bool:
    """Whether anything is left of a text without white space and punctuation: nothing else can be compared."""
    return not all(map(_is_ignored, text))


def bleu(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """BLEU-1 to BLEU-4 over the whole corpus (Papineni et al. 2002); of the references' lengths the closest counts.

    Where no n-gram is right, it is 0; pycocoevalcap's guard against empty counts leaves a small number there.
    """
    matched, total = [0] * MAX_N, [0] * MAX_N
    length = reference_length = 0
    for prediction, group in zip(predictions, references, strict=True):
        limits: NGrams = Counter()
        for reference in group:
            limits |= _ngrams(reference)  # the largest count in any one reference
        for ngram, count in _ngrams(prediction).items():
            matched[len(ngram) - 1] += min(count, limits[ngram])
        for n in range(MAX_N):
            total[n] += max(0, len(prediction) - n)
        length += len(prediction)
        reference_length += min((abs(len(reference) - len(prediction)), len(reference)) for reference in group)[1]
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (matched[n] + TINY) / (total[n] + SMALL) if matched[n] else 0.0
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean ROUGE-L (Lin 2004): F-measure of the longest common subsequence, best precision and best recall."""
    total = 0.0
    for prediction, group in zip(predictions, references, strict=True):
        common = [_common_subsequence(prediction, reference) for reference in group]
        if not any(common):
            continue
        precision = max(common) / len(prediction)
        recall = max(length / len(reference) for length, reference in zip(common, group, strict=True) if length)
        total += (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)
    return total / len(predictions)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015), times 10 as usual.

    Args:
        references: the captions of every image, as tokens; how few images have an n-gram is its weight.
    """

    def __init__(self, references: Iterable[Sequence[Tokens]]) -> None:
        # 64-bit digests: of the 16 million n-grams of COCO's images two are alike with a chance of 1 in 100,000
        digests, images = array("q"), 0
        for group in references:
            digests.extend({hash(ngram) for tokens in group for ngram in _ngrams(tokens)})
            images += 1
        found, counts = np.unique(np.frombuffer(digests, np.int64), return_counts=True)
        shared = counts > 1  # an n-gram of one image weighs as much as one of none
        self._digests, self._images = found[shared], counts[shared].astype(np.int32)
        self.log_images = math.log(max(1, images))

    def weigh(self, tokens: Tokens) -> Weighted:
        counts = _ngrams(tokens)
        return _weigh(counts, self._documents(counts), self.log_images)

    def _documents(self, ngrams: Iterable[tuple[str, ...]]) -> list[int]:
        """How many images have each of the n-grams; 1 for those that one has or none."""
        if not len(self._digests):
            return [1 for _ in ngrams]
        wanted = np.array([hash(ngram) for ngram in ngrams], np.int64)
        places = np.minimum(np.searchsorted(self._digests, wanted), len(self._digests) - 1)
        return np.where(self._digests[places] == wanted, self._images[places], 1).tolist()

    def score(self, prediction: Weighted, group: Sequence[Weighted]) -> float:
        """Of a caption against the references of its image."""
        return 10 * sum(_similarity(prediction, reference) for reference in group) / len(group)


def cider_d(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean CIDEr-D; document frequencies are those of the references."""
    cider = CiderD(references)
    pairs = zip(predictions, references, strict=True)
    return sum(cider.score(cider.weigh(text), list(map(cider.weigh, group))) for text, group in pairs) / len(
        predictions
    )


def _score_tokens(
    predictions: list[str], references: list[list[str]], tokenise: Callable[[str], list[str]]
) -> dict[str, float]:
    hypotheses = [tokenise(text) for text in predictions]
    groups = [[tokenise(text) for text in texts] for texts in references]
    for row, (texts, group) in enumerate(zip(references, groups, strict=True)):
        if not group:
            raise ValueError(f"image {row} has no reference caption")
        if not all(group):
            raise ValueError(f"image {row}: reference caption {texts[group.index([])]!r} has no words")
    scores = {f"bleu{n}": value for n, value in enumerate(bleu(hypotheses, groups), 1)}
    return {**scores, "rouge_l": rouge_l(hypotheses, groups), "cider_d": cider_d(hypotheses, groups)}


def _is_ignored(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def _ngrams(tokens: Tokens) -> NGrams:
    """Counts of the n-grams of 1 to MAX_N tokens."""
    return Counter(tuple(tokens[at : at + n]) for n in range(1, MAX_N + 1) for at in range(len(tokens) - n + 1))


def _common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, one row of the table held in the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for position, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << position
    full = row = (1 << len(first)) - 1
    for token in second:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(first) - row.bit_count()


def _weigh(counts: NGrams, documents: Sequence[int], log_images: float) -> Weighted:
    """``documents``: how many images have each of the n-grams."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
    for (ngram, count), images in zip(counts.items(), documents, strict=True):
        weights[len(ngram) - 1][ngram] = count * (log_images - math.log(images))
    norms = [math.sqrt(sum(weight * weight for weight in group.values())) for group in weights]
    return Weighted(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(ours: Weighted, theirs: Weighted) -> float:
    """Clipped cosine of a caption with a reference, mean over n, with the penalty on a difference in length."""
    total = 0.0
    for n in range(MAX_N):
        norm = ours.norms[n] * theirs.norms[n]
        if norm:
            against = theirs.weights[n]
            shared = ((weight, against[ngram]) for ngram, weight in ours.weights[n].items() if ngram in against)
            total += sum(min(mine, other) * other for mine, other in shared) / norm
    difference = ours.bigrams - theirs.bigrams
    return total / MAX_N * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))

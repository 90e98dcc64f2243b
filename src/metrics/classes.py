"""Classification: the right class among the best k, recall of every class, confusion, average precision.

Letters: ``N`` items, ``C`` classes.
"""

import numpy as np


def ranks(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Rank of the right class of each item, int64 [N], 1 the best; of equal scores the earlier class comes first.

    Args:
        scores: [N, C].
        truths: int64 [N].
    """
    own = scores[np.arange(len(truths)), truths][:, None]
    earlier = np.arange(scores.shape[1]) < truths[:, None]
    return 1 + (scores > own).sum(1) + ((scores == own) & earlier).sum(1)


def confusion(answers: np.ndarray, truths: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was answered for each, int64 [C, C]: [truth][answer]."""
    return np.bincount(truths * classes + answers, minlength=classes**2).reshape(classes, classes)


def top_k(found: np.ndarray, classes: int, k: int) -> dict[str, float]:
    """The share of ranks [N] up to k, and what guessing reaches: k of the classes, all alike."""
    return {f"top_{k}": float((found <= k).mean()), f"chance_top_{k}": min(k, classes) / classes}


def average_precision(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [C]; NaN where no item is of the class.

    Σ over thresholds of precision · gain of recall, without interpolation. Items of equal scores pass a threshold
    together: scores that are all equal reach the share of the class, which is what chance is.

    Args:
        scores: [N, C].
        positives: [N, C], true where an item is of a class.
    """
    return np.array([_average_precision(*columns) for columns in zip(scores.T, positives.T != 0, strict=True)])


def _average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    if not positives.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last item of each threshold
    hits = np.cumsum(positives[order])[ends]
    return float((hits / (ends + 1) * np.diff(hits, prepend=0)).sum() / hits[-1])

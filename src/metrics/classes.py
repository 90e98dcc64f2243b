"""Classification: the right class among the best k, recall of every class, confusion.

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

"""How embeddings lie in their space: whether they have collapsed to one place or to few dimensions."""

import numpy as np


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean of the cosines of all pairs of different rows; 1 where all are alike, about 0 where they are spread evenly.

    Args:
        vectors: float [n, E] of unit length, n of 2 or more.
    """
    n, total = len(vectors), vectors.sum(0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1)))


def effective_rank(vectors: np.ndarray) -> float:
    """How many dimensions the rows take: Roy and Vetterli, "The effective rank: a measure of effective
    dimensionality", EUSIPCO 2007, of the centred rows.

    exp(−Σ p·log p) with p the singular values of the centred rows divided by their sum: E where all directions have
    equal spread, 1 where one has all of it. Rows that are all alike take no dimension: 0.

    Args:
        vectors: float [n, E].
    """
    centred = vectors - vectors.mean(0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    if values[0] <= 1e-6 * np.sqrt(len(vectors)):  # what float32 leaves of equal rows
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))

"""How embeddings lie: against the definitions, by brute force."""

import numpy as np
import pytest
from scipy.linalg import svdvals
from scipy.stats import entropy

from src.metrics.geometry import effective_rank, mean_cosine


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    rows = unit(np.random.default_rng(0).standard_normal((40, 7)) + 0.5)
    cosines = rows @ rows.T
    assert mean_cosine(rows) == pytest.approx(cosines[~np.eye(40, dtype=bool)].mean(), abs=1e-6)
    assert mean_cosine(unit(np.ones((5, 3)))) == pytest.approx(1, abs=1e-6)
    assert mean_cosine(np.eye(4, dtype=np.float32)) == 0


def test_effective_rank_is_roy_and_vetterlis() -> None:
    rng = np.random.default_rng(1)
    rows = unit(rng.standard_normal((60, 9)) * np.geomspace(1, 0.01, 9))
    values = svdvals(rows - rows.mean(0))
    assert effective_rank(rows) == pytest.approx(np.exp(entropy(values / values.sum())), rel=1e-6)


def test_effective_rank_counts_dimensions() -> None:
    spread = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)  # equal in all directions, centred
    assert effective_rank(spread) == pytest.approx(6)
    line = np.outer(np.linspace(-1, 1, 9), [0.6, 0.8]).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    shifted = spread + 100 * np.ones(6, np.float32)  # where they all lie takes no dimension
    assert effective_rank(shifted) == pytest.approx(6, rel=1e-3)


def test_rows_that_are_alike_take_no_dimension() -> None:
    rng = np.random.default_rng(2)
    same = np.repeat(unit(rng.standard_normal((1, 128))), 500, 0)
    assert effective_rank(same) == 0
    assert effective_rank(unit(same + 3e-8 * rng.standard_normal(same.shape))) == 0, "float32 rounds no dimension up"

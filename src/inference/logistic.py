"""Logistic regression on features that stay as they are: what a linear probe fits.

    one label an item:       L = −1/N Σ_n log softmax(z_n)[y_n] + λ/2 ‖W‖²
    any number of labels:    L = 1/N Σ_n Σ_c (log(1 + exp z_nc) − y_nc z_nc) + λ/2 ‖W‖²
    z = ((x − μ) / σ) W + b

with mean μ and standard deviation σ of the training features. L is convex; L-BFGS finds its minimum from any start. It
is scipy's, which the project needs anyway.
Features are read in blocks; beside them stand a copy along their principal axes and some copies of W.

Letters: ``N`` items, ``D`` numbers of a feature, ``C`` labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from src.metrics.classes import average_precision
from src.metrics.nearest import blocks

ROWS = 4096  # items whose scores are in memory at once
ITERATIONS, TOLERANCE, MEMORY = 200, 1e-4, 10  # of L-BFGS: steps at most; largest entry of the gradient; steps kept
LEAST_SPREAD = 1e-7  # axes of less than this share of the largest variance are rounding
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)  # λ that are tried


@dataclass(frozen=True)
class Linear:
    """A fitted regression."""

    mean: np.ndarray  # μ, float32 [D]
    scale: np.ndarray  # 1/σ, float32 [D]; 0 where σ is
    weights: np.ndarray  # W, float32 [D, C]
    bias: np.ndarray  # b, float32 [C]
    strength: float  # λ

    def scores(self, features: np.ndarray) -> np.ndarray:
        """z, float32 [N, C]: the largest of a row is the likeliest label, 1 / (1 + exp −z) each one's probability."""
        found = np.empty((len(features), len(self.bias)), np.float32)
        for rows in blocks(len(features), ROWS):
            found[rows] = ((features[rows] - self.mean) * self.scale) @ self.weights + self.bias
        return found


def fit(
    train: tuple[np.ndarray, csr_matrix],
    dev: tuple[np.ndarray, csr_matrix],
    multiple: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Linear, float]:
    """The regression of the strength that is best on other items than it was fitted to, and its metric there.

    Args:
        train, dev: features [N, D] and labels [N, C].
        multiple, strengths: as :func:`fit_path` has them; of equally good strengths the first counts.
    """
    found = fit_path(*train, multiple, strengths)
    metrics = [measure(one.scores(dev[0]), dev[1], multiple) for one in found]
    best = int(np.argmax(metrics))
    return found[best], metrics[best]


def measure(scores: np.ndarray, labels: csr_matrix, multiple: bool) -> float:
    """Mean average precision of the labels that some item has; of exclusive labels the share of right answers.

    Args:
        scores: [N, C].
        labels: [N, C].
    """
    if multiple:
        return float(np.nanmean(average_precision(scores, labels.toarray())))
    return float((scores.argmax(1) == labels.toarray().argmax(1)).mean())


def fit_path(
    features: np.ndarray, labels: csr_matrix, multiple: bool, strengths: Sequence[float] = STRENGTHS
) -> list[Linear]:
    """A regression for each strength; each starts where the one before ended.

    Args:
        features: [N, D], floats or whole numbers.
        labels: [N, C], 1 where an item has a label.
        multiple: whether an item may have any number of labels, and not exactly one.
        strengths: λ, from the strongest to the weakest.
    """
    mean, scale = _standard(features)
    axes, spread = _axes(features, mean, scale)
    turned = np.empty((len(features), len(spread)), np.float32)
    for rows in blocks(len(features), ROWS):
        turned[rows] = ((features[rows] - mean) * scale).astype(np.float32) @ axes
    rates = np.clip(np.asarray(labels.mean(0)).reshape(-1), 1e-6, 1 - 1e-6)
    point = np.zeros((len(spread) + 1, len(rates)))
    point[-1] = np.log(rates) - (np.log1p(-rates) if multiple else 0)
    found = []
    for strength in strengths:
        problem = _Problem(turned, labels.tocsr(), multiple, strength, np.append(spread, 1.0), rates * (1 - rates))
        point = problem.solve(point)
        weights = (axes @ point[:-1]).astype(np.float32)
        fitted = mean.astype(np.float32), scale.astype(np.float32), weights, point[-1].astype(np.float32)
        found.append(Linear(*fitted, strength))
    return found


class _Problem:
    """L as a function of V, whose curvature is near 1 in every direction: L-BFGS then takes tens of steps.

    V is [W; b] times the root of the curvature of L where every item gets the labels' rates: s_d p_c (1 − p_c) + λ.

    Args:
        turned: features along their principal axes, float32 [N, r].
        spread: s, their variances, float64 [r + 1], the last that of b's constant input.
        curvature: p (1 − p), float64 [C].
    """

    def __init__(
        self,
        turned: np.ndarray,
        labels: csr_matrix,
        multiple: bool,
        strength: float,
        spread: np.ndarray,
        curvature: np.ndarray,
    ) -> None:
        self.turned, self.labels, self.multiple = turned, labels, multiple
        self.penalty = np.append(np.full(len(spread) - 1, strength), 0.0)[:, None]  # b has none
        self.stretch = 1 / np.sqrt(spread[:, None] * curvature + self.penalty)

    def solve(self, start: np.ndarray) -> np.ndarray:
        """[W; b] at the minimum, float64 [r + 1, C]."""
        limits = {"maxiter": ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": MEMORY}
        found = minimize(self, (start / self.stretch).reshape(-1), jac=True, method="L-BFGS-B", options=limits)
        return found.x.reshape(start.shape) * self.stretch

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """L and its gradient in V."""
        table = flat.reshape(self.stretch.shape) * self.stretch
        weights, count = table.astype(np.float32), len(self.turned)
        loss, gradient = 0.0, np.zeros_like(table)
        for rows in blocks(count, ROWS):
            inputs, truth = self.turned[rows], self.labels[rows].toarray()
            part, slope = (_each if self.multiple else _softmax)(inputs @ weights[:-1] + weights[-1], truth)
            loss += part
            gradient[:-1] += inputs.T @ slope
            gradient[-1] += slope.sum(0, dtype=np.float64)
        gradient = gradient / count + self.penalty * table
        loss = loss / count + float((self.penalty * table**2).sum()) / 2
        return loss, (gradient * self.stretch).reshape(-1)


def _each(scores: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """The summed loss of independent labels and its slope in the scores, [n, C]."""
    small = np.exp(-np.abs(scores))  # never overflows
    loss = (np.maximum(scores, 0) + np.log1p(small) - truth * scores).sum(dtype=np.float64)
    return float(loss), np.where(scores >= 0, 1, small) / (1 + small) - truth


def _softmax(scores: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """The summed loss of exclusive labels and its slope in the scores, [n, C]."""
    scores = scores - scores.max(1, keepdims=True)
    shares = np.exp(scores)
    totals = shares.sum(1, keepdims=True)
    loss = (np.log(totals)[:, 0] - (truth * scores).sum(1)).sum(dtype=np.float64)
    return float(loss), shares / totals - truth


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """μ and 1/σ of each column, float64 [D]; 0 where a column is constant."""
    count = len(features)
    mean = sum(features[rows].sum(0, dtype=np.float64) for rows in blocks(count, ROWS)) / count
    deviation = np.sqrt(sum(((features[rows] - mean) ** 2).sum(0) for rows in blocks(count, ROWS)) / count)
    varies = deviation > 1e-6 * (1 + np.abs(mean))
    return mean, np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)


def _axes(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes float32 [D, r] of the standard features, and their variances float64 [r].

    ‖W‖² is the same along them, and W is 0 along those where nothing varies, which are left out.
    """
    covariance = np.zeros((len(mean), len(mean)))
    for rows in blocks(len(features), ROWS):
        standard = ((features[rows] - mean) * scale).astype(np.float32)
        covariance += standard.T @ standard
    values, vectors = eigh(covariance / len(features), overwrite_a=True, check_finite=False)
    kept = values > LEAST_SPREAD * values[-1]
    return vectors[:, kept].astype(np.float32), values[kept]

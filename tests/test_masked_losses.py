"""Regression to clean features and telling frames apart, against plain numpy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from src.losses.masked import feature_regression, frame_contrastive, normalised
from src.objectives.views import slots_to_mask
from tests.oracles import random

WEIGHTS = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
TEMPERATURE = 0.1


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrastive(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    return float(frame_contrastive(Tensor(predicted), Tensor(target), Tensor(weights), TEMPERATURE).asnumpy())


def test_normalised_has_mean_zero_and_variance_one_and_no_gradient() -> None:
    x = random(2, 3, 8) * 5 + 2
    y = normalised(Tensor(x)).asnumpy()
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-4)
    gradient = ms.grad(lambda t: (normalised(t) * Tensor(random(2, 3, 8, seed=1))).sum())(Tensor(x))
    assert not gradient.asnumpy().any()


def test_regression_is_the_mean_square_over_used_slots() -> None:
    predicted, target = random(4, 3, 5), random(4, 3, 5, seed=1)
    expected = ((predicted - target) ** 2).mean(-1)[WEIGHTS > 0].mean()
    found = feature_regression(Tensor(predicted), Tensor(target), Tensor(WEIGHTS))
    assert float(found.asnumpy()) == pytest.approx(expected, rel=1e-5)
    nothing = feature_regression(Tensor(predicted), Tensor(target), Tensor(WEIGHTS * 0))
    assert float(nothing.asnumpy()) == 0


def test_frames_are_told_apart_within_their_own_sample() -> None:
    """The mean over used slots of the cross-entropy among the used slots of the row; a lone slot does not count."""
    predicted, target = random(4, 3, 5), random(4, 3, 5, seed=1)
    costs = []
    for row in (0, 1):
        used = np.flatnonzero(WEIGHTS[row])
        logits = unit(predicted[row, used]) @ unit(target[row, used]).T / TEMPERATURE
        costs += (np.log(np.exp(logits).sum(1)) - np.diag(logits)).tolist()
    assert contrastive(predicted, target, WEIGHTS) == pytest.approx(np.mean(costs), rel=1e-4)


def test_a_perfect_match_costs_almost_nothing_and_an_opposite_one_a_lot() -> None:
    target = np.eye(3, 5, dtype=np.float32)[None]
    weights = np.ones((1, 3), np.float32)
    assert contrastive(target, target, weights) < 1e-3
    assert contrastive(-target, target, weights) > 5
    assert contrastive(np.roll(target, 1, axis=1), target, weights) > 5


def test_other_samples_and_unused_slots_are_no_negatives() -> None:
    predicted, target = random(4, 3, 5), random(4, 3, 5, seed=1)
    before = contrastive(predicted, target, WEIGHTS)
    for row in (2, 3):
        predicted[row], target[row] = target[row] * 3, predicted[row]
    predicted[1, 2], target[1, 2] = 9, -9
    assert contrastive(predicted, target, WEIGHTS) == pytest.approx(before, rel=1e-6)


def test_gradient_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    predicted, target = random(4, 3, 5), random(4, 3, 5, seed=1)

    def ours(x: Tensor) -> Tensor:
        t, w = Tensor(target), Tensor(WEIGHTS)
        return frame_contrastive(x, t, w, TEMPERATURE) + feature_regression(x, t, w)

    x, t, w = torch.tensor(predicted, requires_grad=True), torch.tensor(target), torch.tensor(WEIGHTS)
    cosine = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(t, dim=-1).transpose(1, 2)
    logits = (cosine / TEMPERATURE).masked_fill(w[:, None] == 0, -1e4)
    costs = -torch.log_softmax(logits, -1).diagonal(dim1=1, dim2=2)
    counted = w * (w.sum(1, keepdim=True) > 1)
    loss = (costs * counted).sum() / counted.sum() + (((x - t) ** 2).mean(-1) * w).sum() / w.sum()
    loss.backward()
    np.testing.assert_allclose(ms.grad(ours)(Tensor(predicted)).asnumpy(), x.grad.numpy(), atol=1e-5)


def test_slots_become_a_mask() -> None:
    positions = np.array([[4, 1, 0], [0, 0, 0]], np.int32)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    mask = slots_to_mask(Tensor(positions), Tensor(weights), 5).asnumpy()
    assert mask.tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert float(ops.maximum(Tensor(mask), 1.0).max()) == 1

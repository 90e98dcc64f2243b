"""Losses against loops in numpy (value) and PyTorch (gradient)."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from src.losses.classification import cross_entropy
from src.losses.contrastive import BlockedContrastive, contrastive_loss
from tests.oracles import MODES, random, run_mode

N, V = 7, 9


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = random(*shape, seed=seed)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max()
    return x - np.log(np.exp(x).sum())


IDS = np.array([3, 1, 3, 8, 5, 8], np.int32)  # two images stand twice
GALLERY_IDS = np.array([3, 1, 3, 8, 5, 8, 7, 1], np.int32)  # a longer gallery: other ranks' rows
PRESENT = np.array([1, 1, 0, 1, 1, 1], np.int32)
GALLERY_PRESENT = np.array([1, 1, 1, 0, 0, 1, 1, 1], np.int32)  # query 4 has no positive at all


def contrastive_by_loop(
    queries: np.ndarray, gallery: np.ndarray, present: np.ndarray, gallery_present: np.ndarray, scale: float
) -> float:
    losses = []
    for i in range(len(queries)):
        items = [j for j in range(len(gallery)) if gallery_present[j]]
        positives = [j for j in items if GALLERY_IDS[j] == IDS[i]]
        if not present[i] or not positives:
            continue
        log_p = dict(zip(items, log_softmax(np.array([scale * queries[i] @ gallery[j] for j in items])), strict=True))
        losses.append(-np.mean([log_p[j] for j in positives]))
    return float(np.mean(losses)) if losses else 0.0


POSITIVE = (IDS[:, None] == GALLERY_IDS[None]).astype(np.float32)


def contrastive(
    queries: np.ndarray,
    gallery: np.ndarray,
    present: np.ndarray = PRESENT,
    gallery_present: np.ndarray = GALLERY_PRESENT,
    scale: float = 10.0,
) -> float:
    """The mean over the queries that count."""
    positive = POSITIVE[:, : len(gallery)]
    sides = (queries, gallery, positive, present, gallery_present)
    count = (present * (positive @ gallery_present > 0)).sum()
    return float(contrastive_loss(*map(Tensor, sides), Tensor(scale, ms.float32))) / max(1, count)


@pytest.mark.parametrize("present", [PRESENT, np.ones(6, np.int32)])
@pytest.mark.parametrize("gallery_present", [GALLERY_PRESENT, np.ones(8, np.int32)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_contrastive_value(present: np.ndarray, gallery_present: np.ndarray, scale: float) -> None:
    queries, gallery = unit(6, 5), unit(8, 5)
    expected = contrastive_by_loop(queries, gallery, present, gallery_present, scale)
    assert contrastive(queries, gallery, present, gallery_present, scale) == pytest.approx(expected, rel=1e-5)


def test_contrastive_gradient() -> None:
    queries, gallery = unit(6, 5), unit(8, 5)
    fixed = [Tensor(x) for x in (POSITIVE, PRESENT, GALLERY_PRESENT)]
    found = ms.grad(lambda q, g, s: contrastive_loss(q, g, *fixed, s), (0, 1, 2))(
        Tensor(queries), Tensor(gallery), Tensor(10.0, ms.float32)
    )
    leaves = [torch.tensor(x, requires_grad=True) for x in (queries, gallery, np.float32(10.0))]
    logits = leaves[0] @ leaves[1].T * leaves[2]
    logits = logits.masked_fill(torch.from_numpy(GALLERY_PRESENT == 0), -torch.inf)
    log_p = torch.log_softmax(logits, 1)
    losses = []
    for i in (0, 1, 3, 5):  # the queries that are present and have a positive
        positives = [j for j in range(8) if GALLERY_PRESENT[j] and GALLERY_IDS[j] == IDS[i]]
        losses.append(-log_p[i, positives].mean())
    torch.stack(losses).sum().backward()
    for gradient, leaf in zip(found, leaves, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), leaf.grad.numpy(), atol=2e-6, rtol=1e-4)
    assert not found[0].asnumpy()[[2, 4]].any(), "no gradient for a query that does not count"
    assert not found[1].asnumpy()[GALLERY_PRESENT == 0].any(), "nor for an absent candidate"


def test_a_perfect_match_costs_nothing_and_the_opposite_a_lot() -> None:
    rows = np.eye(6, dtype=np.float32)
    own, ones = Tensor(np.eye(6, dtype=np.float32)), Tensor(np.ones(6, np.int32))
    scale = Tensor(14.3, ms.float32)

    def cost(gallery: np.ndarray) -> float:
        return float(contrastive_loss(Tensor(rows), Tensor(gallery), own, ones, ones, scale)) / 6

    assert cost(rows) < 1e-4
    assert cost(-rows) > 14
    assert cost(np.roll(rows, 1, axis=0)) > 14
    assert cost(np.zeros((6, 6), np.float32)) == pytest.approx(np.log(6), rel=1e-5)


def test_items_of_the_same_image_are_never_negatives() -> None:
    """Two captions of one image, both exactly right: the least loss there can be is the entropy of the choice."""
    vectors = np.stack([np.eye(5, dtype=np.float32)[{1: 0, 3: 1, 5: 2, 8: 3}[i]] for i in IDS])
    present = np.ones(6, np.int32)
    loss = contrastive(vectors, vectors, present, present, scale=100.0)
    assert loss == pytest.approx(np.mean([np.log((i == IDS).sum()) for i in IDS]), abs=1e-4)


def test_contrastive_without_a_query_is_zero_with_a_finite_gradient() -> None:
    nothing = np.zeros(6, np.int32)
    assert contrastive(unit(6, 5), unit(8, 5), nothing) == 0.0
    assert contrastive(unit(6, 5), unit(8, 5), PRESENT, np.zeros(8, np.int32)) == 0.0
    fixed = [Tensor(x) for x in (POSITIVE, nothing, np.zeros(8, np.int32))]
    gradients = ms.grad(lambda q, g: contrastive_loss(q, g, *fixed, Tensor(10.0, ms.float32)), (0, 1))(
        Tensor(unit(6, 5)), Tensor(unit(8, 5))
    )
    assert all(np.isfinite(g.asnumpy()).all() and not g.asnumpy().any() for g in gradients)


LOGITS = random(N, V) * 3
LABELS = np.array([0, 8, 3, 3, 1, 5, 7], np.int32)
WEIGHTS = np.array([1, 0, 1, 0.5, 1, 2, 0], np.float32)


def cross_entropy_by_loop(weights: np.ndarray, smoothing: float) -> float:
    total = 0.0
    for i in range(N):
        log_p = log_softmax(LOGITS[i])
        target = np.full(V, smoothing / V)
        target[LABELS[i]] += 1 - smoothing
        total -= weights[i] * (target * log_p).sum()
    return total / max(weights.sum(), 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weights", [WEIGHTS, np.ones(N, np.float32), np.eye(1, N, dtype=np.float32)[0]])
def test_cross_entropy_value(weights: np.ndarray, smoothing: float) -> None:
    found = float(cross_entropy(Tensor(LOGITS), Tensor(LABELS), Tensor(weights), smoothing))
    assert found == pytest.approx(cross_entropy_by_loop(weights, smoothing), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_gradient(smoothing: float) -> None:
    found = ms.grad(lambda x: cross_entropy(x, Tensor(LABELS), Tensor(WEIGHTS), smoothing))(Tensor(LOGITS)).asnumpy()
    leaf = torch.tensor(LOGITS, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(
        leaf, torch.from_numpy(LABELS).long(), reduction="none", label_smoothing=smoothing
    )
    weights = torch.from_numpy(WEIGHTS)
    ((losses * weights).sum() / weights.sum()).backward()
    np.testing.assert_allclose(found, leaf.grad.numpy(), atol=1e-6, rtol=1e-5)
    assert not found[WEIGHTS == 0].any()


def test_cross_entropy_of_no_rows_is_zero_with_a_zero_gradient() -> None:
    nothing = Tensor(np.zeros(N, np.float32))
    value, gradient = ms.value_and_grad(lambda x: cross_entropy(x, Tensor(LABELS), nothing, 0.1))(Tensor(LOGITS))
    assert float(value) == 0.0 and not gradient.asnumpy().any()


def test_cross_entropy_survives_huge_logits() -> None:
    """The right answer at +10⁴ costs nothing, the wrong one what it should, and no gradient overflows."""
    logits = np.full((2, 3), -1e4, np.float32)
    logits[:, 1] = 1e4
    labels, weights = Tensor(np.array([1, 0], np.int32)), Tensor(np.ones(2, np.float32))
    value, gradient = ms.value_and_grad(lambda x: cross_entropy(x, labels, weights))(Tensor(logits))
    assert float(value) == pytest.approx(1e4) and np.isfinite(gradient.asnumpy()).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("largest", [8, 24, 40, 1000])  # one query, three, five (and one that is left), all
def test_contrastive_in_blocks_is_the_same(mode: str, largest: int) -> None:
    """Positives by an id that is shared in either of two columns; in the loss and in all gradients."""
    rng = np.random.default_rng(0)
    ids, gallery_ids = rng.integers(0, 5, (6, 2)).astype(np.int32), rng.integers(0, 5, (8, 2)).astype(np.int32)
    positive = (ids[:, None] == gallery_ids[None]).any(2).astype(np.float32)
    sides = [Tensor(unit(6, 5)), Tensor(unit(8, 5)), Tensor(10.0, ms.float32)]
    present = [Tensor(PRESENT), Tensor(GALLERY_PRESENT)]
    blocked, ids = BlockedContrastive(largest), [Tensor(ids), Tensor(gallery_ids)]

    class Both(ms.nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.blocked = blocked

        def construct(self, queries, gallery, scale):
            return self.blocked(queries, gallery, *present, scale, *ids) * 3.0

    plain = ms.value_and_grad(lambda q, g, s: contrastive_loss(q, g, Tensor(positive), *present, s) * 3.0, (0, 1, 2))
    with run_mode(mode):
        value, gradients = ms.value_and_grad(Both(), (0, 1, 2))(*sides)
    wanted, expected = plain(*sides)
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    for found, gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found.asnumpy(), gradient.asnumpy(), rtol=1e-5, atol=1e-6)
        assert np.abs(found.asnumpy()).max() > 0.1

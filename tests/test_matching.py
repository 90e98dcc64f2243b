"""The sample level: every row is what its case says, and its hard negatives are drawn as they should be."""

from itertools import product

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.objectives.hard_negatives import build_rows, sample_negative
from tests.oracles import random, run_mode

B, E = 30, 6
SHOWN = ((1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))
# which of the three stay together in each case; the rest comes from somewhere else
TOGETHER = {"all": {0, 1, 2}, "image+audio": {1, 2}, "text+audio": {0, 2}, "text+image": {0, 1}, "none": set()}


def gumbel(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gumbel(size=(rows, columns)).astype(np.float32)


def test_negative_is_drawn_by_softmax_among_the_allowed() -> None:
    draws, columns = 40_000, 5
    similarity = np.array([1.0, -1.0, 0.3, 3.0, 0.0], np.float32)
    allowed = np.array([1, 1, 1, 0, 1], np.float32)
    tiled = [Tensor(np.tile(x, (draws, 1))) for x in (similarity, allowed)]
    index, valid = sample_negative(*tiled, Tensor(gumbel(draws, columns)))
    found = np.bincount(index.asnumpy(), minlength=columns) / draws
    expected = np.exp(similarity) * allowed
    assert found[3] == 0 and valid.asnumpy().all()
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.012)  # five standard deviations


def test_no_forbidden_candidate_however_similar() -> None:
    similarity = np.full((50, 4), -100, np.float32)
    similarity[:, 2] = 100  # the scale's bound times a perfect match
    allowed = np.ones((50, 4), np.float32)
    allowed[:, 2] = 0
    index, _ = sample_negative(Tensor(similarity), Tensor(allowed), Tensor(gumbel(50, 4)))
    assert 2 not in index.asnumpy() and len(set(index.asnumpy().tolist())) == 3


def test_nothing_allowed_is_not_valid() -> None:
    allowed = np.array([[0, 0, 0], [0, 1, 0]], np.float32)
    index, valid = sample_negative(Tensor(np.zeros((2, 3), np.float32)), Tensor(allowed), Tensor(gumbel(2, 3)))
    assert valid.asnumpy().tolist() == [0, 1] and index.asnumpy()[1] == 1 and 0 <= index.asnumpy()[0] < 3


class Rows:
    """A batch of B samples, images repeated, and what :func:`build_rows` makes of its rows."""

    def __init__(self, rows: int = B, images: int = 12, lacking: bool = True, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        combinations = list(product(range(len(MATCH_CASES)), SHOWN))
        chosen = [combinations[i % len(combinations)] for i in range(rows)]
        self.case = np.array([case for case, _ in chosen], np.int32)
        self.shown = np.array([shown for _, shown in chosen], np.int32)
        self.ids = rng.integers(0, images, B).astype(np.int32)
        self.texts = 1 + np.arange(B, dtype=np.int32)
        self.presence = np.ones((B, 3), np.int32)
        if lacking:  # of what the rows do not show
            self.presence[:rows] = np.maximum(self.shown, rng.integers(0, 2, (rows, 3)))
        self.embeddings = [random(B, E, seed=i) for i in range(3)]
        self.noise = gumbel(rows, B, seed)

    def build(self, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Indices [3, R] and weights [R]."""
        arrays = (self.case, self.shown, self.ids, self.texts, self.presence, *self.embeddings)
        found = build_rows(*map(Tensor, arrays), Tensor(scale, ms.float32), Tensor(self.noise))
        return np.stack([x.asnumpy() for x in found[:3]]), found[3].asnumpy()


def assert_rows_are_what_their_cases_say(batch: Rows, indices: np.ndarray, weights: np.ndarray) -> None:
    own = np.arange(len(batch.case))
    for row in own[weights > 0]:
        together, shown = TOGETHER[MATCH_CASES[batch.case[row]]], batch.shown[row]
        images, texts = ([ids[indices[which, row]] for which in range(3)] for ids in (batch.ids, batch.texts))
        for which in np.flatnonzero(shown):
            assert batch.presence[indices[which, row], which], "absent content is never drawn"
        for a, b in ((TEXT, IMAGE), (TEXT, AUDIO), (IMAGE, AUDIO)):
            if not (shown[a] and shown[b]):
                continue
            # a row that shows two of the three has the case of the pair, or none
            match = {a, b} <= together
            if match:
                assert indices[a, row] == indices[b, row] == row
            else:
                assert images[a] != images[b] and texts[a] != texts[b], (MATCH_CASES[batch.case[row]], shown)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [B, 20])
def test_every_row_is_what_its_case_says(rows: int, seed: int) -> None:
    batch = Rows(rows, seed=seed)
    indices, weights = batch.build()
    assert indices.shape == (3, rows) and weights.all(), "twelve images: a negative for every row"
    assert_rows_are_what_their_cases_say(batch, indices, weights)


@pytest.mark.parametrize("seed", range(3))
def test_an_equal_text_is_no_mismatch(seed: int) -> None:
    """Thirty images of three digits, each with its digit as the caption: a mismatch shows another digit."""
    batch = Rows(images=1 << 30, seed=seed)
    batch.texts[:] = 1 + np.random.default_rng(seed).integers(0, 3, B)
    indices, weights = batch.build()
    assert len(set(batch.ids)) == B and weights.all(), "three texts: a negative for every row"
    assert_rows_are_what_their_cases_say(batch, indices, weights)
    batch.texts[:] = 1
    mismatched = (batch.case != MATCH_CASES.index("all")) & (batch.shown.sum(1) == 3)
    assert not batch.build()[1][mismatched].any(), "one text: no negative at all"


def test_rows_in_graph_mode_are_the_same() -> None:
    batch = Rows()
    batch.texts[3:6] = 7
    expected = batch.build()
    with run_mode("graph"):
        build = ms.jit(build_rows)
        arrays = (batch.case, batch.shown, batch.ids, batch.texts, batch.presence, *batch.embeddings)
        found = build(*map(Tensor, arrays), Tensor(1.0, ms.float32), Tensor(batch.noise))
    assert np.array_equal(np.stack([x.asnumpy() for x in found[:3]]), expected[0])
    assert np.array_equal(found[3].asnumpy(), expected[1])


def test_a_batch_of_one_image_has_no_mismatch_to_offer() -> None:
    batch = Rows(images=1, lacking=False)
    indices, weights = batch.build()
    assert_rows_are_what_their_cases_say(batch, indices, weights)
    for row in range(B):
        together = TOGETHER[MATCH_CASES[batch.case[row]]]
        stays = together or {TEXT if batch.shown[row, TEXT] else IMAGE}  # the rest of a row without any match goes
        needs = any(batch.shown[row, which] and which not in stays for which in range(3))
        assert weights[row] == (not needs), (MATCH_CASES[batch.case[row]], batch.shown[row])


def test_a_batch_of_two_images_serves_all_but_three_apart() -> None:
    """A text, an image and an audio clip of three images cannot be had out of two."""
    batch = Rows(images=2, lacking=False)
    assert len(set(batch.ids)) == 2
    indices, weights = batch.build()
    assert_rows_are_what_their_cases_say(batch, indices, weights)
    apart = (batch.case == MATCH_CASES.index("none")) & (batch.shown.sum(1) == 3)
    assert apart.any() and np.array_equal(weights, np.where(apart, 0, 1))


def test_negatives_are_hard() -> None:
    """At the scale's bound the draw is the most similar of the allowed: by the row's image or by its text."""
    batch = Rows(lacking=False)
    batch.shown[:] = 1
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in batch.embeddings]
    batch.embeddings = unit
    batch.noise[:] = 0
    indices, _ = batch.build(scale=100.0)
    other = batch.ids[:, None] != batch.ids[None]
    for case, which, by in (("image+audio", TEXT, IMAGE), ("text+audio", IMAGE, TEXT), ("text+image", AUDIO, TEXT)):
        similarity = np.where(other, unit[by] @ unit[which].T, -np.inf)
        rows = np.flatnonzero(batch.case == MATCH_CASES.index(case))
        assert np.array_equal(indices[which, rows], similarity[rows].argmax(1)), case


def test_the_clip_of_a_mismatched_pair_resembles_what_it_is_shown_with() -> None:
    """The text, or the image that stands there alone; no third one matters, and what the sample has besides neither."""
    batch = Rows(rows=20, lacking=False)
    batch.case[:], batch.noise[:] = MATCH_CASES.index("none"), 0
    batch.embeddings = unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in batch.embeddings]
    other = batch.ids[:20, None] != batch.ids[None]
    for shown, by in (((1, 0, 1), TEXT), ((0, 1, 1), IMAGE)):
        batch.shown[:] = shown
        for silent in (False, True):  # a sample without a text has a vector as well: of nothing
            batch.presence[:20, 1 - by] = 1 - silent
            if silent and by == IMAGE:
                batch.embeddings[TEXT][:20] = batch.embeddings[TEXT][0]
            indices, weights = batch.build(scale=100.0)
            similarity = np.where(other, unit[by][:20] @ unit[AUDIO].T, -np.inf)
            assert weights.all() and np.array_equal(indices[AUDIO], similarity.argmax(1))
            assert np.array_equal(indices[by], np.arange(20)) and len(set(indices[AUDIO].tolist())) > 8


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_negatives_are_sampled_at_the_logit_scale(scale: float) -> None:
    """argmax of scale · cosine + Gumbel noise: the softmax of the contrastive logits."""
    batch = Rows(lacking=False)
    batch.shown[:] = 1
    batch.embeddings = unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in batch.embeddings]
    indices, _ = batch.build(scale)
    other, moved = batch.ids[:, None] != batch.ids[None], 0
    for case, which, by in (
        ("image+audio", TEXT, IMAGE),
        ("text+audio", IMAGE, TEXT),
        ("text+image", AUDIO, TEXT),
        ("none", IMAGE, TEXT),
    ):
        rows = np.flatnonzero(batch.case == MATCH_CASES.index(case))
        chosen = [np.where(other, s * unit[by] @ unit[which].T + batch.noise, -np.inf) for s in (scale, 3.0)]
        expected, otherwise = (scores[rows].argmax(1) for scores in chosen)
        assert np.array_equal(indices[which, rows], expected), case
        moved += (expected != otherwise).sum()
    assert moved, "another scale would sample the same"


def test_noise_changes_the_draw() -> None:
    first, second = Rows(), Rows()
    second.noise = gumbel(B, B, seed=5)
    assert not np.array_equal(first.build()[0], second.build()[0])

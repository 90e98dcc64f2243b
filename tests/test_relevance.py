"""Which items are right for which queries, against sets; the best R@1 that equal inputs leave, against trying all."""

from itertools import product

import numpy as np
import pytest

from src.data.schema import AUDIO, IMAGE, JOINT, TEXT
from src.evaluation.relevance import relevance, relevance_of_generated
from src.inference.encode import Items
from src.metrics.recall import ranks, recall, reranked_ranks
from src.metrics.relevance import Relevance, reachable


def table(found: Relevance) -> np.ndarray:
    """bool [Q, G]"""
    return found.at(np.tile(np.arange(len(found.gallery)), (len(found), 1)))


def test_linked_keys_are_relevant() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.integers(-5, 20, 600), rng.integers(100, 130, 70)  # more than a block of queries
    links = np.stack([rng.integers(-5, 20, 60), rng.integers(95, 130, 60)], 1)
    pairs = set(map(tuple, links.tolist()))
    expected = np.array([[(q, g) in pairs for g in gallery.tolist()] for q in queries.tolist()])
    found = Relevance.of(queries, gallery, links)
    assert np.array_equal(table(found), expected) and np.array_equal(found.answerable, expected.any(1))
    rows = rng.permutation(600)[:40]
    assert np.array_equal(table(found.take(rows)), expected[rows])
    assert np.array_equal(table(Relevance.same(queries, gallery - 100)), queries[:, None] == gallery - 100)


def items(images: list[int], texts: list[int]) -> Items:
    nothing = np.zeros((len(images), 0), np.int32)
    columns = {"images": np.array(images), "texts": np.array(texts), "samples": np.arange(len(images))}
    return Items(nothing[..., None], nothing, np.zeros((len(images), 2), np.float32), **columns)


# five captions of three images, each spoken but the last: image 0 has two, and image 2 shares one with image 0
SAID = {"images": [0, 0, 1, 2, 2], "texts": [30, 31, 40, 31, 50]}
SPLIT = {
    TEXT: items(**SAID),
    IMAGE: items([0, 1, 2], [30, 40, 31]),
    AUDIO: items(SAID["images"][:4], SAID["texts"][:4]),
    JOINT: items(SAID["images"][:4], SAID["texts"][:4]),
}


def right(query: int, gallery: int) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in table(relevance(SPLIT, query, gallery))]


def test_chance_is_the_share_of_the_gallery_that_is_right() -> None:
    """Of five items 0 2 2 7 2 a query for 2 finds one in three of five cases, one for 7 in one of five."""
    relevance = Relevance.same(np.array([2, 7]), np.array([0, 2, 2, 7, 2]))
    assert relevance.chance() == pytest.approx((3 / 5 + 1 / 5) / 2)
    linked = Relevance.of(np.array([5]), np.array([0, 2, 2, 7, 2]), np.array([(5, 0), (5, 2), (5, 9)]))
    assert linked.chance() == pytest.approx(4 / 5)


def test_an_image_is_right_for_every_text_and_speech_that_one_of_its_captions_says() -> None:
    assert right(TEXT, IMAGE) == [[0], [0, 2], [1], [0, 2], [2]]
    assert right(IMAGE, TEXT) == [[0, 1, 3], [2], [1, 3, 4]]
    assert right(AUDIO, IMAGE) == right(JOINT, IMAGE) == [[0], [0, 2], [1], [0, 2]]
    assert right(IMAGE, AUDIO) == right(IMAGE, JOINT) == [[0, 1, 3], [2], [1, 3]]


def test_text_and_speech_belong_together_by_caption() -> None:
    """The other caption's speech is wrong; equal texts' speech is right, whatever the image; one caption has none."""
    assert right(TEXT, AUDIO) == [[0], [1, 3], [2], [1, 3], []]
    assert right(AUDIO, TEXT) == [[0], [1, 3], [2], [1, 3]]


def test_a_generated_image_finds_the_captions_of_its_original() -> None:
    found = [np.flatnonzero(row).tolist() for row in table(relevance_of_generated(SPLIT, TEXT))]
    assert found == [[0, 1, 3], [0, 1, 3], [2], [1, 3, 4], [1, 3, 4]]


def test_recall_of_digits_counts_digits() -> None:
    """500 images of 20 digits, each with its digit as caption: a model that knows the digits is right throughout."""
    digits = np.random.default_rng(0).permutation(np.arange(500) % 20)
    vectors = np.eye(20)[digits]
    group = items(list(range(500)), (digits + 1).tolist())
    split = {TEXT: group, IMAGE: group, AUDIO: group}
    for query, gallery in product(split, split):
        if query != gallery:
            found = relevance(split, query, gallery)
            first = ranks(vectors, vectors, found)
            assert recall(first)["R@1"] == 1.0
            reranked = np.tile([[1, 0]], (500, 1))
            expected = np.where(digits == digits[1], 0, np.where(digits == digits[0], 1, first))
            assert np.array_equal(reranked_ranks(reranked, first, found), expected)


def best(relevant: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> float:
    """The best R@1 of all functions from inputs to inputs, by trial."""
    total = 0
    for asked in set(queries.tolist()):
        answers = [np.flatnonzero(gallery == offered)[0] for offered in set(gallery.tolist())]
        total += max(relevant[queries == asked, answer].sum() for answer in answers)
    return total / len(queries)


@pytest.mark.parametrize("seed", range(5))
def test_reachable_is_what_the_best_model_reaches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 300
    queries, gallery = rng.integers(0, 12, count), rng.integers(0, 15, 40)
    asked, offered = rng.integers(0, (400, 40, 5)[seed % 3], count), rng.integers(0, (400, 20)[seed % 2], 40)
    found = Relevance.same(queries, gallery)
    assert reachable(found, asked, offered) == pytest.approx(best(table(found), asked, offered), abs=1e-12)
    everything = np.arange(count), np.arange(40)
    assert reachable(found.take(found.answerable), everything[0][found.answerable], everything[1]) == 1.0

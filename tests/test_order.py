"""The order of samples: each once a pass, sources by weight, no image twice in a step, from any epoch's number."""

from itertools import pairwise

import numpy as np
import pytest

from src.data.errors import DataError
from src.data.masking import order_rng
from src.data.order import Order, apportion, spread

SIZES = (100, 30, 870)
SOURCES = [np.arange(start, start + size) for start, size in zip((0, 100, 130), SIZES, strict=True)]
WEIGHTS = (0.5, 0.2, 0.3)


@pytest.fixture
def mixed() -> Order:
    return Order(1, SOURCES, WEIGHTS, 16)


def test_one_source_is_shuffled_and_cut_to_full_steps() -> None:
    """The order of every run with one dataset: nobody's run may change."""
    order = Order(3, [np.arange(50)], [1.0], 8)
    for epoch in range(3):
        samples, passes = order.epoch(epoch)
        assert np.array_equal(samples.reshape(-1), order_rng(3, epoch).permutation(50)[:48])
        assert samples.shape == (order.steps, 8) == (6, 8) and (passes == epoch).all()


def test_an_epoch_holds_each_source_by_weight(mixed: Order) -> None:
    wanted = np.array(WEIGHTS) * mixed.steps * 16
    for epoch in (0, 1, 7):
        samples, _ = mixed.epoch(epoch)
        per_step = np.stack([np.isin(samples, ids).sum(1) for ids in SOURCES], 1)  # [steps, sources]
        assert (np.abs(per_step.sum(0) - wanted) < 1).all()
        assert (np.abs(per_step - wanted / mixed.steps) < 2).all(), "every step has the mixture of the epoch"
        assert len(np.unique(samples)) < samples.size, "the small source is used up and begins anew"


def test_a_source_stands_in_the_middle_of_its_shares_of_an_epoch() -> None:
    """The k-th of n samples at (k + ½) / n: of two, a quarter from each end, and no source has the first place."""
    order = Order(1, [np.arange(2), np.arange(2, 9)], (2.0, 7.0), 1)
    for epoch in range(3):
        assert (order.epoch(epoch)[0].reshape(-1) < 2).nonzero()[0].tolist() == [2, 6]


def test_none_comes_again_before_all_of_its_source_came(mixed: Order) -> None:
    drawn = [mixed.epoch(epoch) for epoch in range(6)]
    steps = np.concatenate([np.stack(part, 1) for part in drawn])  # [steps, 2, size]
    samples, passes = steps.swapaxes(0, 1).reshape(2, -1)
    for ids in SOURCES:
        own, turn = (column[np.isin(samples, ids)] for column in (samples, passes))
        turns = [step[1][np.isin(step[0], ids)] for step in steps]
        turns = [turn for turn in turns if len(turn)]
        assert all(before.max() <= after.min() for before, after in pairwise(turns)) and turns[0].min() == 0
        last = turn.max()
        for number in range(last):
            assert np.array_equal(np.sort(own[turn == number]), ids)
        assert len(np.unique(own[turn == last])) == np.count_nonzero(turn == last)
    assert passes[np.isin(samples, SOURCES[1])].max() > passes[np.isin(samples, SOURCES[2])].max()


def test_an_epoch_follows_from_its_number(mixed: Order) -> None:
    expected = mixed.epoch(4)
    mixed.epoch(9)
    for fresh in (mixed, Order(1, SOURCES, WEIGHTS, 16)):
        assert all(np.array_equal(a, b) for a, b in zip(fresh.epoch(4), expected, strict=True))
    assert not np.array_equal(Order(2, SOURCES, WEIGHTS, 16).epoch(4)[0], expected[0])


@pytest.mark.parametrize(
    ("weights", "step_size", "ranks"),
    [((95, 1), 96, 1), ((95, 1), 96, 4), ((31, 1), 32, 2), ((3, 1), 16, 2), ((60, 3, 1), 64, 1)],
)
def test_every_source_stands_everywhere_in_the_steps_of_an_epoch(
    weights: tuple[int, ...], step_size: int, ranks: int
) -> None:
    """The place says which rank and which levels of the batch read a sample: none may be a source's own."""
    sources = [np.arange(1000 * place, 1000 * place + 900) for place in range(len(weights))]
    order = Order(5, sources, [float(weight) for weight in weights], step_size)
    samples = np.concatenate([order.epoch(epoch)[0] for epoch in range(1000 // order.steps)])
    table = (samples // 1000).reshape(len(samples), ranks, step_size // ranks)
    for source, weight in enumerate(weights):
        here = table == source
        per_slot = here.reshape(len(samples), step_size).sum(0)
        expected = len(samples) * weight / sum(weights)
        assert (np.abs(per_slot - expected) < 5 * np.sqrt(expected) + 1).all(), "all places alike"
        assert (here.any((0, 2))).all(), "every rank"
        for share in (0.125, 0.5):
            rows = round(share * step_size / ranks)
            assert here[:, :, :rows].any() and here[:, :, -rows:].any(), "first and last rows: every level"


def test_weights_are_relative_and_their_scale_does_not_matter(mixed: Order) -> None:
    other = Order(1, SOURCES, [10 * weight for weight in WEIGHTS], 16)
    assert np.array_equal(other.epoch(2)[0], mixed.epoch(2)[0])


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [(10, (1, 1, 1), [4, 3, 3]), (7, (0.5, 0.25, 0.25), [3, 2, 2]), (0, (1, 2), [0, 0]), (5, (3,), [5])],
)
def test_largest_remainders_get_what_rounding_leaves(total: int, weights: tuple[float, ...], parts: list[int]) -> None:
    found = apportion(total, weights)
    assert sum(found) == total
    assert sorted(found) == sorted(parts) if len(set(weights)) < len(weights) else found == parts
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(found, weights, strict=True))


def test_a_weight_that_gives_no_sample_is_named() -> None:
    with pytest.raises(
        DataError, match=r"data.sources\[1\].weight=0.0001 gives less than one sample in an epoch of 128"
    ):
        Order(1, SOURCES[:2], (1.0, 0.0001), 16)


def images(order: Order, table: np.ndarray) -> list[list[int]]:
    return [table[row].tolist() for row in order.epoch(2)[0]]


@pytest.mark.parametrize(
    ("table", "step_size"),
    [
        (np.repeat(np.arange(200), 5), 64),
        (np.sort(np.random.default_rng(0).integers(0, 300, 1000)), 64),
        (np.repeat(np.arange(64), 15), 64),  # each image has to be in every step
    ],
)
def test_no_step_holds_an_image_twice(table: np.ndarray, step_size: int) -> None:
    ids = np.arange(len(table))
    unique = Order(1, [ids], [1.0], step_size, table)
    plain = Order(1, [ids], [1.0], step_size)
    assert all(len(set(row)) == step_size for row in images(unique, table))
    assert any(len(set(row)) < step_size for row in images(plain, table)), "without it they do"
    samples, others = unique.epoch(2)[0], plain.epoch(2)[0]
    assert np.array_equal(np.sort(samples, None), np.sort(others, None)), "the epoch's samples are the same"
    assert np.array_equal(samples, Order(1, [ids], [1.0], step_size, table).epoch(2)[0])


def test_where_no_image_repeats_the_order_stays() -> None:
    ids = np.arange(500)
    unique, plain = (Order(1, [ids], [1.0], 32, table) for table in (ids, None))
    assert np.array_equal(unique.epoch(1)[0], plain.epoch(1)[0])


def test_a_small_source_that_comes_round_within_an_epoch_is_spread_too(mixed: Order) -> None:
    table = np.arange(1000) // 2
    unique = Order(1, SOURCES, WEIGHTS, 16, table)
    samples, passes = unique.epoch(3)
    assert all(len(set(table[row])) == 16 for row in samples)
    assert any(len(set(table[row])) < 16 for row in mixed.epoch(3)[0])
    assert unique.shares == mixed.shares
    for ids in SOURCES:  # exchanges are within a source: every step keeps its mixture
        assert np.array_equal(np.isin(samples, ids).sum(1), np.isin(mixed.epoch(3)[0], ids).sum(1))
    pairs = sorted(zip(samples.reshape(-1).tolist(), passes.reshape(-1).tolist(), strict=True))
    assert pairs == sorted(zip(*(part.reshape(-1).tolist() for part in mixed.epoch(3)), strict=True))


def test_an_exchange_is_always_found_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 200:
        steps, size = rng.integers(2, 6), rng.integers(3, 9)
        table = rng.integers(0, size + 2, (steps, size))
        if np.bincount(table.reshape(-1)).max() > steps:
            continue
        tried += 1
        places = spread(table, np.zeros_like(table), rng)
        assert np.array_equal(np.sort(places, None), np.arange(table.size))
        assert all(len(set(row)) == size for row in table.reshape(-1)[places].tolist())


def test_any_step_may_give_a_sample_in_exchange() -> None:
    """Otherwise the first ones would be stirred, and the same few samples moved in every epoch."""
    table = np.arange(40).reshape(10, 4)
    table[3, 1] = table[3, 0]
    places = [spread(table, np.zeros_like(table), np.random.default_rng(seed)) for seed in range(100)]
    partners = [(np.delete(found, 3, 0) // 4 == 3).any(1).nonzero()[0].item() for found in places]
    assert set(partners) == set(range(9))


def test_an_image_of_too_many_samples_is_refused() -> None:
    with pytest.raises(DataError, match="an image has 10 samples in an epoch of 2 steps: lower data.batch_size"):
        Order(1, [np.arange(10)], [1.0], 5, np.zeros(10, int)).epoch(0)

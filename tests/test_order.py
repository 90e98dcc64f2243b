"""The order of samples: each once a pass, sources by weight, no image twice in a step, from any place in any steps."""

from itertools import islice, pairwise

import numpy as np
import pytest

from src.data.errors import DataError
from src.data.masking import order_rng
from src.data.order import Order, Step, apportion

SIZES = (100, 30, 870)
SOURCES = [np.arange(start, start + size) for start, size in zip((0, 100, 130), SIZES, strict=True)]
WEIGHTS = (0.5, 0.2, 0.3)


@pytest.fixture
def mixed() -> Order:
    return Order(1, SOURCES, WEIGHTS)


def take(
    order: Order, size: int, count: int, position: int = 0, postponed: list[list[int]] | None = None
) -> list[Step]:
    return list(islice(order.steps(size, position, postponed or []), count))


def pairs(steps: list[Step]) -> list[tuple[int, int]]:
    """Every (sample, pass) in the order in which they are taken."""
    return [pair for step in steps for pair in zip(step.samples.tolist(), step.passes.tolist(), strict=True)]


def test_one_source_is_shuffled_anew_in_every_pass_and_nothing_is_left_out() -> None:
    order = Order(3, [np.arange(50)], [1.0])
    expected = [(sample, number) for number in range(4) for sample in order_rng(3, number).permutation(50).tolist()]
    steps = take(order, 8, 25)
    assert pairs(steps) == expected
    assert [step.position for step in steps] == list(range(8, 208, 8)) and not any(step.postponed for step in steps)


@pytest.mark.parametrize("sizes", [(64, 32), (32, 64), (7, 90), (1, 1000)])
def test_other_steps_go_on_where_the_run_was(mixed: Order, sizes: tuple[int, int]) -> None:
    """8 ranks become 4, or a batch another one: as if all had been taken with one size."""
    first, then = sizes
    begun = take(mixed, first, 11)
    rest = take(mixed, then, 5, begun[-1].position)
    whole = pairs(take(mixed, 1, 11 * first + 5 * then))
    assert pairs(begun) + pairs(rest) == whole


def test_an_epoch_holds_each_source_by_weight(mixed: Order) -> None:
    wanted = np.array(WEIGHTS) * mixed.size
    assert mixed.size == 1000
    for epoch in (0, 1, 7):
        samples, _ = mixed.epoch(epoch)
        counts = np.stack([np.isin(samples, ids) for ids in SOURCES], 1)  # [size, sources]
        assert (counts.sum(0) == wanted).all()
        ahead = counts.cumsum(0) - np.outer(np.arange(1, 1001) / 1000, wanted)
        assert (np.abs(ahead[15::16]) < 2).all() and (np.abs(ahead) < 6).all(), "every stretch has the same mixture"
        assert len(np.unique(samples)) < samples.size, "the small source is used up and begins anew"


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    """Otherwise the k-th sample of one would stand beside the k-th of the other in every epoch."""
    samples, _ = Order(1, [np.arange(60), np.arange(60, 120)], (1.0, 1.0)).epoch(0)
    first, second = samples[samples < 60], samples[samples >= 60] - 60
    assert len(first) == len(second) == 60 and (first == second).mean() < 0.2, "one in sixty by chance"


def test_none_comes_again_before_all_of_its_source_came(mixed: Order) -> None:
    samples, passes = np.concatenate([mixed.epoch(epoch) for epoch in range(6)], 1)
    for ids in SOURCES:
        own, turn = (column[np.isin(samples, ids)] for column in (samples, passes))
        assert all(before <= after for before, after in pairwise(turn.tolist())) and turn[0] == 0
        last = turn.max()
        for number in range(last):
            assert np.array_equal(np.sort(own[turn == number]), ids)
        assert len(np.unique(own[turn == last])) == np.count_nonzero(turn == last)
    assert passes[np.isin(samples, SOURCES[1])].max() > passes[np.isin(samples, SOURCES[2])].max()


def test_an_epoch_follows_from_its_number(mixed: Order) -> None:
    expected = mixed.epoch(4)
    mixed.epoch(9)
    for fresh in (mixed, Order(1, SOURCES, WEIGHTS)):
        assert np.array_equal(fresh.epoch(4), expected)
    assert not np.array_equal(Order(2, SOURCES, WEIGHTS).epoch(4)[0], expected[0])


@pytest.mark.parametrize(
    ("weights", "step_size", "ranks"),
    [((95, 1), 96, 1), ((95, 1), 96, 4), ((31, 1), 32, 2), ((3, 1), 16, 2), ((60, 3, 1), 64, 1)],
)
def test_every_source_stands_everywhere_in_the_steps_of_an_epoch(
    weights: tuple[int, ...], step_size: int, ranks: int
) -> None:
    """The place says which rank and which levels of the batch read a sample: none may be a source's own."""
    sources = [np.arange(1000 * place, 1000 * place + 900) for place in range(len(weights))]
    order = Order(5, sources, [float(weight) for weight in weights])
    samples = np.stack([step.samples for step in take(order, step_size, 1000)])
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
    other = Order(1, SOURCES, [10 * weight for weight in WEIGHTS])
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
        DataError, match=r"data.sources\[1\].weight=0.0001 gives less than one sample in an epoch of 130"
    ):
        Order(1, SOURCES[:2], (1.0, 0.0001))


IMAGES = {
    "five captions": np.repeat(np.arange(200), 5),
    "one to ten": np.sort(np.random.default_rng(0).integers(0, 300, 1000)),
    "an image of every step": np.repeat(np.arange(64), 15),
}


@pytest.mark.parametrize("table", IMAGES.values(), ids=IMAGES)
def test_no_step_holds_an_image_twice_and_no_sample_is_lost(table: np.ndarray) -> None:
    ids = np.arange(len(table))
    unique, plain = Order(1, [ids], [1.0], table), Order(1, [ids], [1.0])
    steps = take(unique, 64, 100)
    assert all(len(set(table[step.samples].tolist())) == 64 for step in steps)
    assert any(len(set(table[step.samples].tolist())) < 64 for step in take(plain, 64, 100)), "without it they do"
    last = steps[-1]
    assert last.position == 6400
    found = [*pairs(steps), *map(tuple, last.postponed)]
    assert sorted(found) == sorted(pairs(take(plain, 1, len(found)))), "the samples are the same"
    waiting = max(len(step.postponed) for step in steps)
    assert waiting < (40 if table is not IMAGES["an image of every step"] else 640)


@pytest.mark.parametrize("sizes", [(64, 32), (32, 64), (64, 64)])
def test_a_run_with_unique_images_goes_on_anywhere(sizes: tuple[int, int]) -> None:
    """Also with other steps, and with repeats allowed from then on: each sample once a pass."""
    table = IMAGES["five captions"]
    order = Order(1, [np.arange(1000)], [1.0], table)
    begun = take(order, sizes[0], 10)
    last = begun[-1]
    assert last.postponed
    for images in (table, None):
        rest = take(Order(1, [np.arange(1000)], [1.0], images), sizes[1], 12, last.position, last.postponed)
        found = [*pairs(begun), *pairs(rest), *map(tuple, rest[-1].postponed)]
        assert sorted(found) == sorted(pairs(take(Order(1, [np.arange(1000)], [1.0]), 1, len(found))))
    if sizes[0] == sizes[1]:
        again = take(order, 64, 12, last.position, last.postponed)
        whole = take(order, 64, 22)[10:]
        for one, other in zip(again, whole, strict=True):
            assert np.array_equal(one.samples, other.samples) and one.postponed == other.postponed


def test_a_postponed_sample_comes_with_the_next_step_that_may_take_it() -> None:
    table = np.repeat(np.arange(100), 2)
    steps = take(Order(1, [np.arange(200)], [1.0], table), 16, 60)
    for step, after in pairwise(steps):
        for sample, number in step.postponed:
            assert [sample, number] not in after.postponed or table[sample] in table[after.samples]


def test_postponed_samples_stand_anywhere_in_a_step() -> None:
    """The place says which losses read a sample."""
    table, places = np.repeat(np.arange(40), 5), []
    steps = take(Order(1, [np.arange(200)], [1.0], table), 32, 300)
    for step, after in pairwise(steps):
        waited = {tuple(pair) for pair in step.postponed}
        places += [place for place, pair in enumerate(pairs([after])) if pair in waited]
    assert len(places) > 1000 and abs(np.mean(places) - 15.5) < 1


def test_where_no_image_repeats_the_order_stays() -> None:
    ids = np.arange(512)
    unique, plain = (Order(1, [ids], [1.0], table) for table in (ids, None))
    for one, other in zip(take(unique, 32, 40), take(plain, 32, 40), strict=True):
        assert np.array_equal(one.samples, other.samples) and not one.postponed


def test_a_small_source_that_comes_round_within_an_epoch_has_unique_images_too(mixed: Order) -> None:
    table = np.arange(1000) // 2
    unique = Order(1, SOURCES, WEIGHTS, table)
    steps = take(unique, 16, 200)
    assert all(len(set(table[step.samples])) == 16 for step in steps)
    assert any(len(set(table[step.samples])) < 16 for step in take(mixed, 16, 200))
    found = [*pairs(steps), *map(tuple, steps[-1].postponed)]
    assert sorted(found) == sorted(pairs(take(mixed, 1, len(found))))
    ahead = np.stack([np.isin(step.samples, ids).sum() for step in steps for ids in SOURCES]).reshape(-1, 3).cumsum(0)
    wanted = np.outer(np.arange(1, 201), 16 * np.array(WEIGHTS))
    assert np.abs(ahead - wanted).max() < 8, "the mixture stays"


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_an_image_of_too_many_samples_is_refused(share: float) -> None:
    sources = [np.arange(10), np.arange(10, 10 + round(10 / share - 10))] if share < 1 else [np.arange(10)]
    table = np.array([0] * 5 + list(range(1, 16)))
    order = Order(1, sources, [1.0] * len(sources), table)
    limit = round(2 / share)
    take(order, limit, 50)
    with pytest.raises(DataError, match=f"an image has 5 samples, more than there are steps of {limit + 1} in a pass"):
        order.steps(limit + 1)

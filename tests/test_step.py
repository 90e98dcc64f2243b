"""One step: the factor of clipping and loss scale, the scale's way through overflows, and what the host hands on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.config import OptimizerConfig
from src.objectives.peers import Counts, GatherRows, Peers
from src.training import graphs
from src.training.graphs import square_sum
from src.training.muon import build_optimizer
from src.training.optimizer import AdamW
from src.training.ranks import MeanOverRanks
from src.training.schedule import learning_rates
from src.training.step import NonFiniteError, TrainStep
from tests.oracles import random, run_mode, take

ONES = {"x": np.ones(2, np.float32)}


class Quadratic(nn.Cell):
    """loss = mean((w·x)²), whose gradient is known."""

    names, fields = ("square",), ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.w = Parameter(Tensor(np.array([3.0, 4.0], np.float32)), name="w")

    def construct(self, batch):
        loss = ((self.w * batch["x"]) ** 2).sum()
        return loss, loss


def quadratic_step(
    loss_scale: float | None = None, clip_norm: float = 1.0, remembered: int = 1
) -> tuple[Quadratic, TrainStep]:
    objectives = Quadratic()
    config = OptimizerConfig(lr=0.1, warmup_steps=0, weight_decay=0.0)
    optimizer = AdamW(objectives.trainable_params(), config, learning_rates(config, 10))
    return objectives, TrainStep(objectives, optimizer, clip_norm, loss_scale, remembered=remembered)


@pytest.fixture(params=["graph", "pynative"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with run_mode(request.param):
        yield


def test_step_reports_the_unscaled_norm_and_clips(mode: None) -> None:
    for scale in (None, 64.0):
        objectives, train = quadratic_step(scale)
        result = take(train, ONES)
        assert result.losses == {"total": 25.0, "square": 25.0}
        assert result.norm == pytest.approx(10.0)  # the gradient is 2·w = (6, 8)
        np.testing.assert_allclose(train.optimizer.first[0].asnumpy(), 0.1 * np.array([[0.6, 0.8]]), rtol=1e-4)
        assert (objectives.w.asnumpy() < [3.0, 4.0]).all()


def test_non_finite_loss_updates_nothing(mode: None) -> None:
    objectives, train = quadratic_step()
    train(ONES)
    before = {name: p.asnumpy().copy() for name, p in train.state().items()} | {"w": objectives.w.asnumpy().copy()}
    with pytest.raises(NonFiniteError, match="total, square"):
        take(train, {"x": np.array([np.nan, 1.0], np.float32)})
    after = {name: p.asnumpy() for name, p in train.state().items()} | {"w": objectives.w.asnumpy()}
    assert (after.pop("bad_row"), after.pop("bad_steps")) == (1, 1), "all that a bad step changes"
    for name in after:
        np.testing.assert_array_equal(before[name], after[name])


def test_overflow_skips_the_step_and_halves_the_loss_scale(mode: None) -> None:
    objectives, train = quadratic_step(loss_scale=2.0**127)
    result = take(train, {"x": np.full(2, 10.0, np.float32)})
    assert result.skipped and result.rate == 0.0
    assert float(train.update.loss_scale.asnumpy()) == 2.0**126
    np.testing.assert_array_equal(objectives.w.asnumpy(), [3.0, 4.0])
    assert int(train.optimizer.step.asnumpy()) == 0, "a skipped step is none of the schedule's"


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    gradient = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    expected = (gradient.astype(np.float64) ** 2).sum()
    assert float(square_sum(Tensor(gradient)).asnumpy()) == pytest.approx(expected, rel=1e-5)


class Statistics(nn.Cell):
    """Keeps what moves without a gradient, and counts how often it moved."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = Parameter(Tensor(np.zeros(1, np.float32)), name="mean")
        self.moved = Parameter(Tensor(0, ms.int32), name="moved")

    def construct(self, good, statistics):
        ops.assign(self.mean, ops.where(good, statistics[0], self.mean))
        ops.assign(self.moved, self.moved + good.astype(ms.int32))


class Given(nn.Cell):
    """loss = Σ W·gw + Σ b·gb: the gradients are the batch's own arrays."""

    names, metrics, fields = ("product",), ("metric",), ("gw", "gb", "measured")

    def __init__(self) -> None:
        super().__init__()
        self.matrix = Parameter(Tensor(random(2, 3)), name="layer.weight")
        self.bias = Parameter(Tensor(random(3)), name="layer.bias")
        self.after_update = Statistics()

    def construct(self, batch):
        loss = (self.matrix * batch["gw"]).sum() + (self.bias * batch["gb"]).sum()
        return (loss, loss, batch["measured"].sum()), (batch["gb"][:1],)


def given_step(
    kind: str = "adamw", scale: float | None = None, clip: float = 1.0, mean: nn.Cell | None = None
) -> tuple[Given, TrainStep]:
    objectives = Given()
    config = OptimizerConfig(name=kind, lr=0.1, warmup_steps=0)
    optimizer = build_optimizer([objectives.matrix, objectives.bias], config, learning_rates(config, 10))
    return objectives, TrainStep(objectives, optimizer, clip, scale, mean)


def gradients(norm: float, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of gradients with that norm together."""
    found = {"gw": random(2, 3, seed=seed), "gb": random(3, seed=seed)}
    factor = norm / np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in found.values()))
    scaled = {name: (array * factor).astype(np.float32) for name, array in found.items()}
    return scaled | {"measured": np.array([0.25, 0.5], np.float32)}


def moments(train: TrainStep) -> dict[str, np.ndarray]:
    """First moments of the matrix and of the bias, divided by what the first step gives a gradient."""
    adam = getattr(train.optimizer, "adam", train.optimizer)
    found = {p.name: p.asnumpy() / 0.1 for p in adam.first}
    bias = next(value for value in found.values() if value.shape[-1:] == (3,) and value.size == 3)
    if adam is train.optimizer:
        return {"gw": next(value for value in found.values() if value.size == 6), "gb": bias.reshape(3)}
    share = 1.0 - float(train.optimizer.momentum)
    return {"gw": train.optimizer.momenta[0].asnumpy()[0] / share, "gb": bias.reshape(3)}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("scale", [None, 0.125, 64.0])
@pytest.mark.parametrize("norm", [0.01, 0.7, 2.0, 50.0])
def test_the_optimisers_get_the_clipped_unscaled_gradient(kind: str, scale: float | None, norm: float) -> None:
    """g · min(1, clip / ‖g‖), whatever the loss scale: below the clip a gradient stays as it is."""
    _, train = given_step(kind, scale, clip=1.5)
    batch = gradients(norm)
    assert take(train, batch).norm == pytest.approx(norm, rel=1e-5)
    for name, found in moments(train).items():
        np.testing.assert_allclose(found, batch[name] * min(1.0, 1.5 / norm), rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_do_not_depend_on_the_loss_scale(kind: str) -> None:
    """Over steps that are clipped and steps that are not: their shares of the momentum must be right."""
    found = []
    for scale in (None, 1024.0):
        objectives, train = given_step(kind, scale)
        for number, norm in enumerate((5.0, 0.3, 40.0)):
            train(gradients(norm, seed=number))
        found.append([p.asnumpy().copy() for p in (objectives.matrix, objectives.bias)])
    for plain, scaled in zip(*found, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_beyond_the_schedule_keep_its_last_rate(kind: str) -> None:
    objectives = Given()
    config = OptimizerConfig(name=kind, lr=0.1, min_lr=0.01, warmup_steps=0)
    rates = learning_rates(config, 2)
    train = TrainStep(objectives, build_optimizer([objectives.matrix, objectives.bias], config, rates), 1.0)
    assert [take(train, gradients(1.0)).rate for _ in range(4)] == [rates[0], rates[1], rates[1], rates[1]]


def set_scale(train: TrainStep, scale: float, clean: int) -> None:
    train.update.loss_scale.set_data(Tensor(scale, ms.float32))
    train.update.clean_steps.set_data(Tensor(clean, ms.int32))


def scale_of(train: TrainStep) -> tuple[float, int]:
    return float(train.update.loss_scale.asnumpy()), int(train.update.clean_steps.asnumpy())


def test_the_scale_grows_after_enough_clean_steps_and_begins_to_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs.SCALE_GROWTH_STEPS == 1000
    monkeypatch.setattr(graphs, "SCALE_GROWTH_STEPS", 3)
    _, train = given_step(scale=8.0)
    found = []
    for _ in range(7):
        train(gradients(1.0))
        found.append(scale_of(train))
    assert found == [(8, 1), (8, 2), (16, 0), (16, 1), (16, 2), (32, 0), (32, 1)]


def test_an_overflow_halves_the_scale_and_resets_the_clean_steps() -> None:
    objectives, train = given_step(scale=2.0**127)
    before = objectives.matrix.asnumpy().copy()
    set_scale(train, 2.0**127, 999)
    huge = gradients(1.0) | {"gw": np.full((2, 3), 1e3, np.float32), "gb": np.full(3, 1e3, np.float32)}
    result = take(train, huge)
    assert result.skipped and result.rate == 0.0 and scale_of(train) == (2.0**126, 0)
    np.testing.assert_array_equal(objectives.matrix.asnumpy(), before)
    assert int(train.optimizer.step.asnumpy()) == 0 and int(objectives.after_update.moved) == 0
    set_scale(train, 4.0, 998)
    assert not take(train, huge).skipped and scale_of(train) == (4.0, 999)
    assert int(train.optimizer.step.asnumpy()) == 1 and int(objectives.after_update.moved) == 1
    assert not take(train, huge).skipped and scale_of(train) == (8.0, 0)


def overflowing() -> dict[str, np.ndarray]:
    """A finite loss whose gradient has no finite norm."""
    return gradients(1.0) | {"gw": np.full((2, 3), 1e30, np.float32)}


def test_the_scale_never_falls_below_one_and_then_an_overflow_is_bad() -> None:
    _, train = given_step(scale=1.5)
    assert take(train, overflowing()).bad_steps == 0 and scale_of(train) == (1.0, 0)
    with pytest.raises(NonFiniteError, match="^not finite: the gradients$"):
        take(train, overflowing())
    assert scale_of(train) == (1.0, 0)


def test_without_a_loss_scale_nothing_is_scaled_or_counted() -> None:
    _, train = given_step()
    for _ in range(3):
        train(gradients(1.0))
    assert scale_of(train) == (1.0, 0) and train.result().loss_scale is None
    with pytest.raises(NonFiniteError, match="the gradients"):
        take(train, overflowing())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_bad_step_among_good_ones_leaves_no_trace(kind: str, mode: None) -> None:
    """Weights, moments, schedule and statistics are those of a run that never saw the batch; only the count differs."""
    pair = [given_step(kind)[1] for _ in range(2)]
    for train in pair:
        train.max_bad_steps = 3
    for number in range(5):
        for train in pair:
            train(gradients(3.0, seed=number))
        if number == 2:
            pair[0](gradients(1.0) | {"gw": np.full((2, 3), np.nan, np.float32)})
            pair[0](overflowing())
    found, expected = (train.result() for train in pair)
    assert found.bad_steps == 2 and expected.bad_steps == 0
    assert replace(found, bad_steps=0) == expected
    for name, parameter in everything(pair[1]).items():
        if name != "bad_steps":
            np.testing.assert_array_equal(everything(pair[0])[name].asnumpy(), parameter.asnumpy(), err_msg=name)


def test_a_result_says_which_of_the_latest_steps_were_bad() -> None:
    """As many as are remembered, counted back from the last one."""
    objectives, train = quadratic_step(remembered=4)
    train.max_bad_steps = 9
    for bad in (True, False, True, True, False, False):
        train({"x": np.array([np.nan if bad else 1.0, 1.0], np.float32)})
    assert train.result().bad_ago == (2, 3) and train.result().bad_steps == 3
    train.max_bad_steps = 2
    with pytest.raises(NonFiniteError) as error:
        train.result()
    assert (error.value.bad_ago, error.value.ago, error.value.row) == ((2, 3), 2, 2)


def test_a_run_that_goes_on_knows_its_bad_steps(tmp_path: Path) -> None:
    """How many there were, and how many came in a row at its end. A checkpoint of before does not know."""
    broken, (_, first), (_, second) = {"x": np.array([np.nan, 1.0], np.float32)}, quadratic_step(), quadratic_step()
    first.max_bad_steps = second.max_bad_steps = 3
    for batch in (broken, ONES, broken, broken):
        first(batch)
    state = {name: parameter.asnumpy() for name, parameter in first.state().items()}
    second.load_state(state, tmp_path)
    assert take(second, ONES).bad_steps == 3
    second.load_state(state, tmp_path)
    with pytest.raises(NonFiniteError) as error:
        take(second, broken)
    assert error.value.row == 3
    third = quadratic_step()[1]
    third.load_state({name: array for name, array in state.items() if not name.startswith("bad")}, tmp_path)
    assert take(third, ONES).bad_steps == 0


def everything(train: TrainStep) -> dict[str, Parameter]:
    objectives = train.gradients.objectives
    statistics = {"mean": objectives.after_update.mean, "moved": objectives.after_update.moved}
    return train.state() | weights_of(objectives) | statistics


def test_bad_steps_stop_the_run_only_in_a_row_and_the_latest_is_named() -> None:
    _, train = given_step()
    train.max_bad_steps = 2
    bad = gradients(1.0) | {"measured": np.array([np.nan, 0.0], np.float32)}
    for batch in (bad, gradients(1.0), bad, gradients(1.0)):
        train(batch)
    assert train.result().bad_steps == 2
    for batch in (bad, bad | {"gw": np.full((2, 3), np.inf, np.float32)}, *[gradients(1.0)] * 3):
        train(batch)
    with pytest.raises(NonFiniteError, match="^not finite: total, product, metric$") as caught:
        train.result()
    assert (caught.value.row, caught.value.ago) == (2, 3)


def test_steps_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read from the device in a step, and one tensor for its result."""
    _, train = given_step(scale=8.0)
    train(gradients(1.0))
    reads = []
    for name in ("asnumpy", "item", "__float__", "__int__", "__bool__", "tolist"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *given, real=real: (reads.append(self.shape), real(self, *given))[1]
        )
    for number in range(4):
        train(gradients(1.0, seed=number))
    assert not reads
    train.result()
    assert len(reads) == 1


def test_a_run_in_another_precision_begins_anew_with_the_scale() -> None:
    _, train = given_step(scale=64.0)
    set_scale(train, 2.0, 7)
    train.reset_scale()
    assert scale_of(train) == (64.0, 0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_goes_on_from_its_state(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments, place in the schedule, loss scale and clean steps."""
    monkeypatch.setattr(graphs, "SCALE_GROWTH_STEPS", 3)
    pair = [given_step(kind, scale=8.0) for _ in range(2)]
    (first, before), (second, after) = pair
    for number in range(5):
        before(gradients(3.0, seed=number))
    assert before.state().keys() == after.state().keys() and scale_of(before) == (16.0, 2)
    for ours, theirs in ((after.state(), before.state()), (weights_of(second), weights_of(first))):
        for name, parameter in ours.items():
            parameter.set_data(Tensor(theirs[name].asnumpy().copy()))
    for number in range(5, 8):
        results = [take(train, gradients(3.0, seed=number)) for _, train in pair]
        assert results[0] == results[1] and scale_of(before) == scale_of(after)
    for name, parameter in weights_of(first).items():
        np.testing.assert_array_equal(weights_of(second)[name].asnumpy(), parameter.asnumpy())


def weights_of(objectives: Given) -> dict[str, Parameter]:
    return {"matrix": objectives.matrix, "bias": objectives.bias}


def test_metrics_stand_beside_the_losses_and_a_wrong_one_stops_the_run() -> None:
    objectives, train = given_step(scale=32.0)
    result = take(train, gradients(2.0))
    assert result.losses.keys() == {"total", "product"} and result.metrics == {"metric": 0.75}
    before = objectives.matrix.asnumpy().copy()
    with pytest.raises(NonFiniteError, match="^not finite: metric$"):
        take(train, gradients(2.0) | {"measured": np.array([np.nan], np.float32)})
    np.testing.assert_array_equal(objectives.matrix.asnumpy(), before)


def test_dropout_has_other_masks_in_every_step_and_the_same_in_a_run_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys: list[tuple[int, ...]] = []
    monkeypatch.setattr("src.training.step.set_key", lambda *key: keys.append(key))
    _, train = quadratic_step()
    train(ONES)
    assert not keys, "nothing is dropped"
    train.mask_seed, train.drops = (3, 1), True
    train(ONES)
    train.number = 7
    train(ONES)
    train(ONES)
    train.accumulated = lambda _, key: keys.append(key)  # a batch in parts
    train(ONES)
    train(ONES)
    assert keys == [(3, 1, 1), (3, 1, 7), (3, 1, 8), (3, 1, 9), (3, 1, 10)]


def test_before_step_fills_what_the_batch_lacks() -> None:
    objectives, train = given_step()
    batch = gradients(0.5)
    seen = []
    train.before_step = lambda whole: seen.append(dict(whole)) or {"gb": batch["gb"]}
    train(batch | {"gb": np.zeros(3, np.float32)})
    assert seen[0].keys() == batch.keys() and not seen[0]["gb"].any()
    np.testing.assert_allclose(moments(train)["gb"], batch["gb"], rtol=1e-4)


class Times(nn.Cell):
    """Stands for an average over ranks."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def construct(self, tensors):
        scaled = ()
        for tensor in tensors:
            scaled = (*scaled, tensor * self.factor)
        return scaled


def test_norm_and_clipping_are_those_of_the_ranks_mean() -> None:
    """Of gradients, statistics and losses alike."""
    objectives, train = given_step(clip=1.5, mean=Times(0.25))
    batch = gradients(4.0)
    result = take(train, batch)
    assert result.norm == pytest.approx(1.0, rel=1e-5)
    for name, found in moments(train).items():
        np.testing.assert_allclose(found, batch[name] * 0.25, rtol=1e-4, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(objectives.after_update.mean.asnumpy(), batch["gb"][:1] * 0.25)
    assert result.metrics == {"metric": 0.75 * 0.25}


@pytest.mark.parametrize(("bucket", "calls"), [(1, 4), (13, 2), (17, 2), (100, 1)])
def test_tensors_are_averaged_in_few_buckets(bucket: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of which the others have zeros; a tensor larger than a bucket has one of its own."""
    reduced: list[int] = []
    monkeypatch.setattr(ops, "AllReduce", lambda: lambda tensor: reduced.append(tensor.size) or tensor)
    given = random(2, 4), random(5), random(3, 2, 2), np.float32(7.0)
    with run_mode("pynative"):
        means = MeanOverRanks(3, bucket)(tuple(map(Tensor, given)))
    for found, expected in zip(means, given, strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected / 3, rtol=1e-6)
    assert len(reduced) == calls and sum(reduced) == 26
    assert all(size <= bucket or size in (8, 5, 12, 1) for size in reduced)


def test_gathered_rows_get_their_own_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks with equal tensors: their sum is three times as much."""
    monkeypatch.setattr(ops, "AllReduce", lambda: lambda tensor: tensor * 3)
    monkeypatch.setattr(ops, "AllGather", lambda: lambda tensor: ops.concat((tensor,) * 3))
    gather, rows, weights = GatherRows(1), Tensor(random(2, 4)), random(6, 4, seed=1)
    assert gather(rows).shape == (6, 4)
    found = ms.grad(lambda x: (gather(x) * Tensor(weights)).sum())(rows)
    np.testing.assert_allclose(found.asnumpy(), 3 * weights[2:4], rtol=1e-6)


@pytest.mark.parametrize(("items", "expected"), [((0.0, 0.0), 0.5), ((1.0, 0.0), 0.5), ((2.0, 3.0), 2.5)])
def test_a_rank_divides_by_its_share_of_the_items_of_all(
    items: tuple[float, float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks' mean is then Σ / items; the one item that two ranks have is not taken for one of each."""
    monkeypatch.setattr(ops, "AllReduce", lambda: lambda counts: counts + Tensor([items[1], 4.0], ms.float32))
    with run_mode("pynative"):
        counts = Counts(Peers(0, 2))((Tensor([items[0], 0.0]), Tensor([[1.0, 1.0], [2.0, 0.0]])))
    assert [float(count) for count in counts] == [expected, (4 + 4) / 2]

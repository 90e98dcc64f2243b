"""An optimiser sharded over ranks: the weights, moments and checkpoints of an unsharded one, in less memory."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, kill_after, tiny_dataset
from mindspore import Parameter, Tensor, nn
from ranks import assert_same_files, launch, saved_start, start_ranks

from src import cli
from src.checkpoints.files import MODEL, OPTIMIZER, CheckpointError, read_tensors
from src.checkpoints.places import locate
from src.config import (
    Config,
    MaskingConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
)
from src.runtime import setup
from src.training.muon import build_optimizer, orthogonalising_cost
from src.training.ranks import MeanOverRanks
from src.training.schedule import learning_rates
from src.training.shards import ShardedOptimizer, divide, find_owners, make_buckets
from src.training.step import TrainStep
from src.training.trainer import Trainer

pytestmark = pytest.mark.ranks
OPTIMIZERS = ("adamw", "muon")
STEPS, MIDDLE = 4, 2
BLOCK = "text_encoder.transformer.blocks"
SHAPES: dict[str, tuple[int, ...]] = {
    **{
        f"{BLOCK}.{layer}.up.{name}": shape
        for layer in range(2)
        for name, shape in (("weight", (16, 8)), ("bias", (16,)))
    },
    **{f"head.{name}.weight": (8, 16) for name in "abcde"},
    **{f"head.{name}.bias": (8,) for name in "ab"},
    "tokens": (20, 8),
    "text_encoder.positions": (1, 6, 4),
    "scale": (),
}


def stand_ins(shapes: dict[str, tuple[int, ...]]) -> list:
    """Parameters without values."""
    return [
        SimpleNamespace(name=name, shape=shape, ndim=len(shape), size=int(np.prod(shape)))
        for name, shape in shapes.items()
    ]


def base_shapes() -> dict[str, tuple[int, ...]]:
    """A Transformer of 12 layers of width 768, with a table of 21,128 tokens."""
    shapes: dict[str, tuple[int, ...]] = {"tokens": (21128, 768), "positions": (1, 128, 768)}
    for layer in range(12):
        shapes |= {f"{layer}.{name}.weight": (768, 768) for name in "qkvo"}
        shapes |= {f"{layer}.up.weight": (3072, 768), f"{layer}.down.weight": (768, 3072), f"{layer}.norm": (768,)}
    return shapes


def test_the_most_expensive_is_given_away_first() -> None:
    assert divide([1, 5, 3, 3, 2], [0, 0]) == [1, 0, 1, 1, 0]
    assert divide([2, 2, 2], [0, 3, 1]) == [0, 2, 0]
    assert divide([], [0, 0]) == []


def test_the_ranks_have_about_as_much_to_do_and_to_keep() -> None:
    parameters = stand_ins(base_shapes())
    for ranks in (2, 3, 8):
        owners = find_owners(parameters, True, ranks)
        assert owners.keys() == {p.name for p in parameters if p.ndim != 1}
        times = [
            sum(orthogonalising_cost(p.shape) for p in parameters if owners.get(p.name) == rank and "weight" in p.name)
            for rank in range(ranks)
        ]
        assert max(times) < 1.15 * np.mean(times)
    for ranks in (2, 3):  # of more the table alone is more than a share
        owners = find_owners(parameters, False, ranks)
        kept = [sum(p.size for p in parameters if owners.get(p.name) == rank) for rank in range(ranks)]
        assert max(kept) < 1.05 * np.mean(kept)


def test_what_muon_leaves_to_adamw_goes_where_memory_is() -> None:
    parameters = stand_ins({"a.weight": (64, 64), "table": (8, 64), "more": (8, 64), "bias": (64,)})
    assert find_owners(parameters, True, 2) == {"a.weight": 0, "table": 1, "more": 1}
    assert find_owners(parameters, False, 2) == {"a.weight": 0, "table": 1, "more": 1}


def test_buckets_hold_every_parameter_once_and_little_padding() -> None:
    parameters = stand_ins(base_shapes())
    for ranks, muon in ((2, True), (3, False), (8, True)):
        owners = find_owners(parameters, muon, ranks)
        shards = [[p for p in parameters if owners.get(p.name) == rank] for rank in range(ranks)]
        buckets = make_buckets(shards, 2**20)
        for rank in range(ranks):
            names = [p.name for bucket in buckets for p in bucket[rank]]
            assert sorted(names) == sorted(p.name for p in shards[rank])
        sent = ranks * sum(max(sum(p.size for p in part) for part in bucket) for bucket in buckets)
        largest = max(sum(p.size for p in shard) for shard in shards)
        assert sent < 1.2 * ranks * largest and len(buckets) < 100


class Products(nn.Cell):
    """loss = Σ w·g: the gradients are the batch's own arrays."""

    names, fields = ("product",), tuple(SHAPES)

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        rng = np.random.default_rng(0)
        self.weights = ms.ParameterTuple(
            [
                Parameter(Tensor(rng.standard_normal(shape).astype(np.float32)), name=name)
                for name, shape in SHAPES.items()
            ]
        )

    def construct(self, batch):
        loss = 0.0
        for name, weight in zip(self.fields, self.weights):  # noqa: B905 - the graph compiler has no strict=
            loss = loss + (weight * batch[name]).sum()
        return loss, loss


def make_step(kind: str, rank: int, ranks: int, shards: bool) -> TrainStep:
    objectives = Products()
    config = OptimizerConfig(name=kind, lr=0.1, warmup_steps=0, weight_decay=0.1, layer_decay=0.5)
    rates = learning_rates(config, 10)
    if shards:  # buckets of 160 elements a rank
        optimizer = ShardedOptimizer(list(objectives.weights), config, rates, rank, ranks, 160 * ranks)
    else:
        optimizer = build_optimizer(list(objectives.weights), config, rates)
    return TrainStep(objectives, optimizer, 1.0, mean=MeanOverRanks(ranks), max_bad_steps=9)


def gradients(rank: int, number: int) -> dict[str, np.ndarray]:
    """A rank's batch; the one of step 1 is not finite on the last rank."""
    rng = np.random.default_rng((rank, number))
    batch = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    if number == 1 and rank == 1:
        batch["tokens"][0, 0] = np.nan
    return batch


def arrays_of(step: TrainStep, whole: bool) -> dict[str, np.ndarray]:
    """Copies of the weights and of the optimiser's state."""
    weights = {f"weight {name}": p for name, p in zip(SHAPES, step.gradients.objectives.weights, strict=True)}
    tensors = weights | (step.whole_state() if whole else step.state())
    return {name: np.array(x if isinstance(x, np.ndarray) else x.asnumpy()) for name, x in tensors.items()}


def set_arrays(step: TrainStep, arrays: dict[str, np.ndarray]) -> None:
    """What :func:`arrays_of` copied."""
    for name, parameter in zip(SHAPES, step.gradients.objectives.weights, strict=True):
        parameter.set_data(Tensor(arrays[f"weight {name}"]))
    step.load_state({name: x for name, x in arrays.items() if not name.startswith("weight ")}, Path("a file"))


def run_rank(folder: Path) -> None:
    """What each process that msrun starts does: steps unsharded and sharded, and the latter again from the middle."""
    rank, ranks = setup(RuntimeConfig(distributed=True), 1)
    for kind in OPTIMIZERS:
        plain, sharded = (make_step(kind, rank, ranks, shards) for shards in (False, True))
        for number in range(STEPS):
            if number == MIDDLE:
                middle = arrays_of(plain, whole=False)
            plain(gradients(rank, number))
            sharded(gradients(rank, number))
        found = {"plain": arrays_of(plain, whole=False), "sharded": arrays_of(sharded, whole=True)}
        set_arrays(sharded, middle)
        for number in range(MIDDLE, STEPS):
            sharded(gradients(rank, number))
        found["again"] = arrays_of(sharded, whole=True)
        for name, arrays in found.items():
            np.savez(folder / f"{kind}-{name}-{rank}.npz", **arrays)
        steps = {"plain": plain, "sharded": sharded}
        report = {
            "kept": {name: sum(p.nbytes for p in step.state().values()) for name, step in steps.items()},
            "norm": [step.result().norm for step in steps.values()],
            "names": sorted(sharded.state()),
        }
        (folder / f"{kind}-{rank}.json").write_text(json.dumps(report))


@pytest.mark.e2e
@pytest.mark.parametrize("ranks", [2, 3])
def test_sharded_is_as_unsharded(ranks: int, tmp_path: Path) -> None:
    """Weights on every rank, state on the one that writes; a step that is not finite changes nothing."""
    start_ranks(__file__, tmp_path, ranks)
    start = {f"weight {p.name}": p.asnumpy() for p in Products().weights}
    for kind in OPTIMIZERS:
        expected = dict(np.load(tmp_path / f"{kind}-plain-0.npz"))
        assert expected["adam_step"] == STEPS - 1
        for name, array in start.items():
            assert np.abs(expected[name] - array).max() > 1e-3, name
        for name in ("sharded", "again"):
            for rank in range(ranks):
                found = dict(np.load(tmp_path / f"{kind}-{name}-{rank}.npz"))
                assert found.keys() == expected.keys() or rank > 0
                for key in expected if rank == 0 else start:
                    np.testing.assert_allclose(found[key], expected[key], rtol=1e-6, atol=1e-6, err_msg=key)
        reports = [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(ranks)]
        assert_less_is_kept([report["kept"] for report in reports])
        for report in reports:
            assert report["norm"] == pytest.approx([reports[0]["norm"][0]] * 2, rel=1e-6)
        assert len({tuple(report["names"]) for report in reports}) == ranks, "each rank has tensors of its own"


def assert_less_is_kept(kept: list[dict[str, int]]) -> None:
    """Bytes: all ranks together have the unsharded state, and the vectors' moments and five numbers on each."""
    ranks, whole = len(kept), kept[0]["plain"]
    numbers = 5  # adam_step, loss_scale, clean_steps, bad_row, bad_steps
    shared = 4 * (2 * sum(shape[0] for shape in SHAPES.values() if len(shape) == 1) + numbers)
    largest = 4 * 2 * int(np.prod(SHAPES["tokens"]))
    assert sum(each["sharded"] for each in kept) == whole + (ranks - 1) * shared
    for each in kept:
        assert each["plain"] == whole and each["sharded"] - shared < (whole - shared) / ranks + largest / 2


def test_another_models_state_is_refused() -> None:
    optimizer = make_step("muon", 0, 1, shards=False).state()
    arrays = {name: p.asnumpy() for name, p in optimizer.items()}
    step = TrainStep(Products(), ShardedOptimizer(list(Products().weights), OptimizerConfig(), np.ones(3), 1, 2), 1.0)
    with pytest.raises(CheckpointError, match="another model wrote it"):
        step.load_state(arrays, Path("optimizer.safetensors"))


@pytest.mark.e2e
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """Two ranks that share the optimiser → one process → two ranks; a batch in two parts."""
    ms.set_context(mode=ms.GRAPH_MODE)
    base = tiny_dataset(tmp_path, config=Config(model=MODEL_CONFIG))
    one = replace(
        base,
        objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=0.0, mlm=1.0), masking=MaskingConfig(ratio=0.4)),
        # an epsilon above the rounding of a gradient: AdamW would make a step of noise
        optimizer=OptimizerConfig(name="muon", lr=2e-3, muon_lr=0.01, warmup_steps=2, eps=1e-3),
        data=replace(base.data, batch_size=8),
        train=TrainConfig(
            steps=6, log_every=1, save_every=2, keep_checkpoints=9, accumulate=2, init_from=saved_start(tmp_path, base)
        ),
    )
    two = replace(one, data=replace(base.data, batch_size=4), runtime=replace(base.runtime, shard_optimizer=True))

    def to(config: Config, name: str) -> Config:
        return replace(config, train=replace(config.train, output=str(tmp_path / name)))

    launch(to(two, "two"), tmp_path)
    expected = {file: read_tensors(locate(tmp_path / "two") / file) for file in (MODEL, OPTIMIZER)}
    kill_after(tmp_path / "two", 2, tmp_path / "one")
    Trainer(to(one, "one"), resume=True).run()
    assert_same_files(tmp_path / "one", expected)
    kill_after(tmp_path / "one", 4, tmp_path / "again")
    launch(to(two, "again"), tmp_path, "--resume")
    assert_same_files(tmp_path / "again", expected)


def test_one_process_says_that_it_shards_nothing(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(
        tiny,
        runtime=replace(tiny.runtime, shard_optimizer=True),
        train=replace(tiny.train, output=str(tmp_path)),
    )
    trainer = Trainer(config)
    assert not isinstance(trainer.step.optimizer, ShardedOptimizer)
    assert "runtime.shard_optimizer=true changes nothing: the run has one process" in capsys.readouterr().out


if __name__ == "__main__":
    cli.run(lambda: run_rank(Path(sys.argv[1])))

"""A run's place among the samples: other ranks or batches go on there, other data does not, and changes are told."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_dataset, tiny_record
from mindspore import nn
from test_trainer import stand_in, with_run  # noqa: F401 - a fixture

from src.checkpoints.checkpoint import read_state
from src.checkpoints.files import STATE
from src.checkpoints.places import locate
from src.config import Config, ConfigError, ObjectivesConfig, SourceConfig, WeightsConfig
from src.data.pipeline import Loader
from src.data.writer import DatasetWriter
from src.training import trainer as loop
from src.training.continuation import data_identity, resume_place
from src.training.trainer import Trainer
from tests.oracles import tiny_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    made = tiny_dataset(
        tmp_path_factory.mktemp("data"), config=Config(model=tiny_model(dropout=0.1), objectives=objectives)
    )
    return with_data(made, batch_size=4)


@pytest.fixture(scope="module")
def mixed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two sources of which one comes round twice in an epoch, and images with up to two captions."""
    folder, rng = tmp_path_factory.mktemp("other") / "data", np.random.default_rng(5)
    with DatasetWriter(folder, config.model.audio, {}) as writer:
        for index in range(20):
            writer.add("train", replace(tiny_record(rng, 4 * index + 3, config.model.audio, 16), key=f"other-{index}"))
    listed = (SourceConfig(config.data.path, 2.0), SourceConfig(str(folder), 1.0))
    return with_data(config, path="", sources=listed)


def with_data(config: Config, **changes: Any) -> Config:
    return replace(config, data=replace(config.data, **changes))


def steps(config: Config, ranks: int, count: int, place: dict[str, Any]) -> tuple[list[list[int]], dict[str, Any]]:
    """The samples of some steps of all ranks, and the place behind them."""
    found: list[list[int]] = [[] for _ in range(count)]
    for rank in range(ranks):
        batches = Loader(config, "train", rank, ranks).batches(**place)
        for step, batch in zip(found, islice(batches, count), strict=True):
            step += batch["sample_id"].tolist()
        after = batches.place
        batches.close()
    return found, after


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize(("before", "after"), [((8, 1), (4, 1)), ((2, 4), (1, 5)), ((1, 3), (1, 8))])
def test_an_epoch_takes_each_sample_once_whatever_takes_them(
    config: Config, mixed: Config, unique: bool, sources: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Ranks and batch size change within the first epoch and within the third."""
    base = with_data(config if sources == 1 else mixed, unique_images=unique)
    loader = Loader(base, "train")
    order, images = loader.order, loader.sources.samples[:, 2]
    place: dict[str, Any] = {"position": 0, "postponed": []}
    taken: list[int] = []
    for (ranks, size), count in ((before, 2), (after, 13), (before, 4), (after, 16)):
        found, place = steps(with_data(base, batch_size=size), ranks, count, json.loads(json.dumps(place)))
        assert all(len(step) == ranks * size for step in found)
        assert not unique or all(len(set(images[step].tolist())) == len(step) for step in found)
        taken += sum(found, [])
    assert place["position"] == len(taken) > 2 * order.size
    waiting = [sample for sample, _ in place["postponed"]]
    assert unique or not waiting
    stream = np.concatenate([order.epoch(number)[0] for number in range(9)]).tolist()
    assert sorted(taken + waiting) == sorted(stream[: len(taken) + len(waiting)])
    if not unique:
        assert taken == stream[: len(taken)]


def test_ranks_and_batch_of_a_training_change_within_an_epoch(
    config: Config,
    stand_in: Callable,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "MeanOverRanks", lambda _: nn.Identity())
    seen, run = stand_in({}), with_run(config, tmp_path, steps=3, eval_every=0, save_every=3)
    for rank in (1, 0):
        Trainer(run, rank, 2).run()
    assert read_state(locate(tmp_path))["position"] == 24
    capsys.readouterr()
    resumed = with_run(with_data(config, batch_size=6), tmp_path, steps=8, eval_every=0, save_every=8)
    Trainer(resumed, resume=True).run()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since")]
    assert told == [
        f"changed since {tmp_path}/checkpoints/step-00000003: data.batch_size: 4 → 6, train.steps: 3 → 8, "
        "train.save_every: 3 → 8, ranks: 2 → 1"
    ]
    taken = np.concatenate(seen["batches"])
    assert len(taken) == 24 + 30 and read_state(locate(tmp_path))["position"] == 54
    assert (np.bincount(taken[:30]) == 1).all(), "of an epoch of 30"


def test_a_resumed_run_that_is_the_same_tells_nothing(
    config: Config,
    stand_in: Callable,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in({})
    run = with_run(config, tmp_path, eval_every=0)
    Trainer(run).run()
    capsys.readouterr()
    trainer = Trainer(run, resume=True)
    assert "changed" not in capsys.readouterr().out
    trainer.state["step"] = 5
    Trainer(replace(run, train=replace(run.train, log_every=2)), 1, 2, resume=True)
    assert "changed" not in capsys.readouterr().out, "rank 0 alone tells"


@pytest.mark.parametrize(("step", "position"), [(0, 0), (2, 16), (3, 30), (7, 68)])
def test_an_earlier_checkpoint_derives_its_position(
    config: Config,
    stand_in: Callable,  # noqa: F811
    tmp_path: Path,
    step: int,
    position: int,
) -> None:
    """Epochs were cut to full steps: 3 of 8 in 30 samples. What is left of the epoch is what was left of it."""
    stand_in({})
    eight = with_data(config, batch_size=8)
    Trainer(with_run(eight, tmp_path, steps=1, eval_every=0)).run()
    place = locate(tmp_path)
    state = {"step": step, "best": None}
    (place / STATE).write_text(json.dumps(state))
    (place / "manifest.json").unlink()
    trainer = Trainer(with_run(config, tmp_path, eval_every=0), resume=True)
    assert trainer.state["position"] == position and trainer.state["postponed"] == []


def test_other_data_is_refused_and_a_moved_folder_is_not(mixed: Config, tmp_path: Path) -> None:
    loader = Loader(mixed, "train")
    state = json.loads(json.dumps({"step": 3, "position": 12, "postponed": [[1, 0]], "data": data_identity(loader)}))
    first, second = mixed.data.sources
    moved = shutil.copytree(second.path, tmp_path / "moved")
    doubled = [replace(source, weight=2 * source.weight) for source in (first, replace(second, path=str(moved)))]

    def resume(*sources: SourceConfig) -> dict[str, Any]:
        return resume_place(state, Path("run"), Loader(with_data(mixed, sources=sources), "train"))

    assert resume(*doubled) == {"position": 12, "postponed": [[1, 0]]}
    for sources, message in (
        ((first,), "data.path and data.sources name 1 datasets, 2 in run, and the order of samples cannot change"),
        ((second, first), f"split 'train' of {second.path} is not the data that the run in run was trained with"),
        ((first, replace(second, weight=2.0)), r"data.sources\[0\].weight gives 35 samples in an epoch, 47 in run"),
    ):
        with pytest.raises(ConfigError, match=rf"^--resume: {message}.* \(train.init_from, another train.output\)$"):
            resume(*sources)

"""A run that was killed and goes on is the uninterrupted one to the bit, whatever it is made of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import kill_after, tiny_dataset

from src.checkpoints.files import EMA, MODEL, OPTIMIZER, read_tensors
from src.checkpoints.places import locate
from src.config import (
    Config,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    SourceConfig,
    TrainConfig,
    WeightsConfig,
)
from src.training.pace import TIMINGS
from src.training.trainer import Trainer
from tests.oracles import tiny_model

KINDS = "muon, unique images", "adamw, two sources, average", "muon, fp16 and its loss scale, in two parts"
STEPS, CUT = 5, 3  # with one source an epoch ends within the fourth step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two losses, dropout, and a corpus of an epoch that no step ends with."""
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, mlm=0.5))
    optimizer = OptimizerConfig(name="muon", lr=1e-3, warmup_steps=2)
    base = Config(model=tiny_model(dropout=0.1), objectives=objectives, optimizer=optimizer)
    made = tiny_dataset(tmp_path_factory.mktemp("data"), records=14, config=base)
    return replace(made, data=replace(made.data, batch_size=4), runtime=RuntimeConfig(mode="pynative"))


def kinds(config: Config) -> dict[str, Config]:
    """What a run may be made of."""
    other = Path(config.data.path).with_name("other")
    if not other.exists():
        shutil.copytree(config.data.path, other)
    sources = (SourceConfig(config.data.path, 2.0), SourceConfig(str(other), 1.0))
    unique = replace(config.data, unique_images=True)
    mixed = replace(unique, path="", sources=sources)
    return {
        "muon, unique images": replace(config, data=unique),
        "adamw, two sources, average": replace(
            config, data=mixed, optimizer=replace(config.optimizer, name="adamw"), train=TrainConfig(ema_decay=0.9)
        ),
        "muon, fp16 and its loss scale, in two parts": replace(
            config, runtime=replace(config.runtime, precision="fp16"), train=TrainConfig(accumulate=2)
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_uninterrupted_one(config: Config, kind: str, tmp_path: Path) -> None:
    run = kinds(config)[kind]
    settings = replace(run.train, steps=STEPS, log_every=1, save_every=1, keep_checkpoints=9)
    whole, cut = (replace(run, train=replace(settings, output=str(tmp_path / name))) for name in ("whole", "cut"))
    ms.set_seed(run.seed)
    Trainer(whole).run()
    kill_after(tmp_path / "whole", CUT, tmp_path / "cut")
    ms.set_seed(99)  # nothing may depend on it
    np.random.seed(99)
    Trainer(cut, resume=True).run()
    expected, found = (logged(tmp_path / name) for name in ("whole", "cut"))
    assert found == expected and len(found) == STEPS
    assert len({line["loss"] for line in expected}) == STEPS, "every step is another"
    places = [locate(tmp_path / name, whole=True) for name in ("whole", "cut")]
    for file in (MODEL, OPTIMIZER, *([EMA] if run.train.ema_decay else [])):
        theirs, ours = (read_tensors(place / file) for place in places)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{file}: {name}")


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]

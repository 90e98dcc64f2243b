"""A batch at which a step was not finite is told, kept and computed again, down to the sample."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from conftest import tiny_dataset
from mindspore import Tensor

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import CheckpointError
from src.checkpoints.places import latest_before
from src.config import Config, ObjectivesConfig, OptimizerConfig, TrainConfig, WeightsConfig
from src.data.errors import DataError
from src.data.store import Dataset
from src.models.build import build_model
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.training import bad_batches
from src.training.bad_batches import BatchError, note, read
from src.training.optimizer import trained_parameters
from src.training.rerun import Found, Rerun, _shown, _verdict
from src.training.step import NonFiniteError, StepResult, TrainingError, TrainStep
from src.training.trainer import Trainer
from tests.commands import command
from tests.oracles import VOCAB, feature_model, randomise, tiny_batch, tiny_model
from tools import rerun_batch

B = 4


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One objective, a look at the device every three steps."""
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    train = TrainConfig(output=str(tmp_path / "run"), steps=7, log_every=3, max_bad_steps=3)
    base = Config(model=tiny_model(dropout=0.1), objectives=objectives, optimizer=OptimizerConfig(warmup_steps=0))
    made = tiny_dataset(tmp_path / "data", config=replace(base, train=train))
    return replace(made, data=replace(made.data, batch_size=B))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int], int], list[dict[str, np.ndarray]]]:
    """Steps that train nothing and are not finite where they are told to be, and the batches that they took."""

    def install(bad: set[int], most: int = 99) -> list[dict[str, np.ndarray]]:
        batches: list[dict[str, np.ndarray]] = []

        def take(self: TrainStep, batch: dict[str, np.ndarray]) -> None:
            batches.append({name: array.copy() for name, array in batch.items()})

        def result(self: TrainStep) -> StepResult:
            ago = tuple(len(batches) - step for step in sorted(bad, reverse=True) if 0 <= len(batches) - step < 3)
            if len(bad & set(range(1, len(batches) + 1))) >= most:
                raise NonFiniteError("not finite: total", ago[0], most, ago)
            return StepResult({"total": 1.0}, {}, 1.0, 0.1, False, 1.0, len(bad), ago)

        monkeypatch.setattr(TrainStep, "__call__", take)
        monkeypatch.setattr(TrainStep, "result", result)
        return batches

    return install


def book(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bad_batches.jsonl").read_text().splitlines()]


def test_every_bad_step_is_noted_once_with_its_own_batch(
    config: Config, taken: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = taken({2, 3, 7})
    Trainer(config).run()
    run = Path(config.train.output)
    lines = book(run)
    assert [(line["step"], line["rank"]) for line in lines] == [(2, 0), (3, 0), (7, 0)]
    said = capsys.readouterr().out
    for line in lines:
        step, trained = line["step"], batches[line["step"] - 1]
        assert line["samples"] == trained["sample_id"].tolist()
        kept, *about = read(run / "bad_batches" / line["batch"])
        assert about == [step, 0] and kept.keys() == trained.keys()
        for name, array in trained.items():
            np.testing.assert_array_equal(kept[name], array, err_msg=name)
        assert said.count(f"step {step}: not finite, it updated nothing; its batch is kept") == 1


def test_a_look_between_two_log_lines_tells_nothing_twice(
    config: Config, taken: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    taken({1})
    Trainer(replace(config, train=replace(config.train, save_every=2))).run()
    assert len(book(Path(config.train.output))) == 1
    assert capsys.readouterr().out.count("step 1: not finite") == 1


def test_what_ends_a_run_is_noted(config: Config, taken: Callable) -> None:
    batches = taken({1, 2}, most=2)
    with pytest.raises(TrainingError, match=r"step 2 .*bad_batches\.jsonl"):
        Trainer(config).run()
    assert [line["samples"] for line in book(Path(config.train.output))] == [
        batch["sample_id"].tolist() for batch in batches[:2]
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (DataError("a.mindrecord: it is gone"), "a.mindrecord: it is gone"),
    ],
)
def test_a_batch_that_cannot_be_kept_ends_no_run(
    config: Config,
    taken: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Exception,
    told: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    taken({2})
    monkeypatch.setattr(bad_batches, "note", fail)
    Trainer(config).run()
    assert f"step 2: not finite, and not noted: {told}" in capsys.readouterr().out


def test_only_so_many_batches_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are noted; one that a resumed run meets again is not kept twice."""
    monkeypatch.setattr(bad_batches, "MOST_KEPT", 2)
    batch = {"sample_id": np.arange(3)}
    kept = [note(tmp_path, step, 0, batch) for step in (1, 2, 3, 2)]
    assert [place and place.name for place in kept] == [
        "step-00000001-rank-0.npz",
        "step-00000002-rank-0.npz",
        None,
        "step-00000002-rank-0.npz",
    ]
    assert note(tmp_path, 3, 1, batch) is not None, "each rank keeps its own"
    assert [line["step"] for line in book(tmp_path)] == [1, 2, 3, 2, 3]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all"])
def test_a_damaged_batch_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BatchError, match=r"x\.npz is no batch"):
        read(tmp_path / "x.npz")


def test_the_sample_is_found() -> None:
    """Features of one row are not finite: so are the losses that read them, and no other row alone."""
    model = feature_model()
    network = OPT(model, VOCAB)
    randomise(network, spread=0.1)
    objectives = Objectives(network, ObjectivesConfig(weights=WeightsConfig(contrastive=1.0)), B)
    rerun = Rerun(objectives, trained_parameters(network, objectives), (1, 0, 0))
    batch = tiny_batch(model, B) | {"sample_id": np.arange(B, dtype=np.int32)}
    batch["presence"][:] = 1
    clean = rerun(batch)
    assert clean.finite and not clean.gradients and clean.losses.keys() == {"total", "contrastive"}
    batch["audio"] = batch["audio"].astype(np.float32)
    batch["audio"][2, 0, 0] = np.inf
    found = rerun(batch)
    assert not found.finite and any("audio_encoder" in name for name in found.gradients)
    assert list(rerun.rows(batch)) == [True, True, False, True]


def test_the_command_tells_weights_from_data(
    config: Config, taken: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    taken({5})
    Trainer(config).run()
    run, before = Path(config.train.output), ms.get_context("mode")
    (kept,) = (run / "bad_batches").iterdir()
    monkeypatch.undo()
    with command(rerun_batch.main, tmp_path, monkeypatch, capsys) as call:
        code, _, errors = call(kept)
        assert code == 2 and "has no checkpoint before step 5" in errors
        keys: list[tuple[int, ...]] = []
        monkeypatch.setattr("src.training.rerun.set_key", lambda *key: keys.append(key))
        code, output, _ = call(kept, "--checkpoint", run)
        assert keys[0] == (config.seed, 0, 4), "dropout's masks are those of the fifth step"
        assert code == 0 and "step 5, rank 0, with the weights of" in output
        assert "gradients that are not finite: 0 of" in output and "those of then are the cause" in output
        model = build_model(config)
        bias = model.text_head.project.bias
        bias.set_data(Tensor(np.full(bias.shape, np.nan, np.float32)))
        save_checkpoint(run / "checkpoints", 4, config, model, state={"left_out": [], "absent": []})
        code, output, _ = call(kept)
        assert code == 0 and "no sample alone is finite: the weights are the cause" in output
        assert "contrastive  nan" in output
    ms.set_context(mode=before)
    with pytest.raises(CheckpointError):
        latest_before(run, 4)


def test_a_run_that_begins_again_forgets_those_of_the_earlier_one(config: Config, taken: Callable) -> None:
    run = Path(config.train.output)
    for bad, noted in (({5}, [5]), ({2}, [2])):
        taken(bad)
        Trainer(config).run()
        assert [line["step"] for line in book(run)] == noted
        assert [path.name for path in (run / "bad_batches").iterdir()] == [f"step-{noted[0]:08d}-rank-0.npz"]
        shutil.rmtree(run / "checkpoints")  # as a kill before the first one leaves it


@pytest.mark.parametrize("gone", [False, True])
def test_samples_are_told_by_their_records(config: Config, tmp_path: Path, gone: bool) -> None:
    """A record with two captions is two samples: the number of a sample is not that of its record."""

    class Again:
        rows = staticmethod(lambda batch: iter([True, False, True, False]))

    batch = {"sample_id": np.array([0, 4, 1, 5], np.int32)}
    dataset = Dataset(config.data.path, "train")
    names = [dataset.name(3 + place, one.key) for place, one in enumerate(dataset.read([3, 4]))]
    assert dataset.samples[3:6, 0].tolist() == [3, 3, 4]
    if gone:
        shutil.rmtree(config.data.path)
        names = ["of data that is not there"] * 2
    told = _verdict(Again(), Found({"total": np.nan}, [], 1), batch, config)
    assert told == f"samples that are not finite alone: 4 ({names[0]}), 5 ({names[1]})"


def test_a_batch_finite_row_by_row_blames_no_sample(config: Config) -> None:
    class Again:
        rows = staticmethod(lambda batch: iter([True, True]))

    batch = {"sample_id": np.array([1, 0], np.int32)}
    assert _verdict(Again(), Found({"total": np.inf}, [], 1), batch, config).endswith("not finite alone: none")
    assert "those of then are the cause" in _verdict(Again(), Found({"total": 1.0}, [], 1), batch, config)


def test_the_table_counts_what_is_not_finite() -> None:
    array = np.array([[1.5, np.nan, -2.0], [np.inf, 0.0, 3.0]])
    assert _shown(array) == ("[2, 3]", "-2", "3", "but 2")
    assert _shown(array[:, 2:]) == ("[2, 1]", "-2", "3", "yes")

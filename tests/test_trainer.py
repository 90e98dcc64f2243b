"""The loop around the steps: which checkpoint is the best, also of a resumed run, and in which state a step finds all.

Evaluation is a stand-in that says a metric for each step.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_after, tiny_dataset, tiny_record
from mindspore import nn
from safetensors.numpy import save_file

from src.checkpoints.checkpoint import read_state
from src.checkpoints.files import CheckpointError
from src.checkpoints.places import locate
from src.config import (
    CaptionConfig,
    Config,
    ConfigError,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    TranscriptConfig,
    WeightsConfig,
)
from src.data.errors import DataError
from src.data.pipeline import Batches, Loader
from src.data.writer import DatasetWriter
from src.evaluation.run import Evaluation
from src.models.dropout import Dropout
from src.tasks import registry
from src.training import trainer as loop
from src.training.step import StepResult, TrainStep
from src.training.trainer import Trainer
from tests.oracles import tiny_model

B = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One objective, and dropout."""
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    base = Config(model=tiny_model(dropout=0.1), objectives=objectives, optimizer=OptimizerConfig(warmup_steps=0))
    made = tiny_dataset(tmp_path_factory.mktemp("data"), config=base)
    return replace(made, data=replace(made.data, batch_size=B))


def with_run(config: Config, folder: Path, **train: Any) -> Config:
    settings = {"steps": 6, "log_every": 1, "save_every": 1, "eval_every": 2, "keep_checkpoints": 9}
    return replace(config, train=TrainConfig(output=str(folder), **(settings | train)))


Seen = dict[str, list[Any]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], Seen]:
    """Steps that train nothing, and an evaluation that finds what it is given for the run's n-th step."""

    def install(metrics: dict[int, float]) -> Seen:
        seen: Seen = {"steps": [], "evaluations": [], "splits": [], "batches": [], "results": []}

        def take(self: TrainStep, batch: dict[str, np.ndarray]) -> None:
            seen["steps"].append({cell.training for cell in dropouts(self.graph)})
            seen["batches"].append(batch["sample_id"].copy())

        def result(self: TrainStep) -> StepResult:
            seen["results"].append(len(seen["steps"]))
            return StepResult({"total": 1.0, "contrastive": 1.0}, {}, 1.0, 0.1, False, 1.0, 0)

        def measure(self: Evaluation, split: str, output: object, settings: Any, sheets: object) -> dict[str, Any]:
            seen["evaluations"].append({cell.training for cell in dropouts(self.engine.model)})
            seen["splits"].append((split, settings.rerank.top_k))
            return {"step": seen["first"][0] + len(seen["steps"])}

        monkeypatch.setattr(TrainStep, "__call__", take)
        monkeypatch.setattr(TrainStep, "result", result)
        monkeypatch.setattr(Evaluation, "run", measure)
        monkeypatch.setattr(Evaluation, "logged", lambda _, found: {"mean_R@1": metrics[found["step"]]})
        monkeypatch.setattr(Evaluation, "beside", lambda *_: {})
        seen["first"] = [0]
        return seen

    return install


def dropouts(cell: nn.Cell) -> list[nn.Cell]:
    found = [inner for _, inner in cell.cells_and_names() if isinstance(inner, Dropout)]
    assert found, "nothing to be switched off"
    return found


def bests(folder: Path) -> dict[str, Any]:
    """What ``best`` names, and the best metric that each checkpoint holds."""
    checkpoints = folder / "checkpoints"
    named = (checkpoints / "best").read_text().strip() if (checkpoints / "best").exists() else None
    return {"best": named, **{place.name: read_state(place)["best"] for place in sorted(checkpoints.glob("step-*"))}}


def test_the_best_is_the_highest_of_the_evaluated(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    stand_in({2: -3.0, 4: -1.0, 6: -2.0})  # decibels may be below zero
    Trainer(with_run(config, tmp_path)).run()
    found = bests(tmp_path)
    assert found["best"] == "step-00000004"
    values = [found[f"step-{step:08d}"] for step in range(1, 7)]
    assert values == [None, -3.0, -3.0, -1.0, -1.0, -1.0]


def test_of_equal_metrics_the_first_is_the_best(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    stand_in({2: 0.5, 4: 0.5, 6: 0.5})
    Trainer(with_run(config, tmp_path)).run()
    assert bests(tmp_path)["best"] == "step-00000002"


def test_an_earlier_best_does_not_stay_beside_the_kept_ones(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    stand_in({2: 0.3, 4: 0.6, 6: 0.5})
    Trainer(with_run(config, tmp_path / "a", keep_checkpoints=1)).run()
    assert bests(tmp_path / "a").keys() == {"best", "step-00000004", "step-00000006"}
    stand_in({2: 0.3, 4: 0.6, 6: 0.7})
    Trainer(with_run(config, tmp_path / "b", keep_checkpoints=1)).run()
    assert bests(tmp_path / "b").keys() == {"best", "step-00000006"}


def test_what_is_only_saved_is_never_the_best(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    stand_in({})
    Trainer(with_run(config, tmp_path, steps=2, eval_every=0)).run()
    assert bests(tmp_path) == {"best": None, "step-00000001": None, "step-00000002": None}


@pytest.mark.parametrize(("later", "best"), [({4: 0.4, 6: 0.49}, 2), ({4: 0.4, 6: 0.6}, 6)])
def test_a_resumed_run_knows_the_best_of_before(
    config: Config, stand_in: Callable, tmp_path: Path, later: dict[int, float], best: int
) -> None:
    """A later checkpoint is the best only if it beats what was measured before the interruption."""
    seen = stand_in({2: 0.5, **later})
    Trainer(with_run(config, tmp_path / "whole")).run()
    kill_after(tmp_path / "whole", 3, tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "best").write_text("step-00000002\n")
    seen["first"][0] = 3
    uninterrupted = seen["batches"][:]
    for part in ("steps", "batches"):
        seen[part].clear()
    Trainer(with_run(config, tmp_path / "cut"), resume=True).run()
    assert bests(tmp_path / "cut") == bests(tmp_path / "whole")
    assert bests(tmp_path / "cut")["best"] == f"step-{best:08d}"
    np.testing.assert_array_equal(np.stack(seen["batches"]), np.stack(uninterrupted[3:]))


def test_dropout_is_on_in_every_step_and_off_in_every_evaluation(
    config: Config, stand_in: Callable, tmp_path: Path
) -> None:
    seen = stand_in({2: 0.1, 4: 0.2, 6: 0.3})
    Trainer(with_run(config, tmp_path)).run()
    assert seen["steps"] == [{True}] * 6 and seen["evaluations"] == [{False}] * 3
    assert seen["splits"] == [(config.data.eval_split, 0)] * 3, "a glance at the held-out split"


def test_checkpoints_hold_the_words_and_answers_that_the_run_began_with(config: Config, tmp_path: Path) -> None:
    """Whatever becomes of the files that it read: of as many other words nothing would ever tell."""
    vocab, answers = tmp_path / "vocab.txt", tmp_path / "answers.txt"
    began = Path(config.model.text.vocab).read_bytes()
    vocab.write_bytes(began)
    answers.write_text("yes\nno\n")
    text = replace(config.model.text, vocab=str(vocab))
    config = replace(config, model=replace(config.model, text=text, answers=str(answers)))
    trainer = Trainer(with_run(config, tmp_path / "run", eval_every=0, steps=2))
    vocab.write_text("[PAD]\n[UNK]\n")
    answers.unlink()
    trainer.run()
    for step in (1, 2):
        folder = locate(f"{tmp_path / 'run'}@{step}")
        assert (folder / "vocab.txt").read_bytes() == began and (folder / "answers.txt").read_text() == "yes\nno\n"


def test_an_evaluation_that_would_measure_nothing_is_told_at_the_start(config: Config, tmp_path: Path) -> None:
    nothing = replace(config.eval, caption=CaptionConfig(max_items=0), transcript=TranscriptConfig(max_items=0))
    weights = ObjectivesConfig(weights=WeightsConfig(denoise_text=1.0))
    with pytest.raises(ConfigError, match="task=caption: eval leaves nothing of caption, transcription to measure"):
        Trainer(with_run(replace(config, task="caption", eval=nothing, objectives=weights), tmp_path))


def test_checkpoints_and_logs_are_written_when_due_and_at_the_end(
    config: Config, stand_in: Callable, tmp_path: Path
) -> None:
    """The last checkpoint and evaluation are those of the last step, also where they are not due."""
    stand_in({4: 0.3, 5: 0.2})
    Trainer(with_run(config, tmp_path, steps=5, save_every=3, eval_every=4, log_every=2)).run()
    assert bests(tmp_path).keys() == {"best", "step-00000003", "step-00000004", "step-00000005"}
    assert locate(tmp_path).name == "step-00000005"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5]
    assert [(line["step"], line["eval/mean_R@1"]) for line in lines if "eval/mean_R@1" in line] == [
        (4, 0.3),
        (5, 0.2),
    ]


def test_samples_per_second_are_those_of_training_alone(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes half a second here, an evaluation a hundred, a checkpoint ten."""
    stand_in({4: 0.3, 7: 0.3})
    clock = [0.0]

    def taking(owner: object, name: str, seconds: float) -> None:
        real = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    taking(TrainStep, "__call__", 0.5)
    taking(Evaluation, "run", 100.0)
    taking(loop.checkpoint, "save_checkpoint", 10.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    Trainer(with_run(config, tmp_path, steps=7, save_every=3, eval_every=4, log_every=2)).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "loss" in line]
    assert rates == [2 * B] * 4


def test_patience_ends_a_run_that_gets_no_better(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    """Counted in evaluations, also across an interruption; a resumed run that had ended stays so."""
    seen = stand_in({2: 0.5, 4: 0.3, 6: 0.6, 8: 0.6, 10: 0.1, 12: 0.9})
    run = with_run(config, tmp_path / "run", steps=12, patience=2)
    Trainer(run).run()
    assert len(seen["steps"]) == 10 and bests(tmp_path / "run")["best"] == "step-00000006"
    seen["first"][0] = 10
    seen["steps"].clear()
    Trainer(run, resume=True).run()
    assert not seen["steps"]
    kill_after(tmp_path / "run", 8, tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "best").write_text("step-00000006\n")
    seen["first"][0] = 8
    Trainer(replace(run, train=replace(run.train, output=str(tmp_path / "cut"))), resume=True).run()
    assert len(seen["steps"]) == 2


def test_an_evaluation_that_fails_costs_no_patience(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    seen = stand_in({2: 0.5, 4: 0.3, 8: 0.2})  # of step 6 nothing is known
    Trainer(with_run(config, tmp_path, steps=12, patience=2)).run()
    assert len(seen["steps"]) == 8


def test_the_best_metric_is_the_users_choice(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stand_in({})
    loss = {2: 0.1, 4: 0.9, 6: 0.5}
    monkeypatch.setattr(Evaluation, "logged", lambda _, at: {"mean_R@1": 1 - loss[at["step"]], "mrr": loss[at["step"]]})
    Trainer(with_run(config, tmp_path / "other", best_metric="mrr")).run()
    assert bests(tmp_path / "other")["best"] == "step-00000004"
    seen["steps"].clear()
    Trainer(with_run(config, tmp_path / "own")).run()
    assert bests(tmp_path / "own")["best"] == "step-00000002"
    seen["steps"].clear()
    monkeypatch.setattr(Evaluation, "logged", lambda *_: {})  # a split in which there is nothing to measure
    Trainer(with_run(config, tmp_path / "nothing", best_metric="mrr")).run()
    assert bests(tmp_path / "nothing").get("best") is None
    seen["steps"].clear()
    monkeypatch.setattr(Evaluation, "logged", lambda *_: {"mean_R@1": 0.5, "mrr": 0.5})
    with pytest.raises(ConfigError, match="train.best_metric=none is not measured: choose of mean_R@1, mrr"):
        Trainer(with_run(config, tmp_path / "wrong", best_metric="none")).run()


@pytest.mark.parametrize("what", ["checkpoint", "evaluation"])
def test_a_full_disk_costs_the_run_nothing_but_what_it_does_not_take(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, what: str
) -> None:
    """The earlier checkpoint is whole; the next one is written when there is room again."""
    stand_in({2: 0.5, 4: 0.7, 6: 0.6})
    name = "save_checkpoint" if what == "checkpoint" else "note_evaluation"
    real, calls = getattr(loop.checkpoint, name), []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise CheckpointError("cannot write it: No space left on device")
        return real(*args)

    monkeypatch.setattr(loop.checkpoint, name, full)
    Trainer(with_run(config, tmp_path, save_every=100)).run()
    said = capsys.readouterr().out
    assert said.count("training goes on: cannot write it: No space left on device") == 1
    found = bests(tmp_path)
    there = {"step-00000002", "step-00000006"} | ({"step-00000004"} if what == "evaluation" else set())
    assert found.keys() - {"best"} == there and found["best"] == "step-00000002"
    assert found["step-00000006"] == 0.7, "what was found is known, whether or not it could be noted"


def no_room(*_: Any) -> None:
    raise CheckpointError("cannot write it: No space left on device")


def test_a_disk_that_stays_full_is_an_error_at_the_end(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stand_in({})
    monkeypatch.setattr(loop.checkpoint, "save_checkpoint", no_room)
    with pytest.raises(CheckpointError, match="No space left"):
        Trainer(with_run(config, tmp_path, eval_every=0)).run()
    assert len(seen["steps"]) == 6, "not before there is nothing left to train"


def test_auto_begins_and_goes_on(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    seen = stand_in({})
    run = with_run(config, tmp_path / "run", steps=3, eval_every=0)
    Trainer(run, resume="auto").run()
    assert len(seen["steps"]) == 3
    Trainer(replace(run, train=replace(run.train, steps=5)), resume="auto").run()
    assert len(seen["steps"]) == 5
    for place in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (place / "vocab.txt").write_text("another\n")
    with pytest.raises(CheckpointError, match="is damaged"):  # which is no reason to begin anew
        Trainer(run, resume="auto")


def test_a_run_that_has_more_steps_is_left_as_it_is(
    config: Config, stand_in: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, run = stand_in({}), with_run(config, tmp_path, steps=4, eval_every=0)
    Trainer(run).run()
    settings = (tmp_path / "config.yaml").read_bytes()
    Trainer(replace(run, train=replace(run.train, steps=3)), resume=True).run()
    assert f"{locate(tmp_path)} has more steps than train.steps=3: nothing is trained" in capsys.readouterr().out
    assert len(seen["steps"]) == 4 and (tmp_path / "config.yaml").read_bytes() == settings
    Trainer(run, resume=True).run()
    assert len(seen["steps"]) == 4 and "more steps" not in capsys.readouterr().out


def test_resume_refuses_objectives_that_train_other_parts(config: Config, stand_in: Callable, tmp_path: Path) -> None:
    """By the setting's name; weights that only become larger or smaller are taken."""
    stand_in({})

    def run(**weights: float) -> Config:
        weighed = replace(config, objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, **weights)))
        return with_run(weighed, tmp_path / "run", steps=2, eval_every=0)

    Trainer(run(mlm=1.0)).run()
    Trainer(run(mlm=0.5), resume=True)
    for weights, changed in (
        ({"mlm": 0.5, "denoise_text": 0.5}, "objectives.weights.denoise_text=0.5"),
        ({}, "objectives.weights.mlm=0.0"),
    ):
        with pytest.raises(ConfigError, match=f"^--resume: with {changed} other parts are trained than by the run in "):
            Trainer(run(**weights), resume=True)
    optimizer = locate(tmp_path / "run") / "optimizer.safetensors"
    (optimizer.parent / "manifest.json").unlink()
    save_file({"adam_step": np.zeros((), np.int32)}, optimizer)
    with pytest.raises(CheckpointError, match="another model wrote it"):
        Trainer(run(mlm=0.5), resume=True)


@pytest.mark.parametrize("save_every", [100, 4, 3])
def test_data_that_are_gone_cost_no_step(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    """What was done is saved, unless it was a moment ago."""
    stand_in({})
    made, checkpoints, calls = Loader._make, [], []

    def gone(self: Loader, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise DataError("the mount is gone")
        return made(self, *args, **options)

    monkeypatch.setattr(Loader, "_make", gone)
    save = loop.checkpoint.save_checkpoint
    monkeypatch.setattr(loop.checkpoint, "save_checkpoint", lambda *args: checkpoints.append(args[1]) or save(*args))
    run = with_run(config, tmp_path, save_every=save_every, eval_every=0)
    with pytest.raises(DataError, match="the mount is gone"):
        Trainer(run).run()
    assert checkpoints == {100: [4], 4: [4], 3: [3, 4]}[save_every]
    assert read_state(locate(tmp_path))["step"] == 4


@pytest.mark.parametrize("split", ["dev", "absent"])
def test_all_ranks_save_at_the_same_steps(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Each gives its part of a sharded optimiser, also where rank 0 alone goes on to evaluate."""
    monkeypatch.setattr(loop, "MeanOverRanks", lambda _: nn.Identity())
    config = replace(config, data=replace(config.data, eval_split=split))
    saved: dict[int, list[int]] = {0: [], 1: []}
    for rank, steps in saved.items():
        seen = stand_in({2: 0.1, 4: 0.2, 6: 0.3})
        monkeypatch.setattr(TrainStep, "whole_state", lambda _, to=steps, of=seen: to.append(len(of["steps"])) or {})
        Trainer(with_run(config, tmp_path / f"{rank}", save_every=5), rank=rank, ranks=2).run()
    assert saved[0] == saved[1] == ([2, 4, 5, 6] if split == "dev" else [5, 6])


def test_all_ranks_evaluate_and_only_rank_0_writes(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MeanOverRanks", lambda _: nn.Identity())
    seen = stand_in({2: 0.1, 4: 0.2, 6: 0.3})
    second = Trainer(with_run(config, tmp_path / "run"), rank=1, ranks=2)
    second.run()
    assert not (tmp_path / "run").exists() and len(seen["steps"]) == 6 and len(seen["evaluations"]) == 3
    other = np.concatenate(seen["batches"])
    seen["batches"].clear()
    first = Trainer(with_run(config, tmp_path / "first", eval_every=0), rank=0, ranks=2)
    first.run()
    assert not set(np.concatenate(seen["batches"])[: 2 * B]) & set(other[: 2 * B]), "ranks share no sample of a step"
    assert first.step.mask_seed != second.step.mask_seed, "each rank drops something else"


@pytest.mark.parametrize("step", [4, 6])
def test_a_signal_in_an_evaluation_is_told(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also where all steps are done: the run is not, and who resumes it evaluates first."""
    metrics = {2: 0.1, 4: 0.2, 6: 0.3}
    seen, measure = stand_in(metrics), Evaluation.run

    def interrupted(self: Evaluation, *arguments: object) -> dict[str, Any]:
        found = measure(self, *arguments)
        if found["step"] == step:
            signal.raise_signal(signal.SIGTERM)
        return found

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "run", interrupted)
        assert Trainer(with_run(config, run)).run() == signal.SIGTERM
    assert len(seen["steps"]) == step == read_state(locate(run))["step"]
    assert read_state(locate(run))["evaluation_due"] and bests(run)["best"] == f"step-{step - 2:08d}"
    seen = stand_in(metrics)
    seen["first"][0] = step
    assert Trainer(with_run(config, run), resume=True).run() is None
    assert len(seen["evaluations"]) == 1 + (6 - step) // 2 and len(seen["steps"]) == 6 - step
    assert bests(run)["best"] == "step-00000006"


def test_a_stop_that_cannot_be_saved_is_an_error(
    config: Config, stand_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in({})

    monkeypatch.setattr(loop.checkpoint, "save_checkpoint", no_room)
    trainer = Trainer(with_run(config, tmp_path, eval_every=0, save_every=100))
    trainer.stop.asked = True
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.run()


def test_ranks_stop_at_the_same_step(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who learns that one is asked says so with its next step, and ends when all have said it."""
    monkeypatch.setattr(loop, "MeanOverRanks", lambda _: nn.Identity())
    trainer = Trainer(with_run(config, tmp_path, eval_every=0), rank=1, ranks=2)
    result = StepResult({"total": 1.0}, {}, 1.0, 0.1, False, None, 0)
    assert not trainer._agree_to_stop(result) and not trainer.stop.asked
    assert not trainer._agree_to_stop(replace(result, stopping=0.5)) and trainer.stop.asked
    assert trainer._agree_to_stop(replace(result, stopping=1.0))


def test_the_split_is_looked_for_where_it_is_read(config: Config, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "alone", config.model.audio, {"name": "no held-out split"}) as writer:
        for index in range(2 * B):
            record = tiny_record(np.random.default_rng(index), index, config.model.audio, config.model.image.size)
            writer.add("train", record)

    def evaluates(path: str, eval_path: str) -> bool:
        data = replace(config.data, path=path, eval_path=eval_path)
        return Trainer(with_run(replace(config, data=data), tmp_path / "run")).evaluates

    alone, both = str(tmp_path / "alone"), config.data.path
    assert evaluates(alone, both) and evaluates(both, "") and not evaluates(both, alone) and not evaluates(alone, "")


def test_the_best_is_judged_by_the_mean_of_what_a_split_has() -> None:
    """Of the task's metrics; by nothing where it has none of them."""
    task = registry.get("speech_to_text")
    (plain, seen), config = task.best_by, ObjectivesConfig()
    assert task.best_metric({plain: 0.2, seen: 0.6, "other": 9.0}, config) == pytest.approx(0.4)
    assert task.best_metric({seen: 0.6}, config) == 0.6 and task.best_metric({"other": 9.0}, config) is None


def test_waiting_for_data_is_told(
    config: Config,
    stand_in: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A step takes a second here; a batch takes as long, or a tenth of it."""
    stand_in({})
    clock, seconds = [0.0], [1.0]
    real = Batches.__next__

    def slow(batches: Batches) -> Any:
        clock[0] += seconds[0]
        return real(batches)

    def take(*_: object) -> None:
        clock[0] += 1.0

    monkeypatch.setattr(Batches, "__next__", slow)
    monkeypatch.setattr(TrainStep, "__call__", take)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    for batch, share, told in ((1.0, 0.5, 1), (0.1, 0.091, 0)):
        seconds[0] = batch
        folder = tmp_path / str(batch)
        Trainer(with_run(config, folder, steps=8, log_every=2, save_every=8, eval_every=0)).run()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["data_wait"] for line in lines] == [share] * 4
        assert capsys.readouterr().out.count("step 6: warning: waiting_for_data: 50 % of the time") == told

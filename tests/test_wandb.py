"""Weights & Biases: imported only if it is wanted, told if it is not there, and never what ends a run."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_training_evaluation import CONTRASTIVE, corpus, with_run

from src.config import Config, ConfigError, OptimizerConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.training import wandb_log
from src.training.board import Shown
from src.training.log import RunLog
from src.training.trainer import Trainer
from src.training.wandb_log import require_wandb
from tests.oracles import tiny_model

ROOT = Path(__file__).parent.parent


class Remote:
    """A stand-in for the package: what it was told."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.alerts: list[str] = []
        self.finished = 0
        self.dir = "somewhere"

    def init(self, **options: Any) -> "Remote":
        self.begun.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def alert(self, title: str, text: str) -> None:
        self.alerts.append(f"{title}: {text}")

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    found = Remote()
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(origin="wandb/__init__.py")
    module.init, module.Image = (lambda **options: found.init(**options)), (lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    base = Config(model=tiny_model(), objectives=CONTRASTIVE, optimizer=OptimizerConfig(warmup_steps=0))
    return corpus(tmp_path_factory.mktemp("data"), {TEXT, IMAGE, AUDIO}, base)


def wanting(config: Config, folder: Path, **train: Any) -> Config:
    run = with_run(config, folder, eval_every=0, log_samples=True, **train)
    return replace(run, train=replace(run.train, wandb="opt"))


def test_it_is_not_imported_unless_it_is_wanted() -> None:
    code = "import sys, src.training.trainer; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert Config().train.wandb == ""


def test_a_missing_package_is_told_before_anything_is_built(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every rank, so that none waits; a folder that a run of it left behind is no package."""
    find = importlib.util.find_spec
    for missing in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, found=missing: found if name == "wandb" else find(name)
        )
        for rank in (0, 1):
            with pytest.raises(ConfigError, match=r"^train.wandb=opt: .*pip install -r requirements-wandb.txt") as told:
                Trainer(wanting(config, tmp_path / "run"), rank, 2)
            assert "\n" not in str(told.value)
        require_wandb(config)
    assert not (tmp_path / "run").exists()
    assert "wandb==" in (ROOT / "requirements-wandb.txt").read_text()


def test_a_run_is_logged_and_a_resumed_one_goes_on_as_the_same(config: Config, tmp_path: Path, remote: Remote) -> None:
    run = wanting(config, tmp_path / "run", steps=2)
    Trainer(run).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    numbers = [(step, values) for step, values in remote.logged if "loss" in values]
    assert [{"step": step, **values} for step, values in numbers] == lines and len(lines) == 2
    size = config.model.image.size
    assert (1, {"first_batch/image": (size, 4 * size, 3)}) in [
        (step, {name: shape for name, shape in values.items() if name == "first_batch/image"})
        for step, values in remote.logged
    ]
    (begun,) = remote.begun
    assert begun["project"] == "opt" and begun["dir"] == str(tmp_path / "run") and begun["resume"] == "allow"
    assert begun["config"]["train"]["steps"] == 2 and remote.finished == 1
    Trainer(replace(run, train=replace(run.train, steps=3)), resume=True).run()
    assert remote.begun[1]["id"] == begun["id"] and remote.logged[-1][0] == 3


def test_a_run_that_begins_again_is_another_one(tmp_path: Path, config: Config, remote: Remote) -> None:
    """It was killed before its first checkpoint: the steps of the earlier one would not be taken a second time."""
    for first_step in (0, 0, 2):
        RunLog(tmp_path, first_step, 4, True, wanting(config, tmp_path)).close()
    first, again, resumed = (begun["id"] for begun in remote.begun)
    assert first != again == resumed


def test_other_ranks_log_nothing(config: Config, tmp_path: Path, remote: Remote) -> None:
    log = RunLog(tmp_path, 0, 2, False, wanting(config, tmp_path))
    log.write(1, {"loss": 1.0})
    log.show(1, Shown())
    log.close()
    assert not remote.begun and not remote.logged and not list(tmp_path.iterdir())


def test_warnings_are_alerts(config: Config, tmp_path: Path, remote: Remote) -> None:
    log = RunLog(tmp_path, 0, 9, True, wanting(config, tmp_path))
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": 1.0, "data_wait": 0.5})
    log.close()
    assert [alert.partition(" %")[0] for alert in remote.alerts] == ["waiting_for_data: step 3: 50"]


@pytest.mark.parametrize("broken", ["init", "log", "alert", "finish"])
def test_its_failures_end_nothing(
    config: Config,
    tmp_path: Path,
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
) -> None:
    """They are told once; the run's own log is whole."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no connection\nfor you")

    monkeypatch.setattr(remote, broken, fail)
    log = RunLog(tmp_path, 0, 9, True, wanting(config, tmp_path))
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": 1.0, "data_wait": 0.5})
    log.show(4, Shown({"image": np.zeros((2, 2, 3), np.uint8)}))
    log.close()
    said = capsys.readouterr().out
    assert said.count("not logged to Weights & Biases: no connection: training goes on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_end_of_a_run_waits_only_so_long(
    config: Config,
    tmp_path: Path,
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = threading.Event()
    monkeypatch.setattr(remote, "finish", release.wait)
    monkeypatch.setattr(wandb_log, "PATIENCE", 0.01)
    RunLog(tmp_path, 0, 9, True, wanting(config, tmp_path)).close()
    release.set()
    assert "wandb sync somewhere" in capsys.readouterr().out

"""The ablation's plumbing, with a recorder in place of the commands."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.ablation import Row, RowError, look_up
from src import cli
from src.config import OBJECTIVES, load_config

METRICS = {
    "retrieval": {"text_to_image": {"R@1": 0.25}, "audio_to_text": {"R@1": 0.5}},
    "caption": {"facts_right": 0.125, "facts": {"colours": 0.75}},
    "image_generation": {"text": {"R@1": 0.0625, "R@10": 0.3}},
    "masked": {"mlm_accuracy": 0.375, "mlm_chance": 0.125, "frame_cosine": 0.5, "confusion": [[1]]},
}


class Recorder:
    """Trains and evaluates nothing: writes the commands down and leaves what they would; fails where it is told to."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.fail_at = ""

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(tuple(command))
        words = list(command)
        if words[0] == "train.py":
            folder = Path(next(word for word in words if word.startswith("train.output="))[13:])
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / "latest").touch()
        elif words[0] != self.fail_at:
            place = Path(words[words.index("--output") + 1])
            place.mkdir(parents=True)
            (place / "metrics.json").write_text(json.dumps(METRICS))
        return 3 if words[0] == self.fail_at else 0


@pytest.fixture
def run() -> Recorder:
    return Recorder()


def row(folder: Path, run: Recorder, name: str = "without MVM", *settings: str) -> Row:
    return Row(name, "config/pretrain/demo.yaml", folder / "row", (*ablation.SMALL, *settings), run)


def test_every_objective_is_left_out_once() -> None:
    left_out = [name for names in ablation.VARIANTS.values() for name in names]
    assert sorted(left_out) == sorted(OBJECTIVES)


def test_a_row_trains_without_and_measures_with(tmp_path: Path, run: Recorder) -> None:
    assert row(tmp_path, run).metrics()["retrieval"] == METRICS["retrieval"]
    train, measure = run.commands
    settings = [word for word in train if "=" in word]
    objectives = load_config("config/pretrain/demo.yaml", settings).objectives
    assert (objectives.weights.mvm_code, objectives.weights.mvm_feature) == (0, 0) and objectives.weights.mlm > 0
    config = load_config("config/pretrain/demo.yaml", [word for word in measure if "=" in word])
    assert config.objectives.weights.mvm_code > 0
    assert config.eval.rerank.top_k == 0 and config.eval.retrieval.gallery_size == 500
    assert measure[measure.index("--checkpoint") + 1] == str(tmp_path / "row")


def test_a_finished_row_is_not_repeated_and_keeps_its_minutes(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 6000, 60))
    monkeypatch.setattr(ablation.time, "monotonic", lambda: float(next(seconds)))  # every command takes a minute
    assert row(tmp_path, run).metrics()["minutes"] == 2.0
    assert row(tmp_path, run).metrics()["minutes"] == 2.0
    assert len(run.commands) == 2


def test_an_interrupted_row_goes_on(tmp_path: Path, run: Recorder) -> None:
    run.fail_at = "eval.py"
    with pytest.raises(RowError, match="without MVM: eval.py failed with exit code 3; the same call goes on"):
        row(tmp_path, run).metrics()
    run.fail_at = ""
    row(tmp_path, run).metrics()
    assert [command[-1] == "--resume" for command in run.commands] == [False, False, True, False]


def test_other_settings_start_anew(tmp_path: Path, run: Recorder) -> None:
    row(tmp_path, run).metrics()
    row(tmp_path, run, "without MVM", "train.steps=201").metrics()
    assert len(run.commands) == 4 and not any("--resume" in command for command in run.commands)


def test_another_folder_is_left_as_it_is(tmp_path: Path, run: Recorder) -> None:
    (tmp_path / "row").mkdir()
    with pytest.raises(RowError, match="no row of an ablation"):
        row(tmp_path, run).metrics()
    assert not run.commands


def test_table(tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "table.md"
    arguments = ["--output", str(tmp_path / "out"), "--markdown", str(file), "train.steps=50"]
    monkeypatch.setattr(sys, "argv", ["ablation", *arguments, "--rows", "complete", "without MLM"])
    ablation.main(run)
    assert "without MLM" in capsys.readouterr().out
    header, _, first, second, _, caption = file.read_text(encoding="utf-8").splitlines()
    cells = dict(zip(header.split(" | "), first.split(" | "), strict=True))
    assert cells["t→i R@1"] == "0.25" and cells["generated R@1"] == "0.06" and cells["Δ words"] == "0.25"
    assert cells["Δ codes"] == cells["Δ audio"] == "–"
    assert second.startswith("| without MLM |") and "benchmarks.ablation" in caption and "train.steps=50" in caption
    assert (tmp_path / "out" / "without-MLM" / "row.json").is_file()


def test_a_wrong_setting_is_one_line(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation", "--output", str(tmp_path / "out"), "train.step=5"])
    with pytest.raises(SystemExit):
        cli.run(lambda: ablation.main(run))
    assert capsys.readouterr().err.startswith("error: unknown key train.step=5") and not run.commands


def test_a_missing_metric_is_none() -> None:
    assert look_up(METRICS, ("masked", "confusion")) is None
    assert look_up(METRICS, ("image_generation", "speech", "R@1")) is None

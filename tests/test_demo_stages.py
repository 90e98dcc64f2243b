"""The demo's stages, with a recorder in place of the commands."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from src.config import OBJECTIVES, ConfigError, load_config
from src.demo import stages as demo
from src.demo.stages import Command, Stage, StageError, build_stages, run_stages
from src.files import ROOT


class Recorder:
    """Runs nothing: writes the commands down, makes what the stage's folder would hold, fails where it is told to."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.calls: list[int] = []  # how many commands each call ran side by side
        self.fail_at = ""
        self.checkpoint = False

    def __call__(self, *commands: Command) -> int:
        self.calls.append(len(commands))
        return max(map(self.note, commands))

    def note(self, command: Command) -> int:
        self.commands.append(command)
        folder = Path(command[1])
        folder.mkdir(exist_ok=True)
        (folder / "leftover").touch()
        if self.checkpoint:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "latest").touch()
        return 7 if command[0] == self.fail_at else 0

    def names(self) -> list[str]:
        """Which commands ran since the last question."""
        names = [command[0] for command in self.commands]
        self.commands.clear()
        return names


@pytest.fixture
def run() -> Recorder:
    return Recorder()


def chain(folder: Path, **settings: str) -> list[Stage]:
    """first → second, third; a setting changes the command of the stage of that name."""

    def stage(name: str, *after: str) -> Stage:
        changed = (settings[name],) if name in settings else ()
        return Stage(name, ((name, str(folder / name), *changed),), (folder / name,), after)

    return [stage("first"), stage("second", "first"), stage("third", "first")]


def test_finished_stages_are_not_repeated(tmp_path: Path, run: Recorder, capsys: pytest.CaptureFixture):
    run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == ["first", "second", "third"]
    capsys.readouterr()
    run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == []
    assert "[2/3] second: finished before" in capsys.readouterr().out


def test_a_changed_command_runs_again_with_what_depends_on_it(tmp_path: Path, run: Recorder):
    run_stages(chain(tmp_path), tmp_path, run)
    run.names()
    run_stages(chain(tmp_path, second="x"), tmp_path, run, restart=True)
    assert run.names() == ["second"]
    run_stages(chain(tmp_path, second="x", first="y"), tmp_path, run, restart=True)
    assert run.names() == ["first", "second", "third"]


def test_a_changed_configuration_runs_again(tmp_path: Path, run: Recorder):
    (tmp_path / "parent.yaml").write_text("train: {steps: 70}\n")
    config = tmp_path / "config.yaml"
    config.write_text("base: parent.yaml\n")
    command = ("train.py", str(tmp_path / "run"), "--config", str(config), "seed=3")
    stages = [Stage("only", (command,), (tmp_path / "run",))]
    run_stages(stages, tmp_path, run)
    run_stages(stages, tmp_path, run)
    assert len(run.names()) == 1
    (tmp_path / "parent.yaml").write_text("train: {steps: 71}\n")
    run_stages(stages, tmp_path, run, restart=True)
    assert len(run.names()) == 1


def test_a_wrong_configuration_stops_before_anything_runs(tmp_path: Path, run: Recorder):
    broken = Stage("last", (("train.py", str(tmp_path / "run"), "--config", "no/such.yaml"),), (tmp_path / "run",))
    with pytest.raises(ConfigError, match="no/such.yaml"):
        run_stages([*chain(tmp_path), broken], tmp_path, run)
    assert run.names() == []


def test_a_missing_folder_is_made_again(tmp_path: Path, run: Recorder):
    run_stages(chain(tmp_path), tmp_path, run)
    run.names()
    (tmp_path / "third" / "leftover").unlink()
    (tmp_path / "third").rmdir()
    run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == ["third"]


@pytest.mark.parametrize("earlier", [(), chain(Path("usual"))], ids=["as an earlier version noted it", "now"])
def test_a_folder_is_known_however_it_is_spelled(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch, earlier: Sequence[Stage]
) -> None:
    """Otherwise finished stages would be emptied, and hours of training with them."""
    usual, spelled = chain(Path("usual")), Path(tmp_path.name)
    monkeypatch.chdir(tmp_path.parent)
    run_stages(chain(spelled), spelled, run, earlier)
    assert run.names() == ["first", "second", "third"]
    run_stages(chain(spelled), spelled, run, usual)
    assert run.names() == []
    if earlier:
        run_stages(chain(tmp_path), tmp_path, run, usual)
        assert run.names() == []
        tmp_path.rename(tmp_path.with_name("moved"))
        run_stages(chain(tmp_path.with_name("moved")), tmp_path.with_name("moved"), run, usual)
        assert run.names() == []
        tmp_path.with_name("moved").rename(tmp_path)
    run_stages(chain(spelled, second="x"), spelled, run, chain(Path("usual"), second="x"), restart=True)
    assert run.names() == ["second"]


def test_a_failure_stops_with_the_name_of_the_stage(tmp_path: Path, run: Recorder):
    run.fail_at = "second"
    with pytest.raises(StageError, match="stage second failed with exit code 7"):
        run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == ["first", "second"]
    run.fail_at = ""
    run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == ["second", "third"]


def interrupt(tmp_path: Path, run: Recorder) -> None:
    run.fail_at, run.checkpoint = "second", True
    with pytest.raises(StageError):
        run_stages(chain(tmp_path), tmp_path, run)
    run.names()
    run.fail_at = ""


def test_an_interrupted_training_goes_on(tmp_path: Path, run: Recorder):
    interrupt(tmp_path, run)
    run_stages(chain(tmp_path), tmp_path, run)
    assert [command[-1] for command in run.commands] == ["--resume", str(tmp_path / "third")]


def test_an_interrupted_training_with_other_settings_starts_anew(tmp_path: Path, run: Recorder):
    interrupt(tmp_path, run)
    (tmp_path / "second" / "of the old run").touch()
    with pytest.raises(StageError, match=r"\(second\): .* --restart"):
        run_stages(chain(tmp_path, second="x"), tmp_path, run)
    assert (tmp_path / "second" / "of the old run").exists() and run.names() == []
    run_stages(chain(tmp_path, second="x"), tmp_path, run, restart=True)
    assert run.commands[0][-1] == "x"
    assert not (tmp_path / "second" / "of the old run").exists()


@pytest.mark.parametrize("name", ["first", "third"])
def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path: Path, run: Recorder, name: str):
    """Said before anything has run, whichever stage it would be in the way of."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").touch()
    with pytest.raises(StageError, match="not from a demo run"):
        run_stages(chain(tmp_path), tmp_path, run)
    assert (tmp_path / name / "thesis.txt").exists() and run.names() == []


def test_minutes_are_kept_and_those_of_an_interrupted_training_add_up(
    tmp_path: Path, run: Recorder, monkeypatch: pytest.MonkeyPatch
):
    seconds = iter(range(0, 6000, 60))
    monkeypatch.setattr(demo.time, "monotonic", lambda: float(next(seconds)))  # every command takes a minute
    interrupt(tmp_path, run)
    expected = {"first": 1.0, "second": 2.0, "third": 1.0}
    assert run_stages(chain(tmp_path), tmp_path, run) == expected
    assert run_stages(chain(tmp_path), tmp_path, run) == expected


@pytest.mark.parametrize("fast", [False, True])
def test_stages_name_what_exists_and_each_other(fast: bool):
    """Every configuration loads with the stage's settings, and a stage reads what an earlier one made."""
    stages = build_stages(Path("out"), "demo", fast)
    made = {stage.name: str(stage.folders[0]) for stage in stages}
    for stage in stages:
        for command in stage.commands:
            if "--config" not in command:
                continue  # make_image_codes.py
            config = command[command.index("--config") + 1]
            resolved = load_config(config, [word for word in command if "=" in word])
            if stage.name in demo.TRAININGS:
                assert (resolved.data.path, resolved.train.output) == (made["data"], made[stage.name])
                earlier = {"retrieval": "pretrain", "caption": "retrieval", "text_to_image": "pretrain"}
                assert resolved.train.init_from == made.get(earlier.get(stage.name, ""), "")
                assert (resolved.train.steps <= 20) == fast
            assert Path(command[0]).is_file() and Path(command[0]).is_absolute()
            if any(name in (stage.name, Path(config).parent.name) for name in ("pretrain", "text_to_image")):
                assert resolved.data.codes == made["image_tokenizer"]
            if "--checkpoint" in command:
                assert command[command.index("--checkpoint") + 1] in {made[name] for name in demo.TRAININGS}


def test_the_demo_pre_trains_with_every_objective():
    for world in ("demo", "demo_full"):
        weights = load_config(f"config/pretrain/{world}.yaml").objectives.weights
        assert all(getattr(weights, name) > 0 for name in set(OBJECTIVES) - {"mvm_class"}), world


def test_only_the_first_command_of_a_stage_is_resumed(tmp_path: Path, run: Recorder):
    """The image tokenizer's stage trains, then makes the codes of images."""
    folder = tmp_path / "both"
    stages = [Stage("both", (("train", str(folder)), ("codes", str(folder))), (folder,))]
    run.fail_at, run.checkpoint = "codes", True
    with pytest.raises(StageError):
        run_stages(stages, tmp_path, run)
    assert run.names() == ["train", "codes"]
    run.fail_at = ""
    run_stages(stages, tmp_path, run)
    assert run.commands == [("train", str(folder), "--resume"), ("codes", str(folder))]


def test_commands_side_by_side(tmp_path: Path, run: Recorder):
    folders = tmp_path / "evaluation", tmp_path / "export"
    commands = tuple((folder.name, str(folder)) for folder in folders)
    run_stages([Stage("both", commands, folders, side_by_side=True)], tmp_path, run)
    run_stages([Stage("others", commands, (tmp_path / "others",))], tmp_path, run)
    assert run.calls == [2, 1, 1]


@pytest.mark.parametrize("name", ["evaluation", "export"])
def test_a_stage_with_a_folder_missing_runs_again_in_empty_folders(tmp_path: Path, run: Recorder, name: str):
    folders = tmp_path / "evaluation", tmp_path / "export"
    stages = [Stage("both", tuple((folder.name, str(folder)) for folder in folders), folders, side_by_side=True)]
    run_stages(stages, tmp_path, run)
    for folder in folders:
        (folder / "old").touch()
    shutil.rmtree(tmp_path / name)
    run_stages(stages, tmp_path, run)
    assert run.names() == ["evaluation", "export"] * 2
    assert not any((folder / "old").exists() for folder in folders)


def test_side_by_side_all_run_and_show_what_they_print(tmp_path: Path, capsys: pytest.CaptureFixture):
    """The first waits for what the second does: they run at the same time; the third when one has ended."""
    place = str(tmp_path / "a")
    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('seen', sys.argv[1])"
    touch = ("-c", "import sys; open(sys.argv[1], 'w'); print('made')", place)
    assert demo.run_commands(("-c", code, place), touch, ("-c", "print('third')")) == 0
    out = capsys.readouterr().out
    assert all(line in out.splitlines() for line in (f"seen {place}", "made", "third"))


def test_side_by_side_one_failure_stops_the_others(tmp_path: Path, capsys: pytest.CaptureFixture):
    slow = ("-c", f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(600)")
    wait = f"import os, sys, time\nwhile not os.path.exists({str(tmp_path / 'begun')!r}): time.sleep(0.01)\n"
    never = ("-c", f"open({str(tmp_path / 'never')!r}, 'w')")
    assert demo.run_commands(slow, ("-c", wait + "sys.exit('no such file')"), never) == 1
    assert "no such file" in capsys.readouterr().out and not (tmp_path / "never").exists()


METRICS = {
    "retrieval": {"text_to_image": {"R@1": 0.7, "R@5": 0.9, "R@10": 1.0, "median_rank": 1.0, "gallery": 1000}},
    "reranked": {"text_to_image": {"R@1": 0.9, "R@5": 0.9, "R@10": 1.0, "median_rank": 1.0, "gallery": 1000}},
    "gallery": 1000,
    "caption": {"facts_right": 0.6, "cider_d": 3.0, "bleu4": 0.5, "images": 20},
    "reconstruction": {"images": 200, "psnr": 18.0, "perplexity": 300.0, "usage": 0.9},
    "image_generation": {"text": {"R@1": 0.1, "R@5": 0.2, "R@10": 0.3, "median_rank": 20.0, "gallery": 8}},
    "masked": {"mlm_accuracy": 0.5, "mlm_chance": 0.1, "confusion": [[1] * 5] * 5},
    "parameters": {"total": 2000000},
    "versions": {"mindspore": "2.10.0"},
}


def write_results(*commands: Command) -> int:
    """What the commands leave behind, in place of running them."""
    return max(map(write_result, commands))


def write_result(command: Command) -> int:
    script = Path(command[0]).name
    if script == "make_image_codes.py":
        return 0  # it adds to a folder that is there
    folder = Path(next((word[13:] for word in command if word.startswith("train.output=")), ""))
    if "--output" in command:
        folder = Path(command[command.index("--output") + 1])
    (folder / "figures").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {at}, "loss": 1.0, "loss/mlm": 1.0}}\n' for at in (1, 2)))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "export.json").write_text('{"max_abs_diff": 1e-06}')
    (folder / "figures" / f"{folder.name}_{script}.png").touch()
    return 0


def test_results_are_brought_together(tmp_path: Path, capsys: pytest.CaptureFixture):
    demo.run_demo(tmp_path / "out", "demo", True, write_results)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for key in METRICS:
        assert summary[key] == METRICS[key]
    assert summary["export"] == {"max_abs_diff": 1e-06}
    assert set(summary["minutes"]) == {"data", *demo.TRAININGS, "evaluate_and_export", "total"}
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {"loss_curves.png", *(f"{task}_eval.py.png" for task in demo.EVALUATED)}
    printed = capsys.readouterr().out
    for part in ("text → image", "PSNR", "summary.json"):
        assert part in printed
    report = tmp_path / "out" / "report.html"
    assert printed.endswith(f"{report}\n")
    text = report.read_text(encoding="utf-8")
    assert all(f'data-run="{number}"' in text and f">{task}<" in text for number, task in enumerate(demo.TRAININGS))
    assert "Retrieval re-ranked among 1,000" in text


def test_a_failure_and_an_interruption_say_how_to_go_on(tmp_path: Path):
    with pytest.raises(StageError, match="^stage data failed with exit code 3; the same call goes on from here$"):
        demo.run_demo(tmp_path, "demo", True, lambda *commands: 3)

    def interrupted(*commands: Command) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="^the same call goes on from here$"):
        demo.run_demo(tmp_path, "demo", True, interrupted)


@pytest.mark.parametrize("folder", [ROOT, Path("/")], ids=["in the repository", "elsewhere"])
def test_commands_are_shown_as_a_user_types_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(folder)
    assert demo.run_commands((str(ROOT / "tools/check_data.py"), "--help")) == 0
    script = "tools/check_data.py" if folder == ROOT else ROOT / "tools/check_data.py"
    assert f"$ python {script} --help\n" in capfd.readouterr().out


@pytest.mark.parametrize("changed, named", [("first", "first, second, third"), ("third", "third")])
def test_what_was_made_with_other_options_is_left_as_it_is(
    tmp_path: Path, run: Recorder, changed: str, named: str
) -> None:
    """A --world that was forgotten, or an edited configuration, would empty hours of work, stage by stage."""
    run_stages(chain(tmp_path), tmp_path, run)
    before = (tmp_path / "stages.json").read_bytes()
    run.names()
    with pytest.raises(StageError, match=rf"other options or settings \({named}\): .* --output, .* --restart"):
        run_stages(chain(tmp_path, **{changed: "x"}), tmp_path, run)
    assert run.names() == [] and (tmp_path / "stages.json").read_bytes() == before
    assert all((tmp_path / name / "leftover").exists() for name in ("first", "second", "third"))
    run_stages(chain(tmp_path), tmp_path, run)
    assert run.names() == []
    run_stages(chain(tmp_path, **{changed: "x"}), tmp_path, run, restart=True)
    assert run.names() == named.split(", ")


def test_a_demo_of_another_world_is_left_as_it_is(tmp_path: Path, run: Recorder) -> None:
    large, small, fast = (
        build_stages(tmp_path, *each) for each in (("demo_full", False), ("demo", False), ("demo", True))
    )
    records = {
        name: {"digest": digest, "finished": True, "minutes": 9.0} for name, digest in demo._digests(large).items()
    }
    (tmp_path / "stages.json").write_text(json.dumps(records))
    for folder in (folder for stage in large for folder in stage.folders):
        folder.mkdir()
    for other in (small, fast):
        with pytest.raises(StageError, match=r"\(data, image_tokenizer, pretrain, .*evaluate_and_export\)"):
            run_stages(other, tmp_path, run)
    assert run_stages(large, tmp_path, run)["data"] == 9.0 and run.names() == []


def test_a_stage_is_the_same_wherever_the_repository_is(tmp_path: Path) -> None:
    """Which may have an = in its path, as the demo's folder may."""
    known = demo._digests(build_stages(demo.USUAL, "demo", True))
    assert len(demo._digests(build_stages(Path("lr=0.1/demo"), "demo", True))) == len(known)
    moved = tmp_path / "a=b" / "opt"
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, moved / name, ignore=shutil.ignore_patterns("__pycache__"))
    shown = "import json; from src.demo import stages as demo; "
    shown += "print(json.dumps(demo._digests(demo.build_stages(demo.USUAL, 'demo', True))))"
    found = subprocess.run([sys.executable, "-c", shown], cwd=moved, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == known


def test_a_stage_is_the_same_from_every_folder(monkeypatch: pytest.MonkeyPatch):
    stages = build_stages(Path("/out"), "demo", True)
    monkeypatch.chdir("/")
    assert build_stages(Path("/out"), "demo", True) == stages

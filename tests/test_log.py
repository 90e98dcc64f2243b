"""What a run logs: read back by TensorBoard's own format, and a full disk is told and costs the run nothing."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from src.config import Config
from src.files import ROOT
from src.report.diagnosis import Watch
from src.training.log import RunLog

BEGIN = """
import sys
from pathlib import Path
from src.training.log import RunLog
RunLog(Path(sys.argv[1]), 0, 5, True)
assert "torch" not in sys.modules
import torch
torch.Tensor
"""


def test_a_run_begins_without_pytorch(tmp_path: Path) -> None:
    """It takes more than a second to import, and can be imported by others later."""
    subprocess.run([sys.executable, "-c", BEGIN, str(tmp_path)], check=True, cwd=ROOT)
    assert list((tmp_path / "tensorboard").iterdir())


def events(folder: Path) -> list[Event]:
    """The records of all event files: length, checksum, event, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").glob("*.tfevents.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 4, True)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2, "lr": 0.1})
    log.close()
    scalars = [
        (event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value
    ]
    assert scalars[::2] == [(1, "loss", 0.5), (2, "loss", 1.0), (3, "loss", 1.5)] and len(scalars) == 6

    for path in (tmp_path / "tensorboard").iterdir():
        path.unlink()  # the second run may start within the second that names its file
    log = RunLog(tmp_path, 2, 4, True)
    log.write(3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [3]


def test_a_run_that_begins_again_drops_what_an_earlier_one_logged(tmp_path: Path) -> None:
    """TensorBoard, too, would show both in one curve."""
    for steps in ((1, 2, 3), (1,)):
        log = RunLog(tmp_path, 0, 4, True)
        for step in steps:
            log.write(step, {"loss": float(step)})
        log.close()
        for path in (tmp_path / "tensorboard").iterdir():
            path.rename(path.with_name(f"{path.name}.{len(steps)}"))  # both may begin within a second
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]
    assert [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START] == [1]


def test_an_evaluation_that_is_repeated_is_logged_once(tmp_path: Path) -> None:
    """A run that was killed between its line and the note in the checkpoint evaluates again."""
    lines = [{"step": 1, "loss": 2.0}, {"step": 1, "eval/x": 0.1}, {"step": 2, "loss": 1.0}, {"step": 2, "eval/x": 0.2}]
    for again, kept in ((False, lines), (True, lines[:3])):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        RunLog(tmp_path, 2, 9, True, evaluates_again=again).close()
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == kept


def test_damaged_lines_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever bytes they hold; a last line that a kill has cut short is no damage."""
    lines = [json.dumps({"step": step}).encode() for step in range(1, 6)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([lines[0], lines[1][:-3] + b"\xd3}", b"[1]", lines[3], lines[4][:5]]))
    RunLog(tmp_path, 4, 9, True).close()
    assert steps_of(tmp_path) == [1, 4]
    assert f"note: {path}: 2 damaged lines are left out" in capsys.readouterr().err
    path.write_bytes(b"\n".join([lines[0], lines[1][:5]]))
    RunLog(tmp_path, 4, 9, True).close()
    assert steps_of(tmp_path) == [1] and "note" not in capsys.readouterr().err


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 4, False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


class Limited:
    """What this process may write to a file is limited, as by a disk that is full."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, the process lives
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_costs_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int) -> None:
    """It is told once; no line is cut, and what waits is written when there is room again."""
    log = RunLog(tmp_path, 0, 9, True)
    log.write(1, {"loss": 1.0})
    with Limited((tmp_path / "metrics.jsonl").stat().st_size + room):
        for step in (2, 3):
            log.write(step, {"loss": 1.0})
            assert steps_of(tmp_path) == [1]
    said = capsys.readouterr().out
    assert said.count("step 2: cannot log in") == 1 and "File too large): training goes on" in said
    assert "step 3" not in said
    log.write(4, {"loss": 1.0})
    log.write(5, {"loss": 1.0})
    log.close()
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert said.count("is whole again") == 1 and "step 4: " in said
    logged = [event.step for event in events(tmp_path) if event.summary.value]
    assert logged[0] == 1 and logged[-1] == 5, "TensorBoard's goes on, too"


def test_a_mount_that_goes_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    log = RunLog(run, 0, 9, True)
    run.rename(tmp_path / "gone")
    log.write(1, {"loss": 1.0})
    assert "No such file or directory" in capsys.readouterr().out
    (tmp_path / "gone").rename(run)
    log.write(2, {"loss": 1.0})
    log.close()
    assert steps_of(run) == [1, 2]


def test_output_that_cannot_be_written_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, open("/dev/full", "w", buffering=1))  # noqa: SIM115 - closed below
    log = RunLog(tmp_path, 0, 2, True)
    for step in (1, 2):
        log.say("said")
        log.write(step, {"loss": 1.0})
        log.bar.refresh()
        log.advance()
    log.close()
    for stream in (sys.stdout, sys.stderr):
        with pytest.raises(OSError, match="No space"):
            stream.close()
    assert steps_of(tmp_path) == [1, 2]


def test_warnings_are_said_once_also_by_a_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which reads what was logged before."""
    waits = {"loss": 1.0, "data_wait": 0.5}
    log = RunLog(tmp_path, 0, 9, True, Config())
    for step in (1, 2, 3, 4):
        log.write(step, waits)
    log.close()
    said = capsys.readouterr().out
    assert said.count("warning") == 1 and "step 3: warning: waiting_for_data: 50 % of the time" in said
    assert "Raise data.workers" in said
    log = RunLog(tmp_path, 2, 9, True, Config())
    assert "warning" not in capsys.readouterr().out
    log.write(3, waits)  # the third in a row
    log.close()
    assert "step 3: warning: waiting_for_data" in capsys.readouterr().out
    RunLog(tmp_path, 3, 9, True, Config()).write(4, waits)
    assert "warning" not in capsys.readouterr().out


def test_a_mistake_in_the_warnings_costs_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("step")

    monkeypatch.setattr(Watch, "add", broken)
    log = RunLog(tmp_path, 0, 9, True, Config())
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close()
    assert steps_of(tmp_path) == [1, 2] and capsys.readouterr().err.count("note: no more warnings") == 1

"""Errors that a user can mend end in one line and an exit code."""

import os
import subprocess
import sys

import pytest

from src import cli
from src.checkpoints.files import CheckpointError
from src.config import ConfigError
from src.data.errors import DataError
from src.export.export import ExportError
from src.files import ROOT
from src.runtime import RuntimeSetupError
from src.training.step import NonFiniteError


@pytest.mark.parametrize(
    "kind", [ConfigError, DataError, CheckpointError, RuntimeSetupError, ExportError, NonFiniteError]
)
def test_user_error_is_one_line(kind: type[Exception], capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise kind("data.path=nowhere: no such folder")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: data.path=nowhere: no such folder\n"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.path=mine"], True),
        (["data.sources=[{path: mine}]", "seed=2"], True),
        (["data.path=mine", "data.eval_path="], False),
        (["data.path=mine", "data.eval_path=mine"], False),
        (["seed=2"], False),
    ],
)
def test_data_that_are_named_but_not_measured_are_told(
    settings: list[str], told: bool, capsys: pytest.CaptureFixture
) -> None:
    cli.note_passed_over("dev", settings)
    assert (capsys.readouterr().err[:60] == "note: data.eval_path=dev is measured, not what the command l") == told
    cli.note_passed_over("", settings)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileExistsError(17, "File exists", "out"), "out: File exists (name another place, or move it away)"),
        (OSError(28, "No space left on device"), "No space left on device (make room, or write to another disk)"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied (name another place, or "),
    ],
)
def test_what_the_system_refuses_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and printed.startswith(f"error: {line}") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("hint", "line"), [((), "interrupted"), (("--resume goes on",), "interrupted: --resume goes on")]
)
def test_interruption(hint: tuple[str, ...], line: str, capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise KeyboardInterrupt(*hint)

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 130 and capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [IndexError("a defect"), OSError(9, "Bad file descriptor"), OSError("no number")])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        cli.run(main)
    assert caught.value is error


@pytest.mark.parametrize("lines", [1, 20_000], ids=["within the buffer", "beyond it"])
def test_a_reader_that_has_gone_costs_nothing(lines: int) -> None:
    """As ``| head -1`` does: the work goes on, and neither its end nor Python's complains."""
    script = f"""
import sys
from src import cli
def main():
    for line in range({lines}):
        print(line)
    print("done", file=sys.stderr)
cli.run(main)
"""
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "wb") as gone:
        done = subprocess.run([sys.executable, "-c", script], stdout=gone, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "done\n")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity of processes")
def test_cores_are_those_that_may_be_used() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cli.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cli.cores() == len(allowed)

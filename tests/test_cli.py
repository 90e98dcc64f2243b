"""Errors that a user can mend end in one line and an exit code."""

import pytest

from src import cli
from src.config import ConfigError
from src.data.errors import DataError
from src.runtime import RuntimeSetupError
from src.training.checkpoint import CheckpointError


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, RuntimeSetupError])
def test_user_error_is_one_line(kind: type[Exception], capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise kind("data.path=nowhere: no such folder")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: data.path=nowhere: no such folder\n"


def test_interruption() -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 130


def test_a_defect_keeps_its_traceback() -> None:
    def main() -> None:
        raise IndexError("a defect")

    with pytest.raises(IndexError):
        cli.run(main)

"""The set-up of the commands, with a Python that makes environments of nothing and writes down what it runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# As a base Python it makes an environment that holds a copy of itself; there it records pip and the commands.
STAND_IN = """#!/bin/bash
case "$1 $2" in
  "-c "*) exec REAL_PYTHON "$@" ;;
  "--version "*) echo "Python 3.11.0" ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && cp "$0" "$4/bin/ruff" && cp "$0" "$4/bin/shellcheck" ;;
  "-m pip") [[ $3 == install ]] && echo "pip ${*: -1}" >> CALLS; exit "${PIP_EXIT:-0}" ;;
  *) echo "$(basename "$0") $*" >> CALLS ;;
esac
"""


class House:
    """A copy of the scripts; ``python3.11`` on PATH is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a house"
        self._calls = folder / "calls"
        self.programs = folder / "bin"
        self.programs.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        (self.root / "requirements.txt").write_text("one==1\n")
        (self.root / "requirements-dev.txt").write_text("-r requirements.txt\ntwo==2\n")
        self.add_python("python3.11", STAND_IN)

    def add_python(self, name: str, text: str) -> Path:
        program = self.programs / name
        program.write_text(text.replace("REAL_PYTHON", sys.executable).replace("CALLS", str(self._calls)))
        program.chmod(0o755)
        return program

    def run(self, script: str, *arguments: str, path: str = "/usr/bin:/bin", **environment: str):
        return subprocess.run(
            ["bash", str(self.root / script), *arguments],
            cwd=self.programs,
            env={"PATH": f"{self.programs}:{path}", "HOME": os.environ.get("HOME", "/"), **environment},
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        """What has run since the last question."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_demo_sets_up_once_and_passes_its_arguments_on(house: House):
    result = house.run("scripts/run_demo.sh", "--fast", "--output", "two words")
    assert result.returncode == 0, result.stderr
    assert "Making .venv with Python 3.11" in result.stdout
    demo = f"python {house.root}/tools/run_demo.py --fast --output two words"
    assert house.calls() == [f"pip {house.root}/requirements.txt", demo]
    assert house.run("scripts/run_demo.sh", "--fast", "--output", "two words").stdout == ""
    assert house.calls() == [demo]


def test_the_page_takes_a_checkpoint_first(house: House):
    (house.root / "requirements-web.txt").write_text("-r requirements.txt\nthree==3\n")
    assert house.run("scripts/run_web.sh", "runs/my run", "--port", "1", "runtime.mode=graph").returncode == 0
    install, page = house.calls()
    assert install.endswith("requirements-web.txt")
    assert page == f"python {house.root}/tools/web.py --checkpoint runs/my run --port 1 runtime.mode=graph"
    house.run("scripts/run_web.sh", "runtime.mode=graph")
    assert house.calls() == [f"python {house.root}/tools/web.py runtime.mode=graph"]
    house.run("scripts/run_web.sh", "runs/lr=0.1")
    assert house.calls() == [f"python {house.root}/tools/web.py --checkpoint runs/lr=0.1"]


def test_changed_pins_are_installed(house: House):
    house.run("scripts/run_demo.sh")
    (house.root / "requirements.txt").write_text("one==1.1\n")
    house.calls()
    house.run("scripts/run_demo.sh")
    assert house.calls()[0].startswith("pip ")


def test_the_tests_command_checks_and_passes_its_arguments_on(house: House):
    assert house.run("scripts/run_tests.sh", "tests/test_config.py").returncode == 0
    install, ruff, shellcheck, pytest_call = house.calls()
    assert install.endswith("requirements-dev.txt")
    assert ruff == "ruff check ."
    assert "scripts/common.sh" in shellcheck and ".ci/run" in shellcheck
    assert pytest_call == "python -m pytest -q --durations=10 tests/test_config.py"


def test_ci_runs_every_file(house: House):
    assert house.run(".ci/run").returncode == 0
    assert house.calls()[-1] == "python tests/run_files.py"


RUN_FILES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run_files
run_files.TESTS = Path(sys.argv[2])
run_files.IMPORTED = ("colorsys",)
run_files.main()
"""
FILES = {
    "passes": "import os, sys\ndef test(): assert 'colorsys' in sys.modules and len(os.sched_getaffinity(0)) == 1",
    "ranks": "import os, pytest\npytestmark = pytest.mark.ranks\ndef test(): assert len(os.sched_getaffinity(0)) == {}",
    "fails": "def test():\n    for n in range(6000): print('line', n, 'of a long log')\n    assert 0",
    "crashes": "import os\ndef test(): os.kill(os.getpid(), 11)",
    "sets": "import json\ndef test(): json.mark = 1",
    "is_not_reached": "import json\ndef test(): assert not hasattr(json, 'mark')",
}


def test_each_file_of_tests_has_a_process_of_its_own(tmp_path: Path):
    folder = tmp_path / "tests"
    folder.mkdir()
    for name, text in FILES.items():
        cores = min(len(os.sched_getaffinity(0)), 4)
        (folder / f"test_{name}.py").write_text(text.replace("{}", str(cores)) + "\n")
    command = [sys.executable, "-c", RUN_FILES, str(ROOT / "tests"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    failed = done.stderr.removeprefix("failed: ").split()
    assert done.returncode == 1 and sorted(failed) == ["tests/test_crashes.py", "tests/test_fails.py"], done.stderr
    assert "tests/test_crashes.py ended with -11\n" in done.stdout
    long_log = "".join(f"line {n} of a long log\n" for n in range(6000))
    assert long_log in done.stdout, "a log is shown whole, and not mixed with another file's"
    assert "slowest: tests/test_" in done.stdout


def test_a_failed_installation_is_reported_and_tried_again(house: House):
    result = house.run("scripts/run_demo.sh", PIP_EXIT="1")
    assert result.returncode == 2
    assert "run_demo.sh: pip could not install requirements.txt" in result.stderr
    house.calls()
    assert house.run("scripts/run_demo.sh").returncode == 0
    assert len(house.calls()) == 2


def test_a_python_that_mindspore_has_no_wheel_for_is_passed_over(house: House):
    too_new = "#!/bin/bash\nexit 1\n"
    for name in ("python3.11", "python3.12", "python3.10", "python3", "python"):
        house.add_python(name, too_new)
    result = house.run("scripts/run_demo.sh")
    assert result.returncode == 2
    assert result.stderr == (
        "run_demo.sh: no Python 3.10, 3.11 or 3.12 on PATH: install one, or name it with PYTHON=/path/to/python\n"
    )
    result = house.run("scripts/run_demo.sh", PYTHON="python3")
    assert result.returncode == 2 and "PYTHON='python3' is not a Python 3.10, 3.11 or 3.12" in result.stderr
    house.add_python("python3.12", STAND_IN)
    assert house.run("scripts/run_demo.sh").returncode == 0


def test_python_is_chosen_by_the_environment(house: House):
    house.add_python("python3.11", "#!/bin/bash\nexit 1\n")
    mine = house.add_python("my-python", STAND_IN)
    assert house.run("scripts/run_demo.sh", PYTHON=str(mine)).returncode == 0


@pytest.mark.parametrize("script", ["scripts/run_demo.sh", "scripts/run_tests.sh"])
def test_help_sets_nothing_up(house: House, script: str):
    result = house.run(script, "--help")
    assert result.returncode == 0 and f"bash {script}" in result.stdout
    assert "set -e" not in result.stdout
    assert house.calls() == [] and not (house.root / ".venv").exists()

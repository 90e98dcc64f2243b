"""The README's commands: every script, option, configuration and setting that it names is there."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from src.config import load_config

ROOT = Path(__file__).parent.parent
COMMANDS = [
    shlex.split(line, comments=True)
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("    python ", "    bash "))
]


@cache
def help_of(*program: str) -> str:
    """What the program prints for --help."""
    interpreter = [] if program[0] == "bash" else [sys.executable]
    words = program if program[0] == "bash" else program[1:]
    done = subprocess.run([*interpreter, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program_of(command: list[str]) -> tuple[str, ...]:
    """The words that choose the program: the interpreter, the module or script, a corpus."""
    words = 3 if command[1] == "-m" or command[1] == "tools/prepare_data.py" else 2
    return tuple(command[:words])


def test_the_readme_shows_commands():
    assert {"train.py", "eval.py", "export.py", "scripts/run_demo.sh"} <= {command[1] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_is_what_the_program_takes(command):
    program = program_of(command)
    shown = help_of(*program)
    for option in (word for word in command if word.startswith("--")):
        assert re.search(rf"{option}\b", shown), f"{option} is not an option of {program}"
    if "--config" in command:
        settings = [word for word in command if re.match(r"[a-z_.]+=", word)]
        load_config(ROOT / command[command.index("--config") + 1], settings)


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
def test_linked_file_is_there(path):
    assert (ROOT / path).exists()

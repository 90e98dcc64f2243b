"""The rooms of docs/design.md: imports go one way, src holds no command, every command explains itself."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.files import ROOT

# From the top down: a room imports itself and rooms below it. Names of one row are of one level.
ROOMS = (
    ("training",),
    ("export",),
    ("tasks",),
    ("evaluation",),
    ("web",),
    ("inference",),
    ("objectives",),
    ("metrics",),
    ("losses",),
    ("generation",),
    ("demo",),
    ("models",),
    ("report",),
    ("data",),
    ("checkpoints",),
    ("launch",),
    ("config", "runtime", "sharing", "cli", "files", "errors"),
)
LEVELS = {room: level for level, row in enumerate(ROOMS) for room in row}
SOURCES = sorted((ROOT / "src").rglob("*.py"))
COMMANDS = sorted([*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")])
COMMANDS.remove(ROOT / "mindspore_hub_conf.py")  # read by MindSpore Hub, not run


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def test_every_room_has_its_level() -> None:
    assert {room_of(path) for path in SOURCES} - {"__init__"} == LEVELS.keys()


def test_imports_go_downwards() -> None:
    wrong = []
    for path in SOURCES:
        for line, name in imported(parsed(path)):
            package, *rest = name.split(".")
            if package in ("tools", "benchmarks", "tests", *(command.stem for command in COMMANDS)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, a command")
            elif package == "src" and LEVELS[rest[0]] < LEVELS[room_of(path)]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, a room above its own")
    assert not wrong, "\n".join(["", *wrong])


def test_the_demo_is_met_through_its_metric_alone() -> None:
    """Nothing outside its room knows the grammar of the demo's world."""
    others = [path for path in SOURCES if room_of(path) != "demo"]
    met = {name for path in others for _, name in imported(parsed(path)) if name.startswith("src.demo")}
    assert met == {"src.demo.facts.FactMetric"}


def test_src_holds_no_command() -> None:
    wrong = []
    for path in SOURCES:
        tree = parsed(path)
        if any(isinstance(node, ast.Constant) and node.value == "__main__" for node in ast.walk(tree)):
            wrong.append(f"{path.relative_to(ROOT)} can be run")
        if path != ROOT / "src" / "cli.py" and any(name.split(".")[0] == "argparse" for _, name in imported(tree)):
            wrong.append(f"{path.relative_to(ROOT)} imports argparse")
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_is_short_and_explains_itself_from_any_folder(command: Path, tmp_path: Path) -> None:
    """Without MindSpore, which takes seconds to import: one that cannot be imported stands before it."""
    assert len(command.read_text(encoding="utf-8").splitlines()) <= 80
    (tmp_path / "stand_in" / "mindspore").mkdir(parents=True)
    (tmp_path / "stand_in" / "mindspore" / "__init__.py").write_text("raise SystemExit('--help imports MindSpore')")
    (tmp_path / "here").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "stand_in")}
    done = subprocess.run(
        [sys.executable, str(command), "--help"],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"python {command.relative_to(ROOT)} " in done.stdout, "the help shows no example"
    assert not list((tmp_path / "here").iterdir())

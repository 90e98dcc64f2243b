"""Runs every test file in a process of its own, several at once: what scripts/run_tests.sh calls.

MindSpore's device, mode and seed belong to a process, and those of one file must not reach another. The processes are
forks of one that has imported what nearly every file needs, which would take each of them three seconds.

Each file has a core of its own: two that share cores wait for each other's threads. Large files come first, so that
none is left alone at the end. Before them come files that start several ranks, as many at once, but on all cores: on
one core it can take ranks a minute to find each other.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
IMPORTED = ("torch", "mindspore", "src.training.trainer", "src.inference", "src.evaluation.run", "src.export.export")
RANKS = "\npytestmark = pytest.mark.ranks\n"
MOST_CORES = 4
SLOWEST = 10  # files that are listed at the end
PATIENCE = 1200  # seconds after which a file is ended

Cores = frozenset[int]


class Running(NamedTuple):
    """A test file whose process has not ended."""

    name: str
    cores: Cores
    log: int
    began: float


class Ended(NamedTuple):
    """A test file whose process has ended."""

    name: str
    seconds: float
    failed: bool


def main() -> None:
    sys.path.insert(0, str(TESTS.parent))
    os.chdir(TESTS.parent)
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # whenever MindSpore compiles a graph it collects garbage, a sixth of a second for these modules alone
    files = sorted(TESTS.glob("test_*.py"), key=lambda file: file.stat().st_size, reverse=True)
    with_ranks = [file for file in files if RANKS in file.read_text(encoding="utf-8")]
    cores = sorted(os.sched_getaffinity(0))[:MOST_CORES]
    ended = run(with_ranks, [frozenset(cores)] * len(cores))
    ended += run([file for file in files if file not in with_ranks], [frozenset({core}) for core in cores])
    slowest = sorted(ended, key=lambda one: one.seconds, reverse=True)[:SLOWEST]
    print("slowest: " + ", ".join(f"{one.name} {one.seconds:.0f} s" for one in slowest))
    if failed := [one.name for one in ended if one.failed]:
        sys.exit(f"failed: {' '.join(failed)}")


def run(files: list[Path], slots: list[Cores]) -> list[Ended]:
    """Runs files, one for each slot at a time, and prints each one's output as a whole."""
    waiting, free, running, ended = list(files), list(slots), {}, []
    while waiting or running:
        while waiting and free:
            file, cores = waiting.pop(0), free.pop()
            log = os.memfd_create(file.name)
            running[start(file, cores, log)] = Running(f"tests/{file.name}", cores, log, time.monotonic())
        process, status = os.wait()
        name, cores, log, began = running.pop(process)
        free.append(cores)
        ended.append(Ended(name, time.monotonic() - began, status != 0))
        os.lseek(log, 0, os.SEEK_SET)
        with open(log, encoding="utf-8", errors="replace") as output:
            print(f"{name}\n{output.read()}", end="", flush=True)
        if status:
            print(f"{name} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
    return ended


def start(file: Path, cores: Cores, log: int) -> int:
    """Forks a process that runs a file on these cores and writes to the open file ``log``; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    os.sched_setaffinity(0, cores)
    signal.alarm(PATIENCE)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    code = pytest.main(["-q", str(file)])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # what is left is to take the imported modules apart, for a second


if __name__ == "__main__":
    main()

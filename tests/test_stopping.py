"""A real training is signalled, killed and started again: nothing that was done is lost, and nothing changes."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.kill import KillError, Victim, kill_runs, kill_tree, make_corpus
from src.cli import STOPPED
from src.sharing import Interruption
from src.training.stopping import KINDS, StopRequest

PATIENCE = 240  # seconds after which a test gives up
STEPS = 24  # of a whole run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small run."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What an uninterrupted run logs."""
    return Victim(corpus, 1, tmp_path_factory.mktemp("whole")).finish()


def wait_for(victim: Victim, process: subprocess.Popen, step: int) -> None:
    began = time.monotonic()
    while not any(line["step"] >= step for line in victim.losses()):
        assert process.poll() is None, (victim.folder / "output.txt").read_text()
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


def state_of(victim: Victim) -> dict[str, object]:
    place = victim.run / "checkpoints" / (victim.run / "checkpoints" / "latest").read_text().strip()
    return json.loads((place / "state.json").read_text())


def stop_and_go_on(victim: Victim, kind: signal.Signals, expected: list[dict[str, object]]) -> None:
    """A signalled run saves what it did, and goes on as if nothing had been."""
    process = victim.start()
    wait_for(victim, process, 7)
    process.send_signal(kind)
    code = process.wait(PATIENCE)
    said = (victim.folder / "output.txt").read_text()
    assert code == STOPPED and kind.name in said and "with --resume goes on from" in said, said
    step = state_of(victim)["step"]
    assert 7 <= step < STEPS and victim.losses() == expected[: len(victim.losses())]
    assert max(line["step"] for line in victim.losses() if "loss" in line) == step, "no step is taken twice"
    assert not [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if runs_in(pid, victim.folder)]
    assert victim.finish() == expected


def runs_in(pid: int, folder: Path) -> bool:
    try:
        return str(folder) in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_signalled_run_goes_on(corpus: Path, whole: list[dict[str, object]], tmp_path: Path) -> None:
    stop_and_go_on(Victim(corpus, 1, tmp_path), signal.SIGINT, whole)


def test_a_second_signal_ends_at_once(corpus: Path, tmp_path: Path) -> None:
    """As if nobody listened; a signal before the first step does the same, for there is nothing to be saved."""
    victim = Victim(corpus, 1, tmp_path)
    process = victim.start()
    wait_for(victim, process, 1)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert process.wait(PATIENCE) in (-signal.SIGTERM, STOPPED)  # the step may have ended between the two


def test_kills_change_nothing(tmp_path: Path) -> None:
    (tally,) = kill_runs(tmp_path, 3, [1]).values()
    assert tally.kills == 3 and tally.runs >= 1 and tally.checkpoints_lost == 0


def test_the_comparison_sees_a_difference(whole: list[dict[str, object]], corpus: Path, tmp_path: Path) -> None:
    victim = Victim(corpus, 1, tmp_path)
    victim.run.mkdir()
    lines = [dict(line) for line in whole]
    lines[5]["loss"] = float(lines[5]["loss"]) * (1 + 1e-15) if "loss" in lines[5] else 0.0
    (victim.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(KillError, match="differs"):
        victim.compare(whole)


def test_all_processes_of_a_tree_are_killed(tmp_path: Path) -> None:
    """Also those that have made a session of their own."""
    sleep = f"subprocess.Popen(['sleep', '600'], cwd={str(tmp_path)!r}, start_new_session=True)"
    code = f"import subprocess, time; {sleep}; print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    kill_tree(process)
    alive = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if place_of(pid) == str(tmp_path)]
    assert not alive


def place_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_what_may_be_given_up_is_given_up_at_a_signal() -> None:
    before, stop = [signal.signal(kind, signal.default_int_handler) for kind in KINDS], StopRequest()
    stop.listen()
    try:
        with pytest.raises(Interruption), stop:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert stop.asked and stop.kind is signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the second one ends the process"
        with pytest.raises(Interruption), stop:
            raise AssertionError("it does not even begin")
        stop.close()
        assert all(signal.getsignal(kind) == signal.default_int_handler for kind in KINDS)
        stop.listen()
        assert all(signal.getsignal(kind) != signal.default_int_handler for kind in KINDS), "a second run of a process"
    finally:
        stop.close()
        for kind, handler in zip(KINDS, before, strict=True):
            signal.signal(kind, handler)


def test_signals_are_heard_once_and_in_the_main_thread_alone() -> None:
    before, stop = [signal.getsignal(kind) for kind in KINDS], StopRequest()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stop.listen).result()
    assert [signal.getsignal(kind) for kind in KINDS] == before
    stop.listen()
    stop.listen()
    stop.close()
    assert [signal.getsignal(kind) for kind in KINDS] == before, "what was set before the first of two calls"


def test_what_is_ignored_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    before, stop = signal.signal(signal.SIGHUP, signal.SIG_IGN), StopRequest()
    try:
        stop.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
    finally:
        stop.close()
        signal.signal(signal.SIGHUP, before)

"""Ranks end together: whatever fails or is signalled, no process is left, and the exit code says what it was."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.cli import STOPPED
from src.launch.processes import descendants, is_alive
from src.launch.supervisor import Follower, last_lines

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120  # seconds after which a test gives up

# In place of msrun: starts a scheduler and two ranks as msrun does, and waits for them for ever.
MSRUN = """
import os, subprocess, sys, time
logs, *command = sys.argv[1:]
children = []
for role, rank, log in (("SCHED", 0, "scheduler"), ("WORKER", 0, "worker_0"), ("WORKER", 1, "worker_1")):
    environment = os.environ | {"MS_ROLE": f"MS_{role}", "RANK_ID": str(rank)}
    with open(f"{logs}/{log}.log", "w") as file:
        options = {"env": environment, "stdout": file, "stderr": file, "start_new_session": role == "WORKER"}
        children.append(subprocess.Popen(["python", *command], **options))
if command[1] in ("succeed", "0 crash"):
    sys.exit(max(child.wait() for child in children))
time.sleep(600)
"""
# A rank, or the scheduler: does what the word says.
RANK = """
import atexit, os, signal, subprocess, sys, time
from pathlib import Path
what, folder = sys.argv[1], Path(__file__).parent
name = "scheduler" if os.environ["MS_ROLE"] == "MS_SCHED" else "rank " + os.environ["RANK_ID"]
if what == "deaf":
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
if what == "count":
    heard = []
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda number, _: heard.append(number))
    (folder / name).touch()
    for _ in range(600):
        time.sleep(0.1)
        if heard:
            time.sleep(1.5)
            print(name, "heard", *map(int, heard), flush=True)
            sys.exit(75)
if what == "parent":
    subprocess.Popen(["sleep", "600"], start_new_session=True, cwd=folder)
print(name, "started", flush=True)
(folder / name).touch()
if what == "succeed":
    sys.exit(0)
if what.endswith("crash"):
    from src import cli
    crash = lambda: os.kill(os.getpid(), signal.SIGSEGV)
    if what == "crash":
        cli.run(crash)
    if name == "rank 1":
        atexit.register(crash)
    cli.run(lambda: sys.exit(int(what.split()[0]) if name == "rank 1" else 0))
try:
    while not all((folder / other).exists() for other in ("scheduler", "rank 0", "rank 1")):
        time.sleep(0.05)
    if what == "fail" and name == "rank 1":
        print("working 1/2\\rworking 2/2")
        sys.exit("last words")
    time.sleep(600)
except KeyboardInterrupt:
    print(name, "interrupted", flush=True)
    sys.exit(130)
"""
SUPERVISE = """
import os, sys
from pathlib import Path
from src.cli import STOPPED
from src.launch.supervisor import Supervisor
folder, what, grace = sys.argv[1:]
logs = Path(folder) / "the logs"
command = [sys.executable, folder + "/msrun.py", str(logs), folder + "/rank.py", what]
sys.exit(Supervisor(logs, shown=0, grace=float(grace)).run(command, dict(os.environ)))
"""


def left(folder: Path) -> list[str]:
    """Processes that were started with a path of the folder among their words, or in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            inside = os.readlink(process / "cwd")
        except OSError:
            continue  # it has ended
        if str(folder) in words or inside.startswith(str(folder)):
            found.append(words)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert not left(tmp_path)


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, f"missing: {[file for file in files if not file.exists()]}"
        time.sleep(0.05)


def supervise(folder: Path, what: str, grace: float = 600) -> subprocess.Popen:
    """A supervisor of a stand-in for msrun, whose processes have started."""
    (folder / "msrun.py").write_text(MSRUN)
    (folder / "rank.py").write_text(RANK)
    command = [sys.executable, "-c", SUPERVISE, str(folder), what, str(grace)]
    process = start(command, ROOT, os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(*(folder / name for name in ("scheduler", "rank 0", "rank 1")))
    return process


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        # tests that run in the background, or under nohup, were started deaf to these, and their children with them
        preexec_fn=lambda: [signal.signal(which, signal.SIG_DFL) for which in (signal.SIGINT, signal.SIGHUP)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_that_succeed(folder: Path) -> None:
    process = supervise(folder, "succeed")
    assert process.communicate(timeout=PATIENCE) == ("rank 0 started\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("what", "code"), [("crash", 128 + signal.SIGSEGV), ("0 crash", 0), (f"{STOPPED} crash", STOPPED)]
)
def test_a_crash_is_a_failure_unless_the_work_was_done(folder: Path, what: str, code: int) -> None:
    process = supervise(folder, what)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    if code == 0:
        told = f"signal {int(signal.SIGSEGV)} ended this rank after its work was done"
        assert told in (folder / "the logs" / "worker_1.log").read_text()


def test_what_an_earlier_launch_left_is_not_taken_for_this_ones(folder: Path) -> None:
    supervise(folder, "fail").communicate(timeout=PATIENCE)
    for name in ("scheduler", "rank 0", "rank 1"):
        (folder / name).unlink()
    process = supervise(folder, "succeed")
    assert process.communicate(timeout=PATIENCE) == ("rank 0 started\n", "") and process.returncode == 0
    supervise(folder, "0 crash").communicate(timeout=PATIENCE)  # leaves a note that its work was done
    process = supervise(folder, "crash")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGSEGV


def test_a_rank_that_fails_ends_all_and_is_named(folder: Path) -> None:
    process = supervise(folder, "fail")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and output == "rank 0 started\n"
    assert errors.splitlines() == [
        f"rank 1 failed with exit code 1: the last lines of {folder}/the logs/worker_1.log",
        *("  rank 1 started", "  working 2/2", "  last words"),
    ]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_ranks(folder: Path, kind: signal.Signals) -> None:
    process = supervise(folder, "wait")
    process.send_signal(kind)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + kind
    assert errors == f"all ranks of this machine were ended by {kind.name}\n"
    assert ("rank 0 interrupted" in output) == (kind == signal.SIGINT), "ranks can say their last words"


def test_ranks_are_told_once(folder: Path) -> None:
    """A training that is told again ends without saving."""
    process = supervise(folder, "count")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == STOPPED and output == f"rank 0 heard {int(signal.SIGTERM)}\n"


def test_a_second_signal_kills_at_once(folder: Path) -> None:
    process = supervise(folder, "deaf")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None, "the first one leaves the ranks their time"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM


def test_ranks_that_do_not_listen_are_killed(folder: Path) -> None:
    process = supervise(folder, "deaf", grace=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM


def test_processes_of_ranks_are_ended_even_if_msrun_is_killed(folder: Path) -> None:
    process = supervise(folder, "parent")
    (msrun,) = [entry for entry in Path("/proc").glob("[0-9]*") if is_stand_in(entry, folder)]
    os.kill(int(msrun.name), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL


def is_stand_in(process: Path, folder: Path) -> bool:
    try:
        return f"{folder}/msrun.py".encode() in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def test_a_log_is_followed_and_its_end_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = tmp_path / "worker_0.log"
    follower = Follower(log)
    follower.show()
    assert last_lines(log) == ["(there is none)"]
    data = "一只猫\n".encode() + b"[INFO] DISTRIBUTED says good-bye\n" + b"\xff\n" * 20
    for cut in (4, 100):  # the first cut is inside of a character
        log.write_bytes(data[:cut])
        follower.show()
    assert capsys.readouterr().out == data.decode(errors="replace")
    assert last_lines(log) == ["�"] * 15
    log.write_bytes(data[:45])
    assert last_lines(log) == ["一只猫", "�"]


# The launcher with the real msrun, and a train.py that trains nothing.


@pytest.fixture
def house(folder: Path) -> Path:
    for name in ("scripts", "tools", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mine.yaml").touch()
    return folder


def launch(house: Path, what: str) -> subprocess.Popen:
    (house / "train.py").write_text(RANK.replace("sys.argv[1]", repr(what)))
    environment = os.environ | {"DEVICE_TARGET": "CPU", "PYTHON": sys.executable, "CONFIG": "mine.yaml"}
    return start(["bash", str(house / "scripts" / "run_distributed_ascend.sh")], house, environment)


@pytest.mark.e2e
def test_a_rank_of_the_real_msrun_that_fails(house: Path) -> None:
    process = launch(house, "fail")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "failed with exit code 1; its output is in" in errors
    (log,) = (house / "runs" / "logs").glob("*/worker_1.log")
    lines = output.splitlines()
    assert "rank 0 started" in lines
    assert lines[-4:] == [
        f"rank 1 failed with exit code 1: the last lines of {log}",
        *("  rank 1 started", "  working 2/2", "  last words"),
    ]
    (kept,) = (house / "runs" / "logs").glob("*.log")
    assert kept.read_text() == output.partition("\n")[2], "all but the command itself"


@pytest.mark.e2e
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_the_real_msrun(house: Path, kind: signal.Signals) -> None:
    process = launch(house, "wait")
    wait_for(*(house / name for name in ("scheduler", "rank 0", "rank 1")))
    process.send_signal(kind)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + kind
    assert f"all ranks of this machine were ended by {kind.name}" in output


# As a command of this project: MindSpore's communication sometimes crashes while a process ends.
SUM_OF_RANKS = """
import mindspore as ms, numpy as np
from mindspore.communication import get_group_size, get_rank, init
from src import cli

def main():
    ms.set_device("CPU")
    init()
    print("rank", get_rank(), "of", get_group_size(), flush=True)
    total = ms.ops.AllReduce()(ms.Tensor(np.array([get_rank() + 1.0], np.float32)))
    print("sum", total.asnumpy()[0], flush=True)

cli.run(main)
"""


@pytest.mark.e2e
def test_two_machines(folder: Path) -> None:
    """Two launches of one rank each meet as two machines do.

    They are told apart by what each takes for its own address: msrun asks the command "ip", and the first one's answers
    127.0.0.2. The second machine's packets to that address come from 127.0.0.1.
    """
    (folder / "ip").write_text('#!/bin/sh\necho \'[{"ifname": "lo", "addr_info": [{"local": "127.0.0.2"}]}]\'\n')
    (folder / "ip").chmod(0o755)
    (folder / "rank.py").write_text(SUM_OF_RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tools" / "launch_ranks.py"), "--nodes", "2", "--worker_num", "2"]
    command += ["--master_addr", "127.0.0.2", "--master_port", str(port)]
    machines = []
    for node, path in ((0, f"{folder}:"), (1, "")):
        environment = os.environ | {"PATH": path + os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        words = ["--node_rank", str(node), "--log_dir", str(folder / f"logs-{node}"), str(folder / "rank.py")]
        machines.append(start(command + words, folder, environment))
    for node, machine in enumerate(machines):
        output, errors = machine.communicate(timeout=PATIENCE)
        assert machine.returncode == 0, output + errors
        lines = output.splitlines()
        assert f"rank {node} of 2" in lines and "sum 3.0" in lines
    assert sorted(log.name for log in folder.glob("logs-*/*.log")) == ["scheduler.log", "worker_0.log", "worker_1.log"]


def test_a_name_with_brackets_hides_no_process(tmp_path: Path) -> None:
    """As systemd's (sd-pam) has it; what follows in /proc/PID/stat is the state and the parent."""
    program = tmp_path / "(a) Z 1 b"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "600"]) as process:
        try:
            assert process.pid in descendants() and is_alive(process.pid)
        finally:
            process.kill()

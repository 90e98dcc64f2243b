"""Runs msrun and looks after its processes: one that fails ends all, a signal ends all, and none is left behind.

msrun alone would wait half a minute for its scheduler after a failure, wait for ever for ranks that end before they
meet, and leave its ranks running when SIGTERM ends it.
"""

import codecs
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from src.cli import STOPPED, WORK_DONE
from src.launch.processes import adopt_orphans, descendants, has_variable, reap, send

POLL = 0.2  # seconds between two looks
GRACE = 5.0  # seconds that processes have to end when one has failed, before they are killed
STOP_GRACE = 300.0  # ... when they are asked to stop: a step ends and a checkpoint is written
LAST_LINES, LAST_BYTES = 15, 65536  # of a log that are shown
SCHEDULER = b"MS_ROLE=MS_SCHED"

# msrun starts the "python" on PATH. This one runs the chosen Python and notes how it ended, the first one first. It
# outlives signals to do so, and takes itself off PATH: only msrun's own children are noted. While a rank on a CPU ends,
# a thread of MindSpore's communication sometimes crashes, one launch in some fifty: a rank whose work was done by then
# ends as it meant to.
STAND_IN = """
trap : INT TERM HUP
PATH="${PATH#"$folder":}"
exec 3>&2 2> /dev/null  # the shell itself would say "Terminated"
finished="$folder/finished_${MS_ROLE}_$RANK_ID"
rm -f "$finished"
(export "$work_done=$finished"; exec "$python" "$@" 2>&3 3>&-)
code=$?
if [ "$code" -gt 128 ] && [ -s "$finished" ]; then
  echo "signal $((code - 128)) ended this rank after its work was done" >&3
  code="$(cat "$finished")"
fi
name="rank $RANK_ID" log="worker_$RANK_ID.log"
[ "$MS_ROLE" = MS_SCHED ] && name=scheduler log=scheduler.log
echo "$code $log $name" >> "$ended"
exit "$code"
"""


class End(NamedTuple):
    """How a process of msrun ended."""

    code: int
    log: str
    name: str


class Supervisor:
    """One launch.

    Args:
        log_dir: folder of msrun's logs.
        shown: rank whose log is also shown.
        alone: no other machine takes part.
        grace: seconds that processes have to end when they are asked to stop.
    """

    def __init__(self, log_dir: Path, shown: int, alone: bool = True, grace: float = STOP_GRACE) -> None:
        self.log_dir = log_dir
        self.alone, self.grace = alone, grace
        self.folder = log_dir / f"from_rank_{shown}"  # of this machine: others may share log_dir
        self.ended = self.folder / "ended"
        self.shown = Follower(log_dir / f"worker_{shown}.log")
        self.signals: list[signal.Signals] = []

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Runs the command; returns the exit code of the process that failed first, or the signal's, or msrun's."""
        adopt_orphans()
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(kind) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(kind, lambda number, _: self.signals.append(signal.Signals(number)))
        self.folder.mkdir(parents=True, exist_ok=True)
        for earlier in (self.ended, self.shown.path):
            earlier.unlink(missing_ok=True)
        self._make_python()
        environment = environment | {"PATH": f"{self.folder}:{environment.get('PATH', os.defpath)}"}
        # a session of its own: who signals the group of this process does not reach msrun, which kills its ranks
        msrun = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        while msrun.poll() is None and not self.signals and not self._failures():
            self.shown.show()
            time.sleep(POLL)
        if self.signals:
            return self._stop(msrun)
        return self._finish(msrun)

    def _make_python(self) -> None:
        """Writes the stand-in for Python."""
        names = {"folder": self.folder, "python": sys.executable, "ended": self.ended, "work_done": WORK_DONE}
        head = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in names.items())
        stand_in = self.folder / "python"
        stand_in.write_text(f"#!/bin/sh\n{head}{STAND_IN}", encoding="utf-8")
        stand_in.chmod(0o755)

    def _failures(self) -> list[End]:
        """Processes that failed, the first one first."""
        if not self.ended.exists():
            return []
        lines = self.ended.read_text(encoding="utf-8").splitlines()
        ends = [End(int(code), log, name) for code, log, name in (line.split(" ", 2) for line in lines)]
        return [end for end in ends if end.code]

    def _stop(self, msrun: subprocess.Popen) -> int:
        """Passes the first signal on. A training that it stops ends with STOPPED."""
        first = self.signals[0]
        self._end(msrun, first, heard=1, grace=self.grace)
        if STOPPED in [end.code for end in self._failures()]:
            say(f"all ranks of this machine stopped at {first.name}, and can go on with --resume")
            return STOPPED
        say(f"all ranks of this machine were ended by {first.name}")
        return 128 + first

    def _finish(self, msrun: subprocess.Popen) -> int:
        """msrun has ended, or a process has failed."""
        failures = self._failures()
        self._end(msrun, signal.SIGTERM, heard=0, grace=GRACE)
        if not failures:
            code = msrun.returncode
            return code if code >= 0 else 128 - code  # as shells count what a signal ended
        first, *others = failures
        path = self.log_dir / first.log
        also = f" (then also: {', '.join(f'{end.name} with {end.code}' for end in others)})" if others else ""
        say(f"{first.name} failed with exit code {first.code}{also}: the last lines of {path}")
        for line in last_lines(path):
            say(f"  {line}")
        if not self.alone:
            say("if another machine failed first, its output says why: ranks whose partners are gone fail, too")
        return first.code

    def _end(self, msrun: subprocess.Popen, kind: signal.Signals, heard: int, grace: float) -> None:
        """Sends the signal to every process and waits for their end.

        Those that are still there after ``grace`` seconds, or when more than the ``heard`` signals have come, are
        killed; so is the scheduler when no other process needs it.
        """
        if msrun.poll() is None:
            msrun.kill()  # first: it would kill the ranks before they can end
            msrun.wait()
        told: set[int] = set()
        began = time.monotonic()
        while living := descendants():
            waited = time.monotonic() - began
            if waited > grace + GRACE:
                say(f"the processes {', '.join(map(str, sorted(living)))} do not end, even killed")
                return
            schedulers = {pid for pid in living if has_variable(pid, SCHEDULER)}
            send(living - schedulers - told, kind)
            told |= living
            if len(self.signals) > heard or waited > grace or living == schedulers:
                send(living, signal.SIGKILL)
            reap()
            self.shown.show()
            time.sleep(POLL / 4)
        self.shown.show()


class Follower:
    """Shows what is added to a log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read = 0  # bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.read)
            data = file.read()
        self.read += len(data)
        if data:
            sys.stdout.write(self.decoder.decode(data))
            sys.stdout.flush()


def last_lines(path: Path) -> list[str]:
    """The end of a log, without what MindSpore reports of every exit; of a progress bar its last state."""
    if not path.exists():
        return ["(there is none)"]
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    return [line for line in shown if line and not line.startswith("[INFO]")][-LAST_LINES:]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

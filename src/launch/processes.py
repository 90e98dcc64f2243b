"""The processes below this one: listed, adopted and ended. Linux only, as is every distributed backend of MindSpore."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
GONE = "ZX"  # states of processes that have ended


def adopt_orphans() -> None:
    """From now on a process below this one whose parent ends becomes a child of this one, so that none is lost."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int | None = None) -> set[int]:
    """The living processes below a process, by default below this one."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        state, parent = _state_and_parent(file)
        if state not in GONE:
            children.setdefault(parent, []).append(int(file.parent.name))
    found: set[int] = set()
    waiting = [os.getpid() if root is None else root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def is_alive(pid: int) -> bool:
    """False for a process that has ended, also where its parent has not taken note."""
    return _state_and_parent(Path(f"/proc/{pid}/stat"))[0] not in GONE


def _state_and_parent(file: Path) -> tuple[str, int]:
    """A process' letter in /proc/PID/stat, X if it has just ended, and its parent."""
    with contextlib.suppress(OSError):
        # pid (name) state parent …; a name may hold spaces and brackets
        state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "X", 0


def has_variable(pid: int, variable: bytes) -> bool:
    """True if the process was started with this ``NAME=value`` in its environment."""
    with contextlib.suppress(OSError):
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def send(pids: set[int], kind: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)


def reap() -> None:
    """Takes note of children that have ended, so that they do not stay as zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass

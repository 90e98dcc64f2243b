"""Asked to stop: a run that is signalled ends its step, saves, and says with its exit code that it can go on."""

import signal
import threading
from types import FrameType

from src.sharing import Interruption

KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Notes the first SIGTERM, SIGINT or SIGHUP; the second one ends the process at once, as if nobody listened.

    Attributes:
        kind: the signal; None: nobody has asked.
        asked: whether to stop, because of a signal here or of one that another rank has told of.
    """

    def __init__(self) -> None:
        self.kind: signal.Signals | None = None
        self.asked = False
        self._interrupts = False
        self._before: dict[signal.Signals, object] = {}

    def listen(self) -> None:
        """From now on, until :meth:`close`. What is ignored (SIGHUP under nohup) stays so."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return  # Python's signals belong to the main thread: who trains in another one sees to them
        for kind in KINDS:
            if signal.getsignal(kind) != signal.SIG_IGN:
                self._before[kind] = signal.signal(kind, self._hear)

    def close(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        self._before.clear()

    def __enter__(self) -> None:
        """What runs inside is given up at a signal, by an :class:`Interruption`, also at one that has come before."""
        if self.kind is not None:
            raise Interruption
        self._interrupts = True

    def __exit__(self, *_: object) -> None:
        self._interrupts = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.kind, self.asked = signal.Signals(number), True
        for kind in self._before:
            signal.signal(kind, signal.SIG_DFL)
        if self._interrupts:
            self._interrupts = False
            raise Interruption

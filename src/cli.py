"""What every command shares: how it reads its arguments, and how it reports an error: one line, no traceback."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError

Arguments = argparse.Namespace

WRONG_USE, INTERRUPTED = 2, 130  # exit codes; argparse and shells use the same
STOPPED = 75  # of a training that saved and can go on; EX_TEMPFAIL of sysexits.h: try again
WORK_DONE = "OPT_WORK_DONE"  # variable: a file that is told the exit code when nothing is left to do but to end
HINTS = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room, or write to another disk",
    errno.EDQUOT: "make room, or write to another disk",
    errno.EFBIG: "raise the file size limit of this shell or file system (ulimit -f)",
    errno.EACCES: "name another place, or change its permissions",
    errno.EPERM: "name another place, or change its permissions",
    errno.EROFS: "name another place, or change its permissions",
    errno.EEXIST: "name another place, or move it away",
    errno.ENOTDIR: "name another place, or move away the file that stands where a folder is needed",
    errno.EISDIR: "name another place, or move it away",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "check the path: a link in it leads back to itself",
}


class CommandParser(argparse.ArgumentParser):
    """A parser that keeps the lines of its description and takes no abbreviated options; subcommands inherit both."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | options)

    def add_storage_settings(self) -> None:
        """Adds ``--config`` and ``key=value`` words, whose model section says in which form media are stored."""
        storage = "model.audio says how audio is stored, model.image how wide regions are"
        self.add_argument("--config", type=user_path, metavar="FILE", help=f"its {storage} (default: the defaults)")
        self.add_settings()

    def add_ema(self) -> None:
        """Adds ``--ema``: the checkpoint's averaged weights are used instead of its last ones."""
        self.add_argument("--ema", action="store_true", help="use the average of its weights (train.ema_decay)")

    def add_settings(self) -> None:
        """Adds ``key=value`` words as ``settings``. They may stand anywhere if parse_intermixed_args reads the line."""
        self.add_argument("settings", nargs="*", metavar="key=value", help="settings that win over the configuration")


def note_passed_over(eval_path: str, settings: Sequence[str]) -> None:
    """Says on stderr that ``data.eval_path`` of a configuration is measured where the command line names other data."""
    keys = {setting.partition("=")[0] for setting in settings}
    if eval_path and keys & {"data.path", "data.sources"} and "data.eval_path" not in keys:
        hint = "data.eval_path= has them measured as well"
        print(
            f"note: data.eval_path={eval_path} is measured, not what the command line names: {hint}",
            file=sys.stderr,
        )


def user_path(text: str) -> Path:
    """The type of options that name a path: ``~`` is expanded also where the shell did not do it (``--output=~/x``)."""
    return Path(os.path.expanduser(text))


def cores() -> int:
    """How many cores this process may use: fewer than the machine has under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(main: Callable[[], object]) -> None:
    """Calls a command's main function and turns errors that the user can fix into ``error: …`` and an exit code."""
    done = os.environ.pop(WORK_DONE, None)  # not for the processes that this one starts
    with _lasting_output():
        try:
            main()
            _note_work_done(done, 0)
        except SystemExit as end:
            _note_work_done(done, end.code)
            raise
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno not in HINTS:
                raise
            _fail(describe(error))
        except KeyboardInterrupt as error:
            print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
            sys.exit(INTERRUPTED)


def _note_work_done(file: str | None, code: object) -> None:
    """Who started this process can tell a crash in its work from one of a library's threads at its end."""
    if file and code in (None, 0, STOPPED):
        with contextlib.suppress(OSError):
            Path(file).write_text(str(code or 0), encoding="utf-8")


class _Stream:
    """A stream whose failures are met by ``_attempt``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._attempt():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._attempt():
            self._stream.flush()

    def _attempt(self) -> contextlib.AbstractContextManager:
        raise NotImplementedError


class LastingStream(_Stream):
    """A stream to which any text can be written, also when nobody reads it any more: hours of work do not depend on it.

    Characters that the terminal does not have are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what the stream still holds and writes at the end
            os.close(nowhere)


class CarelessStream(_Stream):
    """A stream that loses what it cannot write: what is told beside a run's work, on a full disk or a lost terminal."""

    def __eq__(self, other: object) -> bool:
        """tqdm asks whether text goes where its bar is."""
        return other is self._stream or (isinstance(other, CarelessStream) and other._stream is self._stream)

    def __hash__(self) -> int:
        return hash(self._stream)

    def _attempt(self) -> contextlib.AbstractContextManager:
        return contextlib.suppress(OSError)


@contextlib.contextmanager
def _lasting_output() -> Iterator[None]:
    streams = sys.stdout, sys.stderr
    # None: it was closed from the start
    sys.stdout, sys.stderr = (stream and LastingStream(stream) for stream in streams)
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = streams


def describe(error: OSError) -> str:
    """One line: the file, what is wrong with it and, where one is known, a hint how to fix it."""
    hint = f" ({HINTS[error.errno]})" if error.errno in HINTS else ""
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}{hint}"


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(WRONG_USE)

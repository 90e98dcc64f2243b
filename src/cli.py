"""What every command shares: a user's error is one line on stderr, never a traceback."""

import errno
import sys
from collections.abc import Callable

from src.errors import UserError

WRONG_USE, INTERRUPTED = 2, 130  # exit codes; argparse and shells use the same
HINTS = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room, or write to another disk",
    errno.EDQUOT: "make room, or write to another disk",
    errno.EFBIG: "a limit of this shell or file system (ulimit -f)",
    errno.EACCES: "name another place, or change its permissions",
    errno.EPERM: "name another place, or change its permissions",
    errno.EROFS: "name another place, or change its permissions",
    errno.EEXIST: "name another place, or move it away",
    errno.ENOTDIR: "name another place, or move away the file that stands where a folder is needed",
    errno.EISDIR: "name another place, or move it away",
}


def run(main: Callable[[], None]) -> None:
    """Calls a command's main function and turns what the user can mend into ``error: …`` and an exit code."""
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in HINTS:
            raise
        _fail(describe(error))
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def describe(error: OSError) -> str:
    """One line that names the file, what is wrong with it, and the mend where one is known."""
    hint = f" ({HINTS[error.errno]})" if error.errno in HINTS else ""
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}{hint}"


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(WRONG_USE)

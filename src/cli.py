"""What every command shares: a user's error is one line on stderr, never a traceback."""

import sys
from collections.abc import Callable

from src.config import ConfigError
from src.data.errors import DataError
from src.export import ExportError
from src.runtime import RuntimeSetupError
from src.training.checkpoint import CheckpointError
from src.training.step import TrainingError

USER_ERRORS = (ConfigError, DataError, CheckpointError, RuntimeSetupError, ExportError, TrainingError)
WRONG_USE, INTERRUPTED = 2, 130  # exit codes; argparse and shells use the same


def run(main: Callable[[], None]) -> None:
    """Calls a command's main function and turns what the user can mend into ``error: …`` and an exit code."""
    try:
        main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)

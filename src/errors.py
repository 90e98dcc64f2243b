"""What every error that a user can mend has in common."""


class UserError(Exception):
    """Its message is one line that names the file, key or row and what to do; commands print it without a traceback."""

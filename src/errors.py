"""The base of every error that a user can fix."""


class UserError(Exception):
    """Its message is one line: what is wrong, where (file, key or row), how to fix it. Commands print no traceback."""

"""The one exception of the data path."""

from src.errors import UserError


class DataError(UserError):
    """Data that cannot be used; its message is one line that names the file and what to do about it."""

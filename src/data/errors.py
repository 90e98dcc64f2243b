"""The one exception of the data path."""

from src.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message names the file and, where possible, how to fix it."""

"""The one exception of the data path."""

from src.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message names the file and, where possible, how to fix it."""


class BadRecordError(DataError):
    """A record that is not as it was written, or cannot be decoded.

    Args:
        message: names it.
        record: its number: of the dataset's split where the dataset raises it, of all sources' where those do.
    """

    def __init__(self, message: str, record: int) -> None:
        super().__init__(message)
        self.record = record

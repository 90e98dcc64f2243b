"""The one exception of the data path."""


class DataError(ValueError):
    """Data that cannot be used; its message is one line that names the file and what to do about it."""

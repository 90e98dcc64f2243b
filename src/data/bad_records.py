"""Records that training cannot read: each is told once, and another sample takes the place of its samples."""

import numpy as np

from src.data.errors import BadRecordError, DataError
from src.data.sources import Sources


class BadRecords:
    """The bad records that this process has met.

    What replaces a sample follows from the sample and from what is on the disk: it is the next sample of its source,
    by number, whose record can be read. So a resumed run replaces as the uninterrupted one does, with any number of
    workers.

    Args:
        sources: of the training.
        ids: the sample numbers that the training takes, ascending.
        most: data.max_bad.
    """

    def __init__(self, sources: Sources, ids: np.ndarray, most: int) -> None:
        self.sources, self.ids, self.most = sources, ids, most
        self.first = ""
        self.records: frozenset[int] = frozenset()  # replaced, not changed: two threads may make batches

    def add(self, error: BadRecordError) -> str:
        """Takes note of a record.

        Returns:
            What is to be told.

        Raises:
            DataError: they are more than data.max_bad now.
        """
        self.first = self.first or str(error)
        self.records |= {error.record}
        count = len(self.records)
        if count > self.most:
            counted = "1 record" if count == 1 else f"{count} records"
            raise DataError(
                f"{counted} of the training data cannot be read, more than data.max_bad={self.most} allows; the "
                f"first: {self.first}; python tools/check_data.py {self.sources.folder_of(error.record)} names them all"
            )
        return f"{error}; another sample takes its place ({count} of at most data.max_bad={self.most})"

    def replace(self, ids: np.ndarray) -> np.ndarray:
        """Sample numbers with others in the place of those whose record is known to be bad.

        Raises:
            DataError: no record of a source can be read.
        """
        if not self.records:
            return ids
        bad = np.isin(self.sources.samples[ids, 0], list(self.records))
        replaced = ids.copy()
        replaced[bad] = [self._next(number) for number in ids[bad].tolist()]
        return replaced

    def _next(self, number: int) -> int:
        own = next(part for part in self.sources.split(self.ids) if len(part) and part[0] <= number <= part[-1])
        others = np.roll(own, -1 - int(np.searchsorted(own, number)))
        for other in others.tolist():
            if self.sources.samples[other, 0] not in self.records:
                return other
        raise DataError(f"no record of the training data's source can be read; the first: {self.first}")

"""Records that cannot be read: each is told once. In training another sample takes the place of its samples."""

import sys

import numpy as np

from src.data.errors import BadRecordError, DataError
from src.data.record import Record
from src.data.sources import Sources
from src.data.store import Dataset


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


class LenientReader:
    """Reads records one by one for what may pass over some; stderr names each bad one once.

    Args:
        dataset: of the training.
        most: data.max_bad.
    """

    def __init__(self, dataset: Dataset, most: int) -> None:
        self.dataset, self.most = dataset, most
        self.bad: set[int] = set()

    def __call__(self, index: int) -> Record | None:
        """The record, or None if it is bad.

        Raises:
            DataError: more than ``most`` are.
        """
        if index in self.bad:
            return None
        try:
            return next(self.dataset.read([index]))
        except BadRecordError as error:
            if len(self.bad) >= self.most:
                allowed = f" (more than data.max_bad={self.most} records)" if self.most else ""
                raise DataError(f"{error}{allowed}") from None
            self.bad.add(index)
            print(f"skipped: {error}", file=sys.stderr)
            return None

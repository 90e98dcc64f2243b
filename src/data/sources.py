"""Several datasets under one numbering: records, images and samples of each follow those of the previous one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.config import Config
from src.data.errors import BadRecordError, DataError
from src.data.image_codes import open_codes
from src.data.record import Record
from src.data.schema import IMAGE
from src.data.store import Dataset


class Sources:
    """One split of every dataset of a configuration.

    Args:
        config: data and model.
        split: one that all of them have.
        whole: False: only images are read, so that config.model.audio and image need not fit.

    Attributes:
        datasets, weights: each.
        samples: int32 [n, 3]: record, caption (or −1), image_id; no two datasets share a record or an image_id.
        first_samples: the number of each dataset's first sample.
    """

    def __init__(self, config: Config, split: str, whole: bool = True) -> None:
        checked = (config.model.audio, config.model.image) if whole else ()
        folders, self.weights = zip(*config.data.mixture, strict=True)
        self.datasets = [Dataset(folder, split, *checked) for folder in folders]
        self.first_samples = _starts([len(dataset) for dataset in self.datasets])
        self.first_records = _starts([dataset.records for dataset in self.datasets])
        self.samples = self.datasets[0].samples
        if len(self.datasets) > 1:
            parts = zip(self.datasets, self.first_records, strict=True)
            # an image_id is the number of a record
            self.samples = np.concatenate([dataset.samples + np.int32([first, 0, first]) for dataset, first in parts])
        self._codes: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def pictured(self) -> np.ndarray:
        """bool [n]: which samples have an image."""
        return np.concatenate([dataset.presence()[:, IMAGE] for dataset in self.datasets])

    def sided_images(self) -> np.ndarray:
        """The image_ids of which a record tells left from right, as far as the indices say it: int32 [n], ascending."""
        return np.unique(self.samples[np.concatenate([dataset.sided() for dataset in self.datasets]), 2])

    def split(self, ids: np.ndarray) -> list[np.ndarray]:
        """Ascending sample numbers by source."""
        return np.split(ids, np.searchsorted(ids, self.first_samples[1:]))

    def read(self, records: np.ndarray) -> Iterator[tuple[str, Record]]:
        """The name of each record for error messages, and the record, in the requested order.

        Raises:
            BadRecordError: one is not as it was written.
        """
        for source, index in self._locate(records):
            dataset = self.datasets[source]
            try:
                (record,) = dataset.read([index])
            except BadRecordError as error:
                raise BadRecordError(str(error), int(self.first_records[source]) + error.record) from None
            yield dataset.name(index, record.key), record

    def folder_of(self, record: int) -> Path:
        """The folder of a record's source."""
        ((source, _),) = self._locate(np.array([record]))
        return self.datasets[source].folder

    def open_codes(self, config: Config) -> None:
        """Opens the image codes that are stored beside the shards; a source without images needs none.

        Raises:
            DataError: a source lacks those that config.data.codes and model ask for.
        """
        imaged = {source: dataset for source, dataset in enumerate(self.datasets) if dataset.count(IMAGE)}
        self._codes = {source: open_codes(dataset, config) for source, dataset in imaged.items()}

    def codes(self, records: np.ndarray, count: int) -> np.ndarray:
        """The image codes of records, int32 [n, count]; −1 if there are none, or :meth:`open_codes` was not called."""
        found = np.full((len(records), count), -1, np.int32)
        for row, (source, index) in zip(found, self._locate(records), strict=True):
            if source in self._codes:
                row[:] = self._codes[source][index]
        return found

    def _locate(self, records: np.ndarray) -> Iterator[tuple[int, int]]:
        """The source of each record and its number there."""
        sources = np.searchsorted(self.first_records, records, side="right") - 1
        return zip(sources.tolist(), (records - self.first_records[sources]).tolist(), strict=True)

    def require_images(self) -> None:
        """Raises DataError if a source has no image."""
        for dataset in self.datasets:
            if not dataset.count(IMAGE):
                raise DataError(f"{dataset.folder}: split {dataset.split!r} has no image: leave this source out")


def _starts(lengths: list[int]) -> np.ndarray:
    """Where each of several runs begins, int64 [n]."""
    return np.cumsum([0, *lengths[:-1]])

"""Batches of pictures alone, each picture once an epoch: neither text nor sound is decoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from src.config import Config
from src.data import image
from src.data.errors import DataError
from src.data.pipeline import Batch, Loader
from src.data.schema import IMAGE
from src.data.store import Dataset, Record


class PictureLoader(Loader):
    """Batches of ``sample_id`` (B,) int32 and ``image`` (B, S, S, 3) uint8, S being model.tokenizer.size.

    Order and resumption are those of :class:`Loader`. Of several captions of a picture the first one's sample stands
    for it; in place of a record without a picture comes the next one that has one.
    """

    def __init__(self, config: Config, split: str, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.split, self.rank, self.ranks = config, split, rank, ranks
        self.dataset = Dataset(config.data.path, split)
        if not self.dataset.count(IMAGE):
            raise DataError(f"{self.dataset.folder}: split {split!r} has no picture")
        self.ids = np.unique(self.dataset.samples[:, 2], return_index=True)[1]

    def _make(self, ids: np.ndarray, epoch: int, workers: ThreadPoolExecutor) -> tuple[Batch, list[tuple[str, str]]]:
        run = map if self.config.data.workers <= 1 else workers.map
        indices = self.dataset.samples[ids, 0]
        records = [
            record if record.image is not None else self._next_picture(int(index))
            for index, record in zip(indices, self.dataset.read(indices), strict=True)
        ]
        batch = {"sample_id": ids.astype(np.int32), "image": np.stack(list(run(self._decode, records)))}
        return batch, [(record.key, "") for record in records]

    def _decode(self, record: Record) -> np.ndarray:
        name = f"{self.dataset.folder}: split {self.split!r}, record {record.key!r}"
        return image.decode(record.image, self.config.model.tokenizer.size, name)

    def _next_picture(self, index: int) -> Record:
        records = int(self.dataset.samples[:, 0].max()) + 1
        order = [(index + step) % records for step in range(1, records)]
        return next(record for record in self.dataset.read(order) if record.image is not None)

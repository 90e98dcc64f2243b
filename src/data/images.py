"""Batches of images alone, each image once an epoch: neither text nor audio is decoded."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from src.config import Config
from src.data.bad_records import BadRecords
from src.data.coverage import Coverage
from src.data.errors import DataError
from src.data.pipeline import Batch, Loader, Sample
from src.data.sources import Sources


class ImageLoader(Loader):
    """Batches of ``sample_id`` (B,) int32 and ``image`` (B, S, S, 3) uint8, S being model.image_tokenizer.size.

    Order and resumption are those of :class:`Loader`. An image with several captions is taken with its first
    sample; a record without an image is replaced by the next one of its source that has one.
    """

    def __init__(self, config: Config, split: str, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.split, self.rank, self.ranks = config, split, rank, ranks
        self.sources = Sources(config, split, whole=False, codes=False)
        self.sources.require_images()
        self.ids = np.unique(self.sources.samples[:, 2], return_index=True)[1]
        self.bad = BadRecords(self.sources, self.ids, config.data.max_bad)

    def coverage(self) -> list[Coverage]:
        """Of nothing: neither texts nor audio are read."""
        return []

    def _make(
        self, ids: np.ndarray, epochs: np.ndarray, workers: ThreadPoolExecutor, augment: bool = False
    ) -> tuple[Batch, list[tuple[str, str]]]:
        run = map if self.config.data.workers <= 1 else workers.map
        samples = (
            sample if sample.record.image is not None else self._next_image(sample)
            for sample in self._samples(ids, epochs)
        )
        size = self.config.model.image_tokenizer.size

        def decode(sample: Sample) -> tuple[np.ndarray, str]:
            return self._image(sample, size, augment), sample.record.key

        images, keys = zip(*run(decode, samples), strict=True)
        batch = {"sample_id": ids.astype(np.int32), "image": np.stack(images)}
        return batch, [(key, "") for key in keys]

    def _next_image(self, sample: Sample) -> Sample:
        others = self.sources.others(sample.record_number)
        others = others[~np.isin(others, list(self.bad.records))]
        found = zip(others.tolist(), self.sources.read(others), strict=True)
        for number, (name, record) in found:
            if record.image is not None:
                return replace(sample, record=record, record_number=number, name=name)
        raise DataError(f"{sample.name} has no image, and no other image of its source can be read")

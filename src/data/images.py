"""Batches of images alone, each image once an epoch: neither text nor audio is decoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from src.config import Config
from src.data.bad_records import BadRecords
from src.data.coverage import Coverage
from src.data.pipeline import Batch, Loader, Sample
from src.data.sources import Sources


class ImageLoader(Loader):
    """Batches of ``sample_id`` (B,) int32 and ``image`` (B, S, S, 3) uint8, S being model.image_tokenizer.size.

    Order and resumption are those of :class:`Loader`. Of a corpus of which only a part has images, this part is taken;
    an image with several captions, with its first sample.
    """

    def __init__(self, config: Config, split: str, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.split, self.rank, self.ranks = config, split, rank, ranks
        self.sources = Sources(config, split, whole=False)
        self.sources.require_images()
        first = np.unique(self.sources.samples[:, 2], return_index=True)[1]
        self.ids = first[self.sources.pictured()[first]]
        self.bad = BadRecords(self.sources, self.ids, config.data.max_bad)

    def coverage(self) -> list[Coverage]:
        """Of nothing: neither texts nor audio are read."""
        return []

    def _make(
        self, ids: np.ndarray, epochs: np.ndarray, workers: ThreadPoolExecutor, augment: bool = False
    ) -> tuple[Batch, list[tuple[str, str]]]:
        run = map if self.config.data.workers <= 1 else workers.map
        size = self.config.model.image_tokenizer.size

        def decode(sample: Sample) -> tuple[np.ndarray, str]:
            return self._image(sample, size, augment), sample.record.key

        images, keys = zip(*run(decode, self._samples(ids, epochs)), strict=True)
        batch = {"sample_id": ids.astype(np.int32), "image": np.stack(images)}
        return batch, [(key, "") for key in keys]

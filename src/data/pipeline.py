"""Datasets to batches: order, decoding, random draws and read-ahead.

Order, masks and noise are drawn from (seed, epoch, sample): a step's batch is the same in an uninterrupted run, in a
resumed one, and whatever the number of workers.
"""

import functools
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from src.config import Config
from src.data import image, masking
from src.data.errors import DataError
from src.data.image_codes import open_codes
from src.data.regions import fill_regions
from src.data.schema import AUDIO, IMAGE, TEXT, batch_fields, sound_tokens
from src.data.store import Dataset, Record
from src.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
Evaluated = tuple[Batch, int, list[tuple[str, str]]]


class Loader:
    """Batches of one split.

    Args:
        config: reads data, model, objectives and seed.
        split: a split of config.data.path.
        rank: which of the ranks this process is; every rank gets its own config.data.batch_size samples a step.
        ranks: how many there are.
        stored_codes: False: no codes are read even where data.codes names a tokenizer.

    Words are hidden (mlm_*) only where config.objectives.mlm is not 0: it is what needs jieba's dictionary. Codes of
    pictures are those that src.data.codes has left beside the shards, if config.data.codes names their tokenizer.
    """

    def __init__(self, config: Config, split: str, rank: int = 0, ranks: int = 1, *, stored_codes: bool = True) -> None:
        self.config, self.split, self.rank, self.ranks = config, split, rank, ranks
        self.tokenizer = Tokenizer(config.model.text.vocab)
        self.dataset = Dataset(config.data.path, split, config.model.audio, config.model.image)
        self.codes = open_codes(self.dataset, config) if config.data.codes and stored_codes else None
        self.ids = np.arange(len(self.dataset))  # the samples of an epoch

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over is left out, others in each epoch."""
        wanted = self.config.data.batch_size * self.ranks
        if len(self.ids) < wanted:
            raise DataError(
                f"{self.dataset.folder}: split {self.split!r} has {len(self.ids)} samples, a step takes {wanted}: "
                "lower data.batch_size"
            )
        return len(self.ids) // wanted

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """Endless batches from a global step on, made ahead by a thread; closing the iterator ends it."""
        steps = self._training_batches(first_step, self.steps_per_epoch)
        return _ahead(steps, self.config.data.prefetch)

    def evaluation(self, batch_size: int, limit: int = 0, order: np.ndarray | None = None) -> Iterator[Evaluated]:
        """The split in its own order or another, drawing as epoch 0 does, so that figures repeat.

        Args:
            batch_size: rows of every batch; the last one is filled by repeating its last sample.
            limit: only the first so many samples; 0: all.
            order: these samples in this order, int64 [n], instead of the split's.

        Yields:
            (batch, n, samples): n rows count, samples are their (key, caption), the caption "" where there is none.
        """
        ids = self.ids[: limit or None] if order is None else order
        return _ahead(self._evaluation_batches(batch_size, ids), self.config.data.prefetch)

    def _training_batches(self, first_step: int, steps: int) -> Generator[Batch, None, None]:
        size, epoch, step = self.config.data.batch_size, *divmod(first_step, steps)
        with self._workers() as workers:
            while True:
                order = masking.order_rng(self.config.seed, epoch).permutation(self.ids)
                order = order[: steps * self.ranks * size].reshape(steps, self.ranks, size)
                for step_ids in order[step:, self.rank]:
                    yield self._make(step_ids, epoch, workers)[0]
                epoch, step = epoch + 1, 0

    def _evaluation_batches(self, size: int, ids: np.ndarray) -> Generator[Evaluated, None, None]:
        with self._workers() as workers:
            for start in range(0, len(ids), size):
                rows = ids[start : start + size]
                padded = np.pad(rows, (0, size - len(rows)), mode="edge")
                batch, names = self._make(padded, 0, workers)
                yield batch, len(rows), names[: len(rows)]

    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.data.workers, thread_name_prefix="decode")

    def _make(self, ids: np.ndarray, epoch: int, workers: ThreadPoolExecutor) -> tuple[Batch, list[tuple[str, str]]]:
        """The batch of some samples, and their keys and captions."""
        size = len(ids)
        fields = batch_fields(self.config.model, size, self.config.objectives.mask_ratio)
        batch = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in fields.items()}
        samples = self.dataset.samples[ids]  # [B, 3]
        batch["sample_id"][:] = ids
        batch["image_id"][:] = samples[:, 2]
        batch["image_codes"][:] = -1 if self.codes is None else self.codes[samples[:, 0]]
        records = list(self.dataset.read(samples[:, 0]))
        captions = samples[:, 1].tolist()
        run = map if self.config.data.workers <= 1 else workers.map
        for _ in run(functools.partial(self._fill, batch, epoch), range(size), records, captions):
            pass
        return batch, [(record.key, _text(record, caption)) for record, caption in zip(records, captions, strict=True)]

    def _fill(self, batch: Batch, epoch: int, row: int, record: Record, caption: int) -> None:
        """Writes one sample into its row; an absent modality stays zero."""
        presence, model = batch["presence"][row], self.config.model
        presence[:] = record.presence(caption, model.image.input)
        if presence[IMAGE]:
            name = f"{self.dataset.folder}: split {self.split!r}, record {record.key!r}"
            if model.image.input == "region":
                fill_regions(batch, row, record.regions, model.image, name)
            else:
                batch["image"][row] = image.decode(record.image, model.image.size, name)
        if presence[AUDIO]:
            sound = record.sounds[max(caption, 0)][: model.audio.length]
            batch["audio"][row, : len(sound)] = sound
            batch["audio_frames"][row] = len(sound)
        text = _text(record, caption)
        if presence[TEXT]:
            ids, mask = self.tokenizer.encode(text, model.text.max_len)
            batch["text_ids"][row], batch["text_mask"][row] = ids, mask
        self._draw(batch, row, epoch, text)

    def _draw(self, batch: Batch, row: int, epoch: int, text: str) -> None:
        """The row's random part. The masks come last: they draw a varying number of times."""
        objectives, presence = self.config.objectives, batch["presence"][row]
        rng = masking.sample_rng(self.config.seed, epoch, int(batch["sample_id"][row]))
        batch["match_noise"][row] = rng.gumbel(size=len(batch["match_noise"]))
        batch["match_case"][row], batch["match_presence"][row] = masking.draw_match(presence, rng)
        batch["denoise_presence"][row] = masking.draw_given(objectives.denoise_given, presence, TEXT, 0.0, rng)
        shown = masking.draw_given(objectives.draw_given, presence, IMAGE, objectives.draw_drop, rng)
        batch["draw_presence"][row] = shown
        places = self._places(batch, row)
        for name, span in (("mvm", 1), ("mam", objectives.mam_span)):
            slots = batch[f"{name}_positions"].shape[1]
            drawn = masking.mask_places(places[name], slots, objectives.mask_ratio, span, rng)
            batch[f"{name}_positions"][row], batch[f"{name}_weights"][row] = drawn
        batch["mlm_ids"][row] = batch["text_ids"][row]
        if objectives.mlm and presence[TEXT]:
            ids, slots = batch["text_ids"][row], batch["mlm_positions"].shape[1]
            words = self.tokenizer.words(text, len(ids))
            masked = masking.mask_words(ids, words, slots, objectives.mask_ratio, self.tokenizer, rng)
            for name, value in zip(("mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"), masked, strict=True):
                batch[name][row] = value

    def _places(self, batch: Batch, row: int) -> dict[str, int]:
        """How many patches (or regions) and sound tokens the row has."""
        model = self.config.model
        if model.image.input == "region":
            patches = int(batch["region_mask"][row].sum())
        else:
            patches = model.image.tokens * int(batch["presence"][row, IMAGE])
        return {"mvm": patches, "mam": sound_tokens(model.audio, int(batch["audio_frames"][row]))}


def _text(record: Record, caption: int) -> str:
    return record.captions[caption] if caption >= 0 else ""


def _ahead(source: Generator, depth: int) -> Iterator:
    """The items of an iterator, up to ``depth`` of them made ahead by a thread; its errors are raised here.

    The thread starts at the first item asked for and ends when the returned generator is exhausted, closed or dropped.
    """
    made: queue.Queue = queue.Queue(depth)
    stop, end = threading.Event(), object()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return made.put(item, timeout=0.05)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    break
            put(end)
        except Exception as error:  # whatever it is, the consumer raises it
            put(error)
        finally:
            source.close()

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not end:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()

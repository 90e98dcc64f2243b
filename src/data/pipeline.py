"""Datasets to batches: order, decoding, masking and prefetching.

Order, augmentation, masks and noise are sampled from (seed, epoch, sample), where the epoch is the sample's own: the
pass over its source that it is taken in (:mod:`src.data.order`). So a step's batch is the same in an uninterrupted run
and in a resumed one, with any number of workers, and a sample is the same in a batch of any size.
"""

import functools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from src.config import TASKS, Config
from src.data import masking
from src.data.augment import augment_audio, augment_image
from src.data.bad_records import BadRecords
from src.data.coverage import Coverage, Given, measure
from src.data.digests import short_digest
from src.data.errors import BadRecordError, DataError
from src.data.image import decode_image
from src.data.order import Order, Step
from src.data.prefetch import prefetch
from src.data.record import Record
from src.data.regions import fill_regions
from src.data.schema import AUDIO, IMAGE, TEXT, Field, audio_tokens, batch_fields
from src.data.sources import Sources
from src.data.store import Dataset
from src.data.tokenizer import Tokenizer, text_id

Batch = dict[str, np.ndarray]
Place = dict[str, Any]
Made = tuple[Batch, Place, list[str]]  # a batch of training, the place behind it, and what is to be told of it
Evaluated = tuple[Batch, int, list[tuple[str, str]]]


@dataclass(frozen=True)
class Sample:
    """The source of one row of a batch."""

    number: int  # among all samples of the split
    epoch: int  # the pass over its source that it is taken in
    record: Record
    record_number: int  # among all records of the split
    caption: int  # of the record; −1: without one
    name: str  # of the record in error messages

    @property
    def text(self) -> str:
        return self.record.captions[self.caption] if self.caption >= 0 else ""

    @property
    def audio(self) -> np.ndarray | None:
        """Log-mel, features or waveform [frames, …]."""
        return self.record.audio[max(self.caption, 0)] if self.record.audio else None

    @property
    def text_id(self) -> int:
        """Equal for samples of equal text; of those without one, for samples of equal audio. 0 without both."""
        if self.caption >= 0:
            return text_id(self.text)
        return 0 if self.audio is None else short_digest(self.audio.tobytes())


class Batches:
    """The endless batches of a training.

    Attributes:
        place: where the run is behind the last batch that was taken: what :meth:`Loader.batches` goes on from, JSON.
        told: lines for the log, of records that were found to be bad in that batch.
        bad_records: how many were found so far.
    """

    def __init__(self, made: Iterator[Made], position: int, postponed: Sequence[Sequence[int]]) -> None:
        self._made, self.place = made, {"position": position, "postponed": [list(pair) for pair in postponed]}
        self.told: list[str] = []
        self.bad_records = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        batch, self.place, self.told = next(self._made)
        self.bad_records += len(self.told)
        return batch

    def close(self) -> None:
        """Ends the thread that makes them ahead."""
        self._made.close()


class Loader:
    """Batches of one split.

    Args:
        config: reads data, model, objectives and seed.
        split: a split of config.data.path, or of every one of config.data.sources.
        rank: which of the ranks this process is; every rank gets its own config.data.batch_size samples a step.
        ranks: how many there are.

    Words are masked (mlm_*) only if config.objectives.weights.mlm is not 0: that needs jieba's dictionary. Image codes
    are those that tools/make_image_codes.py stored beside the shards, once :meth:`open_codes` is called.
    """

    def __init__(self, config: Config, split: str, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.split, self.rank, self.ranks = config, split, rank, ranks
        self.tokenizer = Tokenizer(config.model.text.vocab)
        self.sources = Sources(config, split)
        self.ids = np.arange(len(self.sources))  # the samples of an epoch
        self.bad = BadRecords(self.sources, self.ids, config.data.max_bad)

    @classmethod
    def held_out(cls, config: Config, split: str) -> "Loader":
        """A loader for :meth:`evaluation`, of the one dataset that config.data has for it."""
        return cls(replace(config, data=config.data.alone(config.data.held_out)), split)

    def open_codes(self) -> None:
        """For who reads ``image_codes``: without it they are −1, and data.codes may name what the data lack.

        Raises:
            DataError: the codes of data.codes are not stored beside the shards.
        """
        self.sources.open_codes(self.config)

    def coverage(self) -> list[Coverage]:
        """How much of each source the model reads."""
        tokenizer, model, given = self.tokenizer, self.config.model, self.given
        return [measure(dataset, tokenizer, model, given) for dataset in self.sources.datasets]

    @property
    def given(self) -> Given | None:
        """What a text must have beside it to count, where the task is to generate texts."""
        row, given = TASKS[self.config.task], self.config.objectives.denoise_text.given
        return Given("objectives.denoise_text.given", given, row.whole) if row.objective == "denoise_text" else None

    @property
    def dataset(self) -> Dataset:
        """The first source."""
        return self.sources.datasets[0]

    @functools.cached_property
    def order(self) -> Order:
        """The order of training."""
        images = self.sources.samples[:, 2] if self.config.data.unique_images else None
        return Order(self.config.seed, self.sources.split(self.ids), self.sources.weights, images)

    def batches(self, position: int = 0, postponed: Sequence[Sequence[int]] = ()) -> Batches:
        """Endless batches from a place in the order on; its arguments are those of :attr:`Batches.place`.

        A sample whose record cannot be read is replaced (:mod:`src.data.bad_records`).

        Raises:
            DataError: the split is too small for a step; on the way: more than data.max_bad records cannot be read.
        """
        wanted = self.config.data.batch_size * self.ranks
        if wanted > len(self.ids):
            folders = ", ".join(str(dataset.folder) for dataset in self.sources.datasets)
            raise DataError(
                f"{folders}: split {self.split!r} has {len(self.ids)} samples, a step takes {wanted}: "
                "lower data.batch_size"
            )
        made = self._training_batches(self.order.steps(wanted, position, postponed))
        return Batches(prefetch(made, self.config.data.prefetch), position, postponed)

    def evaluation(self, batch_size: int, limit: int = 0, order: np.ndarray | None = None) -> Iterator[Evaluated]:
        """The split in its own order or another, with the masks of epoch 0 and without augmentation: metrics repeat.

        Args:
            batch_size: rows of every batch; the last one is filled by repeating its last sample.
            limit: only the first so many samples; 0: all.
            order: these samples in this order, int64 [n], instead of the split's.

        Yields:
            (batch, n, samples): n rows count; samples are their (key, caption), the caption "" if there is none.
        """
        ids = self.ids[: limit or None] if order is None else order
        return prefetch(self._evaluation_batches(batch_size, ids), self.config.data.prefetch)

    def _training_batches(self, steps: Iterator[Step]) -> Generator[Made, None, None]:
        size = self.config.data.batch_size
        rows = slice(self.rank * size, (self.rank + 1) * size)
        with self._workers() as workers:
            for step in steps:
                batch, told = self._make_whole(step.samples[rows], step.passes[rows], workers)
                yield batch, {"position": step.position, "postponed": step.postponed}, told

    def _make_whole(self, ids: np.ndarray, epochs: np.ndarray, workers: ThreadPoolExecutor) -> tuple[Batch, list[str]]:
        """A batch of training, and what is to be told of records that were found to be bad.

        It is made anew for each of them: they are few, and no row then holds a part of another sample.
        """
        told: list[str] = []
        while True:
            try:
                return self._make(self.bad.replace(ids), epochs, workers, augment=True)[0], told
            except BadRecordError as error:
                told.append(self.bad.add(error))

    def _evaluation_batches(self, size: int, ids: np.ndarray) -> Generator[Evaluated, None, None]:
        with self._workers() as workers:
            for start in range(0, len(ids), size):
                rows = ids[start : start + size]
                padded = np.pad(rows, (0, size - len(rows)), mode="edge")
                batch, names = self._make(padded, np.zeros_like(padded), workers)
                yield batch, len(rows), names[: len(rows)]

    def fields(self, size: int) -> dict[str, Field]:
        """The fields of a batch of so many samples."""
        return batch_fields(self.config.model, size, self.config.objectives.masking.ratio)

    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.data.workers, thread_name_prefix="decode")

    def _samples(self, ids: np.ndarray, epochs: np.ndarray) -> Iterator[Sample]:
        records, captions, _ = self.sources.samples[ids].T
        columns = ids.tolist(), epochs.tolist(), self.sources.read(records), records.tolist(), captions.tolist()
        for number, epoch, (name, record), record_number, caption in zip(*columns, strict=True):
            yield Sample(number, epoch, record, record_number, caption, name)

    def _make(
        self, ids: np.ndarray, epochs: np.ndarray, workers: ThreadPoolExecutor, augment: bool = False
    ) -> tuple[Batch, list[tuple[str, str]]]:
        """The batch of some samples, each in an epoch of its own, and their keys and captions."""
        size = len(ids)
        fields = self.fields(size)
        batch = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in fields.items()}
        records, _, images = self.sources.samples[ids].T
        batch["sample_id"][:], batch["image_id"][:] = ids, images
        batch["image_codes"][:] = self.sources.codes(records, batch["image_codes"].shape[1])
        run = map if self.config.data.workers <= 1 else workers.map  # which fills rows while the next records are read
        names = run(functools.partial(self._fill, batch, augment), range(size), self._samples(ids, epochs))
        return batch, list(names)

    def _fill(self, batch: Batch, augment: bool, row: int, sample: Sample) -> tuple[str, str]:
        """Writes one sample into its row and returns its key and caption; an absent modality stays zero."""
        presence, model = batch["presence"][row], self.config.model
        presence[:] = sample.record.presence(sample.caption, model.image.input)
        batch["text_id"][row] = sample.text_id
        if presence[IMAGE] and model.image.input == "region":
            fill_regions(batch, row, sample.record.regions, model.image, sample.name)
        elif presence[IMAGE]:
            batch["image"][row] = self._image(sample, model.image.size, augment)
        if presence[AUDIO]:
            clip = self._audio(sample, augment)
            batch["audio"][row, : len(clip)] = clip
            batch["audio_frames"][row] = len(clip)
        if presence[TEXT]:
            ids, mask = self.tokenizer.encode(sample.text, model.text.max_len)
            batch["text_ids"][row], batch["text_mask"][row] = ids, mask
        self._randomise(batch, row, sample)
        return sample.record.key, sample.text

    def _image(self, sample: Sample, size: int, augment: bool) -> np.ndarray:
        """Its image, uint8 [S, S, 3]."""
        config, resize = self.config.data.augment, self.config.model.image.resize
        try:
            if not augment or not config.augments_images:
                return decode_image(sample.record.image, size, resize, sample.name)
            rng = masking.sample_rng(self.config.seed, sample.epoch, sample.number, masking.IMAGE)
            sided = config.flip > 0 and self._is_sided(sample)
            return augment_image(sample.record, size, resize, sample.name, config, rng, sided)
        except DataError as error:
            raise BadRecordError(str(error), sample.record_number) from None

    def _is_sided(self, sample: Sample) -> bool:
        """Whether any record of its image tells left from right."""
        image, sided = self.sources.samples[sample.number, 2], self._sided_images
        place = np.searchsorted(sided, image)
        return bool(place < len(sided) and sided[place] == image)

    @functools.cached_property
    def _sided_images(self) -> np.ndarray:
        return self.sources.sided_images()

    def _audio(self, sample: Sample, augment: bool) -> np.ndarray:
        """Its audio [frames, …]."""
        clip, config = sample.audio[: self.config.model.audio.length], self.config.data.augment
        if not augment or not config.augments_audio:
            return clip
        rng = masking.sample_rng(self.config.seed, sample.epoch, sample.number, masking.AUDIO)
        return augment_audio(clip, config, rng)

    def _randomise(self, batch: Batch, row: int, sample: Sample) -> None:
        """Fills the random fields of a row.

        The masks come last: they take a varying number of random numbers. The noise has a generator of its own: it
        takes as many numbers as the batch has rows, and nothing else of a sample depends on the batch that it is in.
        """
        objectives, presence = self.config.objectives, batch["presence"][row]
        rng = masking.sample_rng(self.config.seed, sample.epoch, sample.number)
        noise = np.random.default_rng(rng.integers(2**63))
        batch["match_noise"][row] = noise.gumbel(size=len(batch["match_noise"]))
        batch["match_case"][row], batch["match_presence"][row] = masking.sample_match(presence, rng)
        given = masking.sample_given(objectives.denoise_text.given, presence, 0.0, rng, TASKS[self.config.task].whole)
        batch["denoise_text_presence"][row] = given
        image = objectives.denoise_image
        given = masking.sample_given(image.given, presence, image.drop_given, rng)
        batch["denoise_image_presence"][row] = given
        places = self._places(batch, row)
        for name, span in (("mvm", 1), ("mam", objectives.masking.audio_span)):
            slots = batch[f"{name}_positions"].shape[1]
            masked = masking.mask_positions(places[name], slots, objectives.masking.ratio, span, rng)
            batch[f"{name}_positions"][row], batch[f"{name}_weights"][row] = masked
        batch["mlm_ids"][row] = batch["text_ids"][row]
        if objectives.weights.mlm and presence[TEXT]:
            ids, slots = batch["text_ids"][row], batch["mlm_positions"].shape[1]
            words = self.tokenizer.words(sample.text, len(ids))
            masked = masking.mask_words(ids, words, slots, objectives.masking.ratio, self.tokenizer, rng)
            for name, value in zip(("mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"), masked, strict=True):
                batch[name][row] = value

    def _places(self, batch: Batch, row: int) -> dict[str, int]:
        """How many patches (or regions) and audio tokens the row has."""
        model = self.config.model
        if model.image.input == "region":
            patches = int(batch["region_mask"][row].sum())
        else:
            patches = model.image.tokens * int(batch["presence"][row, IMAGE])
        return {"mvm": patches, "mam": audio_tokens(model.audio, int(batch["audio_frames"][row]))}

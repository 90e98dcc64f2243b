"""Encodes what is compared: every text, image and audio clip once.

Kernels round a row differently at another batch size or in another place of the batch. So a split is encoded in the
order of its records' keys, a fixed number of rows at a time: metrics are the same whatever the batch size and the order
of the split.

Letters: ``n`` items, ``L`` tokens of an item, ``D`` their width, ``E`` embedding width.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
from mindspore import nn

from src.data.digests import digest
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, IMAGE_FIELDS, JOINT, TEXT
from src.data.store import Dataset
from src.models.batches import fitting_size, pad_rows, progress, run_batched
from src.models.encoding import EncodeAudio, EncodeImage, EncodeText
from src.models.opt import OPT
from src.sharing import divide

ROWS = 64  # that a graph encodes at once
NAMES = {TEXT: "text", IMAGE: "image", AUDIO: "audio", JOINT: "text+audio"}  # in names of directions


class _Join(nn.Cell):
    """embeddings of texts and of their speech (B, E) → (B, E)."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, text, audio):
        return self.model.embed_joint(text, audio)


@dataclass(frozen=True)
class Items:
    """Encoded items of one modality.

    ``images`` and ``texts`` say what belongs together: items of the same number are of the same image, or say the same
    (an image's is that of one of its captions). ``inputs`` says what the model cannot tell apart. ``samples`` says
    where an item stands in its split. A joint item, a text with its speech, has no tokens of its own: ``parts`` says
    where its two are.
    """

    tokens: np.ndarray  # float32 [n, L, D]
    mask: np.ndarray  # int32 [n, L], 1 on tokens
    embeddings: np.ndarray  # float32 [n, E]
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int64 [n]
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int64 [n]
    ids: np.ndarray | None = None  # int32 [n, T]: of texts; of audio clips their transcripts, once made
    parts: np.ndarray | None = None  # int64 [n, 2]: of joint items, the places of their text and audio
    texts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int64 [n]: the batch's text_id
    inputs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # uint64 [n]: digests

    def __len__(self) -> int:
        return len(self.embeddings)

    def with_ids(self, ids: np.ndarray) -> "Items":
        """The same items with other token ids, int32 [n, T]."""
        return replace(self, ids=ids)

    def take(self, rows: np.ndarray | slice) -> "Items":
        """Some of the items: an index, a mask or a slice."""
        arrays = (getattr(self, column.name) for column in fields(self))
        # of a user's own files nothing says where they stand: what is empty stays empty
        return Items(*(array if array is None or not len(array) else array[rows] for array in arrays))

    @classmethod
    def join(cls, parts: "Sequence[Items]") -> "Items":
        """The items of all parts, which hold the same columns."""
        columns = {column.name: [getattr(part, column.name) for part in parts] for column in fields(cls)}
        joined = {name: None if arrays[0] is None else np.concatenate(arrays) for name, arrays in columns.items()}
        return cls(**joined)


class Encoder:
    """The three encoders with their embedding heads.

    Args:
        model: the network.
        rows: that a graph encodes at once; 0: at most :data:`ROWS`, and a smaller graph encodes fewer items.
    """

    def __init__(self, model: OPT, rows: int = 0) -> None:
        self.rows = rows
        self._text, self._image, self._audio = EncodeText(model), EncodeImage(model), EncodeAudio(model)
        self._join = _Join(model)

    def text(self, ids: np.ndarray, mask: np.ndarray) -> Items:
        """ids, mask int32 [n, T]."""
        embeddings, tokens = self._run(self._text, (ids, mask))
        return Items(tokens, mask, embeddings, ids=ids)

    def image(self, *inputs: np.ndarray) -> Items:
        """pixels uint8 [n, S, S, 3], or of regions the fields that ``schema.IMAGE_FIELDS`` names."""
        embeddings, tokens, mask = self._run(self._image, inputs)
        return Items(tokens, mask, embeddings)

    def audio(self, clips: np.ndarray, frames: np.ndarray) -> Items:
        """clips [n, M, …] as ``schema.audio_layout`` says, frames int32 [n]."""
        embeddings, tokens, mask = self._run(self._audio, (clips, frames))
        return Items(tokens, mask, embeddings)

    def joint(self, texts: Items, clips: Items) -> Items | None:
        """The texts whose sample has an audio clip, each with it, or None where there are none."""
        place = {sample: at for at, sample in enumerate(clips.samples.tolist())}
        parts = [(at, place[sample]) for at, sample in enumerate(texts.samples.tolist()) if sample in place]
        if not parts:
            return None
        rows = np.array(parts, np.int64)
        chosen = texts.take(rows[:, 0])
        (embeddings,) = run_batched(self._join, ROWS, (chosen.embeddings, clips.embeddings[rows[:, 1]]))
        both = zip(chosen.inputs.tolist(), clips.inputs[rows[:, 1]].tolist(), strict=True)
        inputs = np.array([digest(repr(pair).encode()) for pair in both], np.uint64)
        return replace(chosen, tokens=chosen.tokens[:, :0], embeddings=embeddings, parts=rows, inputs=inputs)

    def _run(self, cell: nn.Cell, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return run_batched(cell, self.rows or fitting_size(len(arrays[0]), ROWS), arrays, "encoding")


class _Rows(NamedTuple):
    """What an encoder reads at once, and what the rows are."""

    modality: int
    images: np.ndarray
    samples: np.ndarray
    texts: np.ndarray
    read: list[np.ndarray]


class _Stream:
    """Gathers rows until a batch of an encoder is full, so that what a sample lacks or repeats costs nothing."""

    def __init__(self, modality: int) -> None:
        self.modality = modality
        self.waiting: list[tuple[np.ndarray, ...]] = []  # images, samples, texts, what the encoder reads
        self.count = 0

    def add(self, *arrays: np.ndarray) -> Iterator[_Rows]:
        """Full batches."""
        if len(arrays[0]):
            self.waiting.append(arrays)
            self.count += len(arrays[0])
        while self.count >= ROWS:
            yield self._take(ROWS)

    def finish(self) -> Iterator[_Rows]:
        """The batch that is not full, if there is one."""
        if self.count:
            yield self._take(self.count)

    def _take(self, count: int) -> _Rows:
        columns = [np.concatenate(parts) for parts in zip(*self.waiting, strict=True)]
        images, samples, texts, *read = [column[:count] for column in columns]
        self.count -= count
        self.waiting = [tuple(column[count:] for column in columns)] if self.count else []
        return _Rows(self.modality, images, samples, texts, read)


def encode_split(
    encoder: Encoder,
    loader: Loader,
    images: int = 0,
    wanted: Collection[int] = (TEXT, IMAGE, AUDIO),
    keep_tokens: Collection[int] = (TEXT, IMAGE, AUDIO),
    samples: np.ndarray | None = None,
) -> dict[int, Items]:
    """The items of a split's first images by modality, in the order of :func:`by_key`; empty modalities are left out.

    An image is an item once, however many captions it has.

    Args:
        images: how many, as :func:`first_images` counts them; 0: all.
        wanted: the modalities that are encoded. Of texts the ids are there in any case.
        keep_tokens: the modalities whose tokens are kept beside the embeddings: they take a hundred times the memory.
        samples: these samples of the split, int64 [n], instead of all of the first images.
    """
    numbers = number_images(loader.dataset.samples[:, 2])
    samples = np.arange(first_samples(loader, images)) if samples is None else samples
    order = by_key(loader.dataset, samples)
    encoders = {TEXT: encoder.text if TEXT in wanted else _only_ids, IMAGE: encoder.image, AUDIO: encoder.audio}
    streams = {modality: _Stream(modality) for modality in encoders if modality in wanted or modality == TEXT}

    def encode(rows: _Rows) -> tuple[int, Items]:
        # the last batch is filled up, lest a smaller graph be compiled for it
        items = encoders[rows.modality](*(pad_rows(column, ROWS) for column in rows.read)).take(
            slice(len(rows.samples))
        )
        inputs = [digest(b"".join(row)) for row in zip(*map(_rows_as_bytes, rows.read), strict=True)]
        marks = {"images": rows.images, "samples": rows.samples, "texts": rows.texts}
        items = replace(items, inputs=np.array(inputs, np.uint64), **marks)
        if rows.modality not in keep_tokens:
            items = replace(items, tokens=items.tokens[:, :0].copy())
        return rows.modality, items

    found: dict[int, list[Items]] = {modality: [] for modality in streams}
    for modality, items in divide(_read_split(loader, order, numbers, streams), encode):
        found[modality].append(items)
    return {modality: Items.join(parts) for modality, parts in found.items() if parts}


def _read_split(
    loader: Loader, order: np.ndarray, numbers: np.ndarray, streams: Mapping[int, _Stream]
) -> Iterator[_Rows]:
    """Samples in an order as what the encoders read at once; an image comes once, however many captions it has.

    Args:
        numbers: the image of every sample of the split, int64 [n].
    """
    seen = np.zeros(numbers.max(initial=-1) + 1, bool)
    size = loader.config.eval.batch_size
    for batch, n, _ in progress(loader.evaluation(size, order=order), "encoding", -(-len(order) // size)):
        row = batch["sample_id"][:n].astype(np.int64)
        presence, number = batch["presence"][:n] == 1, numbers[row]
        first = np.zeros(n, bool)
        first[np.unique(number, return_index=True)[1]] = True
        fresh = presence[:, IMAGE] & first & ~seen[number]
        seen[number[fresh]] = True
        for modality, chosen, names in (
            (TEXT, presence[:, TEXT], ("text_ids", "text_mask")),
            (IMAGE, fresh, IMAGE_FIELDS[loader.config.model.image.input]),
            (AUDIO, presence[:, AUDIO], ("audio", "audio_frames")),
        ):
            if modality in streams:
                marks = number[chosen], row[chosen], batch["text_id"][:n][chosen].astype(np.int64)
                yield from streams[modality].add(*marks, *(batch[name][:n][chosen] for name in names))
    for stream in streams.values():
        yield from stream.finish()


def by_key(dataset: Dataset, samples: np.ndarray) -> np.ndarray:
    """Samples, int64 [n], by the key of their record, then by caption."""
    records, captions = dataset.samples[samples, :2].T
    distinct, inverse = np.unique(records, return_inverse=True)
    keys = np.array([record.key for record in dataset.read(distinct)])
    return samples[np.lexsort((samples, captions, keys[inverse.reshape(-1)]))]


def _rows_as_bytes(column: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in column]


def _only_ids(ids: np.ndarray, mask: np.ndarray) -> Items:
    """Texts that nothing is compared with."""
    return Items(np.zeros((len(ids), 0, 0), np.float32), mask, np.zeros((len(ids), 0), np.float32), ids=ids)


def number_images(image_ids: np.ndarray) -> np.ndarray:
    """Images numbered as they first appear, int64 [n]; a record without an image has a number, too."""
    _, first, inverse = np.unique(image_ids, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]


def first_images(items: dict[int, Items], images: int, having: Collection[int] = ()) -> dict[int, Items]:
    """Only the items of the first images (0: all).

    Args:
        having: the modalities without which an image, or a record that has none, does not count; empty: any two.
    """
    if not images:
        return items
    limit = _behind(images, {modality: group.images for modality, group in items.items()}, having)
    kept = {modality: group.take(group.images < limit) for modality, group in items.items()}
    return {modality: group for modality, group in kept.items() if len(group)}


def first_samples(loader: Loader, images: int, having: Collection[int] = ()) -> int:
    """How many samples of a split hold its first images (0: all), as :func:`first_images` counts them."""
    dataset = loader.dataset
    if not images:
        return len(dataset)
    numbers, presence = number_images(dataset.samples[:, 2]), dataset.presence(loader.config.model.image.input)
    limit = _behind(images, {modality: numbers[presence[:, modality]] for modality in (TEXT, IMAGE, AUDIO)}, having)
    beyond = np.flatnonzero(numbers >= limit)
    return int(beyond[0]) if len(beyond) else len(numbers)


def _behind(images: int, owned: Mapping[int, np.ndarray], having: Collection[int]) -> int:
    """The number behind those of the first images that count; ``owned``: the numbers that have each modality."""
    have = np.zeros((1 + max((numbers.max(initial=-1) for numbers in owned.values()), default=-1), 3), bool)
    for modality, numbers in owned.items():
        have[numbers, modality] = True
    counted = np.flatnonzero(have[:, list(having)].all(1) if having else have.sum(1) > 1)
    return int(counted[images]) if images < len(counted) else sys.maxsize

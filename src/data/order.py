"""In which order a run takes its samples: every source shuffled, several mixed by weight, whatever a step takes of it.

The order is one endless stream. A step takes the next samples of it, as many as all ranks' batches hold together, and
rank r the r-th part of them: a run that goes on with other ranks or batches goes on in the stream. Nothing is left out.

A *pass* takes each sample of a source once, in an order of its own. An *epoch* is as many samples of the stream as the
sources hold together. They are apportioned to the sources by weight (by largest remainders: no source is off by a whole
sample) and spread evenly over the epoch, so that every step has about the same mixture, but at no fixed places: the
place in a step decides which losses read a sample. The passes of a source continue across epochs: no sample comes again
before all others of its source. So each (pass, sample) pair occurs at most once in a training, and it seeds the
sample's random numbers. With one source, an epoch is a pass.

The stream follows from the number of the epoch alone. With unique images a step passes over a sample whose image it
has already; such samples are *postponed*: they are the first that the next step may take. A run's place is therefore
the number of samples that its steps have taken, its *position*, and the postponed ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from src.data.errors import DataError
from src.data.masking import order_rng

NEIGHBOURS = 16  # samples of an epoch among which sources change places


@dataclass(frozen=True)
class Step:
    """The samples of a step, those of all ranks together, and the place of the run behind it."""

    samples: np.ndarray  # their numbers, int32 [n]
    passes: np.ndarray  # the pass that each is of, int32 [n]
    position: int  # samples that steps have taken
    postponed: list[list[int]]  # [sample, pass] of those that were passed over


class Order:
    """The samples of every step.

    Args:
        seed: of the run.
        sources: each source's sample numbers, int [n].
        weights: theirs, positive.
        images: the image of every sample number, if no step may hold an image twice; otherwise None.

    Attributes:
        size: samples of an epoch.
        shares: samples of an epoch that come from each source.
    """

    def __init__(
        self, seed: int, sources: Sequence[np.ndarray], weights: Sequence[float], images: np.ndarray | None = None
    ) -> None:
        self.seed, self.sources, self.images = seed, sources, images
        self.size = sum(map(len, sources))
        self.shares = apportion(self.size, weights)
        if 0 in self.shares:
            place = self.shares.index(0)
            raise DataError(
                f"data.sources[{place}].weight={weights[place]} gives less than one sample in an epoch of "
                f"{self.size}: raise it, or leave the source out"
            )

    def epoch(self, number: int) -> np.ndarray:
        """The samples of an epoch: their numbers and the pass that each is of, int32 [2, size]."""
        taken = [self._take(source, number) for source in range(len(self.sources))]
        if len(taken) == 1:
            return taken[0]
        mixed, turns = np.empty((2, self.size), np.int32), self._turns(number)
        for source, samples in enumerate(taken):
            mixed[:, turns == source] = samples
        return mixed

    def _turns(self, epoch: int) -> np.ndarray:
        """The source of each sample of an epoch, int64 [size].

        The k-th of a source's n stands anywhere in the k-th of n equal parts of the epoch. Of a frequent source that
        would still leave a pattern where a step is a multiple of it, so that neighbours change places.
        """
        rng = order_rng(self.seed, epoch, len(self.sources))
        places = np.concatenate([(np.arange(share) + rng.random(share)) / share for share in self.shares])
        turns = np.repeat(np.arange(len(self.shares)), self.shares)[np.argsort(places, kind="stable")]
        whole = self.size - self.size % NEIGHBOURS
        near = rng.permuted(turns[:whole].reshape(-1, NEIGHBOURS), axis=1)
        return np.concatenate([near.reshape(-1), rng.permutation(turns[whole:])])

    def steps(self, size: int, position: int = 0, postponed: Sequence[Sequence[int]] = ()) -> Iterator[Step]:
        """The endless steps of ``size`` samples from a place on; its arguments are those of a :class:`Step`.

        Raises:
            DataError: an image has more samples than there are steps that could take them.
        """
        self._check_images(size)
        return self._steps(size, position, np.array(postponed, np.int32).reshape(-1, 2).T)

    def _steps(self, size: int, position: int, held: np.ndarray) -> Iterator[Step]:
        """Args: held: the postponed samples and their passes, int32 [2, n]."""
        stream = _Stream(self, position + held.shape[1])
        while True:
            waited, found = held.shape[1], np.concatenate([held, stream.take(size - held.shape[1])], 1)
            first = self._first(found)
            while len(first) < size:
                found = np.concatenate([found, stream.take(size - len(first))], 1)
                first = self._first(found)
            step, held = found[:, first[:size]], np.delete(found, first[:size], 1)
            if waited:  # what waited would stand in the first rows of every step
                step = order_rng(self.seed, position, len(self.sources) + 1).permutation(step, axis=1)
            position += size
            yield Step(*step, position, held.T.tolist())

    def _first(self, found: np.ndarray) -> np.ndarray:
        """Where the samples [2, n] stand that a step may take: all of them, or of each image the first."""
        if self.images is None:
            return np.arange(found.shape[1])
        return np.sort(np.unique(self.images[found[0]], return_index=True)[1])

    def _take(self, source: int, epoch: int) -> np.ndarray:
        """The samples of a source in an epoch and their passes, int32 [2, share]."""
        ids, share = self.sources[source], self.shares[source]
        taken, done = np.empty((2, share), np.int32), 0
        while done < share:
            number, start = divmod(epoch * share + done, len(ids))
            some = order_rng(self.seed, number, source).permutation(ids)[start : start + share - done]
            taken[0, done : done + len(some)], taken[1, done : done + len(some)] = some, number
            done += len(some)
        return taken

    def _check_images(self, size: int) -> None:
        """No image may have so many samples that more are postponed with every step."""
        if self.images is None:
            return
        for ids, share in zip(self.sources, self.shares, strict=True):
            most = int(np.unique(self.images[ids], return_counts=True)[1].max())
            if most * share * size > len(ids) * self.size:
                raise DataError(
                    f"data.unique_images: an image has {most} samples, more than there are steps of {size} in a pass "
                    "over its source: lower data.batch_size, or allow repeats"
                )


class _Stream:
    """The epochs of an order, one behind the other, from a sample on."""

    def __init__(self, order: Order, start: int) -> None:
        self.order = order
        self.number, self.start = divmod(start, order.size)
        self.epoch: np.ndarray | None = None  # it takes a moment for millions of samples

    def take(self, count: int) -> np.ndarray:
        """The next samples and their passes, int32 [2, count]; none for a negative count."""
        taken = []
        while count > 0:
            if self.epoch is None:
                self.epoch = self.order.epoch(self.number)
            taken.append(self.epoch[:, self.start : self.start + count])
            count -= taken[-1].shape[1]
            self.start += taken[-1].shape[1]
            if self.start == self.order.size:
                self.number, self.start, self.epoch = self.number + 1, 0, None
        return np.concatenate([np.empty((2, 0), np.int32), *taken], 1)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts in proportion to the weights, each off by less than one, by largest remainders."""
    quotas = total * np.asarray(weights, np.float64) / sum(weights)
    parts = np.floor(quotas).astype(np.int64)
    neediest = np.argsort(parts - quotas, kind="stable")[: total - parts.sum()]
    parts[neediest] += 1
    return parts.tolist()


def evenly_apart(count: int, most: int) -> np.ndarray:
    """Which of ``count`` items stand for all, from the first to the last, without repetition: int64 [≤ most]."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)

"""Which samples a step takes: every source shuffled, several mixed by weight, no image twice if the user wants that.

A *pass* takes each sample of a source once, in an order of its own. With one source, an epoch is a pass cut to full
steps; the samples left over differ from epoch to epoch. With several, an epoch takes as many samples as they hold
together, also cut to full steps. They are apportioned to the sources by weight (by largest remainders: no source is off
by a whole sample) and spread evenly over the epoch, so that every step has about the same mixture; within its step a
sample stands anywhere, because its place decides which losses read it. The passes of a source continue across epochs:
no sample comes again before all others of its source. So each (pass, sample) pair occurs at most once in a training,
and it seeds the sample's random numbers.

The order follows from the number of the epoch alone: nothing is remembered, and a run resumes anywhere.
"""

from collections.abc import Sequence

import numpy as np

from src.data.errors import DataError
from src.data.masking import order_rng


class Order:
    """The samples of every step.

    Args:
        seed: of the run.
        sources: each source's sample numbers, int [n].
        weights: theirs, positive.
        step_size: samples a step takes, those of all ranks together.
        images: the image of every sample number, if no step may hold an image twice; otherwise None.

    Attributes:
        steps: of an epoch; 0 if the sources do not fill one.
        shares: samples of an epoch that come from each source.
    """

    def __init__(
        self,
        seed: int,
        sources: Sequence[np.ndarray],
        weights: Sequence[float],
        step_size: int,
        images: np.ndarray | None = None,
    ) -> None:
        self.seed, self.sources, self.step_size, self.images = seed, sources, step_size, images
        self.steps = sum(map(len, sources)) // step_size
        self.shares = apportion(self.steps * step_size, weights)
        if self.steps and 0 in self.shares:
            place = self.shares.index(0)
            raise DataError(
                f"data.sources[{place}].weight={weights[place]} gives less than one sample in an epoch of "
                f"{self.steps * step_size}: raise it, or leave the source out"
            )
        # with one source an epoch begins with a pass
        self.passes = self.shares if len(sources) == 1 else [len(ids) for ids in sources]

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The sample numbers of an epoch's steps and the pass that each is of, both int32 [steps, step_size]."""
        samples, passes, origins = self._mixed([self._take(source, number) for source in range(len(self.sources))])
        shape = self.steps, self.step_size
        if self.images is not None:
            # a generator of its own: if no image repeats, the order is the same as without this step
            rng = order_rng(self.seed, number, len(self.sources))
            places = spread(self.images[samples].reshape(shape), origins.reshape(shape), rng).reshape(-1)
            samples, passes = samples[places], passes[places]
        samples, passes = samples.reshape(shape), passes.reshape(shape)
        if len(self.sources) > 1:
            # spreading alone would give a small source the same place in every step: always the same rank and levels
            rng = order_rng(self.seed, number, len(self.sources) + 1)
            places = rng.permuted(np.tile(np.arange(self.step_size), (self.steps, 1)), axis=1)
            samples, passes = (np.take_along_axis(table, places, 1) for table in (samples, passes))
        return samples, passes

    def _take(self, source: int, epoch: int) -> np.ndarray:
        """The samples of a source in an epoch: their numbers, their passes and the source, int32 [3, share]."""
        length, share = self.passes[source], self.shares[source]
        taken, done = np.full((3, share), source, np.int32), 0
        while done < share:
            number, start = divmod(epoch * share + done, length)
            some = order_rng(self.seed, number, source).permutation(self.sources[source])[start:length][: share - done]
            taken[0, done : done + len(some)], taken[1, done : done + len(some)] = some, number
            done += len(some)
        return taken

    def _mixed(self, taken: list[np.ndarray]) -> np.ndarray:
        """Several sources' int32 [3, share] as one [3, n], each spread evenly over it."""
        if len(taken) == 1:
            return taken[0]
        # the k-th of n samples stands at (k + ½) / n of the epoch
        places = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        return np.concatenate(taken, 1)[:, np.argsort(places, kind="stable")]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts in proportion to the weights, each off by less than one, by largest remainders."""
    quotas = total * np.asarray(weights, np.float64) / sum(weights)
    parts = np.floor(quotas).astype(np.int64)
    neediest = np.argsort(parts - quotas, kind="stable")[: total - parts.sum()]
    parts[neediest] += 1
    return parts.tolist()


def spread(images: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves as few samples as needed for no step to hold an image twice.

    A sample whose image occurs earlier in its step is exchanged with a sample of the same group in a step without that
    image; the other sample must be new to its step, or be a repetition where it is. Each exchange increases the number
    of different images, summed over the steps. One can always be found if no image has more samples than there are
    steps and every step holds equally many samples of a group.

    Args:
        images: int [steps, size], the image of each place's sample.
        groups: int [steps, size]; samples are exchanged within a group.
        rng: chooses the sample to exchange with.

    Returns:
        int64 [steps, size]: the old place, counted over all steps, of the sample at each new place.

    Raises:
        DataError: an image has too many samples.
    """
    images, places = images.copy(), np.arange(images.size).reshape(images.shape)
    for step, slot in _repeated(images):
        while np.count_nonzero(images[step] == images[step, slot]) > 1:
            other = _partner(images, groups, step, slot, rng)
            for table in (images, places):
                table[step, slot], table[other] = table[other], table[step, slot]
    return places


def _repeated(images: np.ndarray) -> np.ndarray:
    """(step, slot) of every sample whose image occurs earlier in its step, int64 [n, 2]."""
    order = np.argsort(images, axis=1, kind="stable")
    ordered = np.take_along_axis(images, order, 1)
    steps, ranks = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    return np.stack((steps, order[steps, ranks + 1]), 1)


def _partner(images: np.ndarray, groups: np.ndarray, step: int, slot: int, rng: np.random.Generator) -> tuple[int, int]:
    """Step and slot of the sample to exchange with."""
    steps, image = len(images), images[step, slot]
    begin = rng.integers(steps)
    for other in range(begin, begin + steps):
        row = images[other % steps]
        if image in row:
            continue
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        fits = ~np.isin(row, images[step]) | (counts[inverse] > 1)
        found = np.flatnonzero(fits & (groups[other % steps] == groups[step, slot]))
        if len(found):
            return other % steps, int(rng.choice(found))
    raise DataError(
        f"data.unique_images: an image has {np.count_nonzero(images == image)} samples in an epoch of {steps} "
        "steps: lower data.batch_size, or allow repeats"
    )


def evenly_apart(count: int, most: int) -> np.ndarray:
    """Which of ``count`` items stand for all, from the first to the last, without repetition: int64 [≤ most]."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)

"""Work that the ranks of a run divide: each does some of the pieces, and all have all results.

What is computed in batches goes through :func:`divide`. It is a plain loop, unless a crew is at work: then the ranks
take the pieces in turns, each whole, so that the results are those of one process to the bit.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

Piece, Result = TypeVar("Piece"), TypeVar("Result")
MOST = 64 << 20  # bytes that a rank sends at once


class Interruption(BaseException):
    """Ends what may be given up and done again, such as an evaluation; ``except Exception`` lets it pass."""


class SharedWorkError(RuntimeError):
    """Another rank failed at its part of the work."""


class Crew:
    """The ranks that work together, seen from one of them. All of them must divide the same work in the same order.

    Args:
        rank, ranks: this one, and how many there are.
        asked: whether to give up; then all give up together, by an :class:`Interruption`.
    """

    def __init__(self, rank: int, ranks: int, asked: Callable[[], bool] = lambda: False) -> None:
        self.rank, self.ranks, self.asked = rank, ranks, asked
        self._told: Exception | None = None  # what all ranks know of
        self._turn = 0  # pieces so far, so that the first piece of each work is not always the same rank's

    def divide(self, pieces: Iterable[Piece], compute: Callable[[Piece], Result]) -> Iterator[Result]:
        """As :func:`divide`; whatever happens on a rank, it tells the others before it goes its way."""
        found: dict[int, bytes] = {}
        problem: Exception | None = None
        number = -1
        try:
            for number, piece in enumerate(pieces):
                if self.asked():
                    break
                if (self._turn + number) % self.ranks == self.rank:
                    with working_together(None):  # inside of a piece nothing is divided
                        # at once: what a graph has returned may be overwritten by its next call
                        found[number] = pickle.dumps(compute(piece), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            problem = error
        parts = self.meet(found, problem)
        self._turn += number + 1
        joined = {number: result for part in parts for number, result in part.items()}
        for number in sorted(joined):
            yield pickle.loads(joined.pop(number))

    def meet(self, found: Any, problem: Exception | None = None) -> list[Any]:
        """What every rank has found, in their order.

        Args:
            problem: what this rank failed with; it is told to the others and raised.

        Raises:
            SharedWorkError: another rank failed.
            Interruption: a rank was asked to give up.
        """
        said = None if problem is None else f"{type(problem).__name__}: {problem}"
        parts = self.exchange((found, said, self.asked()))
        if problem is not None:
            self._told = problem
            raise problem
        for rank, (_, said, _) in enumerate(parts):
            if said is not None:
                self._told = SharedWorkError(f"rank {rank}: {said}")
                raise self._told
        if any(asked for *_, asked in parts):
            raise Interruption
        return [part for part, *_ in parts]

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave it alike: what one of them fails with between two meetings it tells at the next one."""
        try:
            yield
        except Exception as error:
            if error is not self._told:
                self.meet(None, error)
            raise
        self.meet(None)

    def exchange(self, value: Any) -> list[Any]:
        """What every rank gives, in their order."""
        data = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
        sizes = _gather(np.array([len(data)], np.int32)).reshape(-1).tolist()
        width = -(-max(sizes) // 4) * 4
        padded = np.pad(data, (0, width - len(data))).view(np.int32)
        steps = range(0, len(padded), MOST // 4)
        rows = np.concatenate([_gather(padded[at : at + MOST // 4]) for at in steps], 1)  # [ranks, width / 4]
        return [pickle.loads(row.tobytes()[:size]) for row, size in zip(rows, sizes, strict=True)]


def _gather(row: np.ndarray) -> np.ndarray:
    """int32 [n] of every rank → [ranks, n]."""
    from mindspore import Tensor, ops  # not above: most who divide work are alone

    return ops.AllGather()(Tensor(row[None])).asnumpy()


_crew: Crew | None = None


@contextmanager
def working_together(crew: Crew | None) -> Iterator[None]:
    """Inside, work is divided among a crew, whose ranks leave it together; None: among nobody."""
    global _crew
    before, _crew = _crew, crew
    try:
        with contextlib.nullcontext() if crew is None or crew.ranks == 1 else crew.together():
            yield
    finally:
        _crew = before


def divide(pieces: Iterable[Piece], compute: Callable[[Piece], Result]) -> Iterator[Result]:
    """``compute`` of every piece, in their order; with a crew at work each on one rank, and all have all results.

    Alone, each is computed when it is asked for.

    Raises:
        Interruption: a rank was asked to give up.
        SharedWorkError: another rank failed.
    """
    if _crew is None or _crew.ranks == 1:
        return map(compute, pieces)
    return _crew.divide(pieces, compute)

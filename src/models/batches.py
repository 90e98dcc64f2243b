"""Running a graph of one fixed shape over any number of rows."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from src.sharing import divide

QUIET_SECONDS = 2.0  # work that is over sooner shows no progress bar


def fitting_size(rows: int, largest: int, compiled: Iterable[int] = ()) -> int:
    """The batch size for so many rows, at most ``largest``.

    The smallest size that is compiled already and holds the rows; otherwise the next power of two, so that few shapes
    are compiled and a single query is not padded to a whole batch.
    """
    rows = min(rows, largest)
    return min((size for size in compiled if size >= rows), default=min(largest, 1 << max(0, rows - 1).bit_length()))


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """[n, …] → [size, …] by repeating the last row."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")


def run_batched(cell: nn.Cell, size: int, arrays: Sequence[np.ndarray], label: str = "") -> tuple[np.ndarray, ...]:
    """Calls the Cell on batches of ``size`` rows, the last one padded, and joins what it returns.

    Args:
        cell: takes the arrays as tensors [size, …] and returns one or several tensors [size, …].
        arrays: [n, …] with n ≥ 1, the same n for all.
        label: of the progress bar.
    """

    def compute(rows: slice) -> tuple[np.ndarray, ...]:
        results = cell(*[Tensor(pad_rows(array[rows], size)) for array in arrays])
        results = results if isinstance(results, tuple) else (results,)
        return tuple(part.asnumpy()[: rows.stop - rows.start] for part in results)

    return join_batches(len(arrays[0]), size, compute, label)


def join_batches(
    count: int, size: int, compute: Callable[[slice], tuple[np.ndarray, ...]], label: str = ""
) -> tuple[np.ndarray, ...]:
    """Computes ``count`` ≥ 1 rows, at most ``size`` at once, and joins what is returned for them.

    Args:
        compute: of some rows one or several arrays, [rows, …] each.
        label: of the progress bar.
    """
    batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    joined: tuple[np.ndarray, ...] = ()
    for rows, parts in zip(batches, divide(progress(batches, label), compute), strict=True):
        joined = joined or tuple(np.empty((count, *part.shape[1:]), part.dtype) for part in parts)
        for whole, part in zip(joined, parts, strict=True):
            whole[rows] = part  # at once: asnumpy shares memory with a graph's output, which its next call overwrites
    return joined


def progress(steps: Iterable | None, label: str, total: int | None = None) -> tqdm:
    """A progress bar that appears once the work takes more than a moment, and goes when it is done."""
    return tqdm(steps, label, total, delay=QUIET_SECONDS, leave=False, dynamic_ncols=True)


def absent(count: int, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros without memory of their own in place of a modality's tokens [n, L, D] and mask [n, L]."""
    return np.broadcast_to(np.float32(0), (count, length, width)), np.broadcast_to(np.int32(0), (count, length))

"""Dropout whose masks follow from (seed, step, rank, part of the batch, layer), not from a generator's history.

A resumed run so drops what the uninterrupted one drops, and a pass over a batch can be repeated.
"""

import functools
import zlib

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

# of an integer hash with full avalanche (lowbias32, Ellis 2018), as int32
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32


@functools.cache
def _key() -> Parameter:
    """What all masks of a process begin from. No Cell owns it, so that no weight file holds it."""
    return Parameter(Tensor(0, ms.int32), name="dropout_key", requires_grad=False)


def set_key(*numbers: int) -> None:
    """Other numbers, other masks.

    Args:
        numbers: not negative: seed, step, rank and the like.
    """
    key = np.random.SeedSequence(numbers).generate_state(1).view(np.int32)[0]
    _key().set_data(Tensor(key, ms.int32))


class Dropout(nn.Cell):
    """x·m / (1 − p) in training, with m 0 at a share p of the elements; x otherwise.

    An element is dropped if the product of a random number of its row and one of its column is small. Both are hashed
    from their places, the key of :func:`set_key` and this layer's ``salt``: two short vectors, and one product an
    element.

    Args:
        p: in (0, 1).

    Inputs and outputs:
        (…, D) float.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.salt = p, 0
        self.limit = Tensor(round(p * 2**32) - 2**31, ms.int32)
        self.__dict__["key"] = _key()  # not as an attribute of a Cell, which would own it

    def construct(self, x):
        if not self.training:
            return x
        width = x.shape[-1]
        key = scramble(self.key.value() + self.salt)
        rows = odd(scramble(ops.arange(x.size // width).astype(ms.int32) + key)).reshape(-1, 1)
        columns = odd(scramble(ops.arange(width).astype(ms.int32) + scramble(key + 1)))
        kept = (rows * columns >= self.limit).astype(x.dtype) * (1.0 / (1.0 - self.p))
        return x * kept.reshape(x.shape)


def scramble(x):
    """int32 → int32: every bit of the result depends on all of x. The shifts fill with the sign, which does no harm."""
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, Tensor(16, ms.int32))) * FIRST
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, Tensor(15, ms.int32))) * SECOND
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, Tensor(16, ms.int32)))


def odd(x):
    """An even factor would take bits from the product."""
    return ops.bitwise_or(x, Tensor(1, ms.int32))


def dropouts(cell: nn.Cell) -> list[Dropout]:
    """Those of a Cell and its parts."""
    return [part for _, part in cell.cells_and_names() if isinstance(part, Dropout)]


def salt_dropouts(network: nn.Cell) -> None:
    """Gives every dropout of a network masks of its own, which follow from its name."""
    for name, part in network.cells_and_names():
        if isinstance(part, Dropout):
            part.salt = zlib.crc32(name.encode()) - 2**31

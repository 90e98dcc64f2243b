"""In which type the network multiplies, and what of it is computed twice; decided where a network is built.

``runtime.precision``: weights, their moments and whatever is handed from layer to layer are float32 in every precision.
In half precision the products (linear layers, the two of attention, convolutions, logits by a table of tokens) take
their operands in float16 or bfloat16: the layers ask :func:`compute_type` when made, and cast by hand. Softmax,
layer norm, losses, unit vectors and the codebook stay float32, for half precision holds neither their sums nor their
differences. Casts to the type that a tensor has already are nothing: in fp32 none is left in a graph.

``runtime.recompute``: the backward pass computes each Transformer layer again from its input, which is all that is kept
of it (Chen et al. 2016).

    with building("fp16", recompute=True):
        model = OPT(config, vocab_size)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mindspore as ms

from src import runtime

TYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}  # by runtime.precision
_compute_type = ContextVar("compute_type", default=ms.float32)
_recompute = ContextVar("recompute", default=False)
_device: ContextVar[str | None] = ContextVar("device", default=None)


@contextmanager
def building(precision: str, recompute: bool | None = None, device: str | None = None) -> Iterator[None]:
    """Layers that are made inside the block multiply in this precision, a key of :data:`TYPES`.

    Args:
        recompute: compute Transformer layers again in the backward pass; None: as outside the block.
        device: that the layers are for, if they are to be looked at and not run; None: as outside the block.
    """
    token = _compute_type.set(TYPES[precision])
    again = _recompute.set(recomputes() if recompute is None else recompute)
    place = _device.set(device or _device.get())
    try:
        yield
    finally:
        _device.reset(place)
        _recompute.reset(again)
        _compute_type.reset(token)


def compute_type():
    """The type of the operands of products in layers that are being made."""
    return _compute_type.get()


def recomputes() -> bool:
    """True for Transformer layers that are made to be computed again in the backward pass."""
    return _recompute.get()


def runs_own_kernels() -> bool:
    """True for layers that run :mod:`src.models.kernels`: those of float32 on a CPU.

    Layers of half precision run the stock operators on a CPU as well, so that it shows what an accelerator computes;
    so do those that are computed twice, for MindSpore keeps what a backward of one's own reads.
    """
    is_cpu = runtime.is_cpu() if _device.get() is None else _device.get() == "CPU"
    return is_cpu and compute_type() == ms.float32 and not recomputes()


def has_flash_attention() -> bool:
    """True for layers whose attention is one operator that holds no weights: those of half precision on Ascend."""
    return (_device.get() or runtime.device()) == "Ascend" and compute_type() != ms.float32

"""In which type the network multiplies: ``runtime.precision``, decided where a network is built.

Weights, their moments and whatever is handed from layer to layer are float32 in every precision. In half precision the
products (linear layers, the two of attention, convolutions, logits by a table of tokens) take their operands in
float16 or bfloat16: the layers ask :func:`compute_type` when they are made, and cast by hand. Softmax, layer norm,
losses, unit vectors and the codebook stay float32, for half precision holds neither their sums nor their differences.

    with building("fp16"):
        model = OPT(config, vocab_size)

Casts to the type that a tensor has already are nothing: in fp32 none is left in a graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mindspore as ms

from src import runtime

TYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}  # by runtime.precision
_compute_type = ContextVar("compute_type", default=ms.float32)


@contextmanager
def building(precision: str) -> Iterator[None]:
    """Layers that are made inside the block multiply in this precision, a key of :data:`TYPES`."""
    token = _compute_type.set(TYPES[precision])
    try:
        yield
    finally:
        _compute_type.reset(token)


def compute_type():
    """The type of the operands of products in layers that are being made."""
    return _compute_type.get()


def runs_own_kernels() -> bool:
    """True for layers that run :mod:`src.models.kernels`: those of float32 on a CPU.

    Layers of half precision run the stock operators on a CPU as well, so that it shows what an accelerator computes.
    """
    return runtime.is_cpu() and compute_type() == ms.float32

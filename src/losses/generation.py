"""Losses of what the decoders generate."""

import mindspore as ms
from mindspore import Tensor, ops

from src.losses.classification import cross_entropy


def code_loss(logits: Tensor, codes: Tensor, given: Tensor) -> Tensor:
    """Mean cross-entropy of the codes of rows that have a picture and were given something.

    Args:
        logits: (R·P', K) float.
        codes: (R, P') int32; −1 in rows without a picture.
        given: (R,) float32, 0 in rows that were given nothing.

    Returns:
        () float32; 0 when no row counts.
    """
    weights = (codes >= 0).astype(ms.float32) * given.reshape(-1, 1)  # (R, P')
    return cross_entropy(logits, ops.maximum(codes, 0).reshape(-1), weights.reshape(-1))

"""Losses of what the decoders generate."""

import mindspore as ms
from mindspore import Tensor, ops

from src.losses.classification import cross_entropy


def code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy of the codes of rows that have a picture.

    Rows that were given nothing count too: they teach the unconditional branch of classifier-free guidance.

    Args:
        logits: (R·P', K) float.
        codes: (R, P') int32; −1 where there is no picture.

    Returns:
        () float32; 0 when no row counts.
    """
    weights = (codes >= 0).astype(ms.float32).reshape(-1)
    return cross_entropy(logits, ops.relu(codes).reshape(-1), weights)

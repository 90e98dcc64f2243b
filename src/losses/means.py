"""The mean that every loss is: a weighted sum over what counts, of these rows or of a larger whole."""

import mindspore as ms
from mindspore import Tensor, ops


def weighted_mean(losses: Tensor, weights: Tensor, count: Tensor | None = None) -> Tensor:
    """Σ losses·weights / count.

    Args:
        losses, weights: of one shape, float32; a weight of 0 leaves an item out.
        count: () float32; by default the sum of these weights.

    Returns:
        () float32; 0 when every weight is 0.
    """
    return (losses * weights).sum() / (at_least_one(weights.sum()) if count is None else count)


def at_least_one(count: Tensor) -> Tensor:
    """A mean over nothing is then 0."""
    return ops.maximum(count, Tensor(1.0, ms.float32))

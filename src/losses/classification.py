"""Weighted cross-entropy: masked tokens, matching cases, generated tokens, image codes, answers to questions."""

import mindspore as ms
from mindspore import Tensor, ops

from src.losses.means import weighted_mean


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0, count: Tensor | None = None
) -> Tensor:
    """Mean over the weighted rows of −Σ_v t_v · log softmax_v, with t = (1 − s)·onehot(label) + s / V.

    Log-softmax and a gather: the fused operator's gradient is fifteen times slower on a CPU.

    Args:
        logits: (N, V) float.
        labels: (N,) int32.
        weights: (N,) float32; rows of weight 0 do not count.
        smoothing: s, label smoothing (Szegedy et al. 2016).
        count: () float32, what the sum is divided by where these rows are a part of those that the mean is over.

    Returns:
        () float32; 0 when every weight is 0.
    """
    log_probabilities = ops.log_softmax(logits.astype(ms.float32), -1)  # (N, V)
    losses = -ops.gather_elements(log_probabilities, 1, labels.reshape(-1, 1)).reshape(-1)  # (N,)
    if smoothing:
        losses = (1.0 - smoothing) * losses - smoothing * log_probabilities.mean(-1)
    return weighted_mean(losses, weights, count)


def soft_binary_cross_entropy(
    logits: Tensor, classes: Tensor, values: Tensor, weights: Tensor, count: Tensor | None = None
) -> Tensor:
    """Mean over the weighted rows of the binary cross-entropy with soft targets, summed over the classes.

    For a row: Σ_a log(1 + exp(x_a)) − Σ_s v_s · x at class s. That is the loss of a classifier of answers (Teney et al.
    2018), whose targets are what each answer is worth; all but a few of them are 0, and are not made.

    Args:
        logits: (N, A) float.
        classes: (N, S) int32, the classes with a target, each once.
        values: (N, S) float32 in [0, 1], their targets; slots of 0 do not count.
        weights: (N,) float32; rows of weight 0 do not count.
        count: as in :func:`cross_entropy`.

    Returns:
        () float32; 0 when every weight is 0.
    """
    logits = logits.astype(ms.float32)
    softplus = ops.relu(logits) + ops.log(1.0 + ops.exp(-ops.abs(logits)))  # (N, A)
    chosen = ops.gather_elements(logits, 1, classes)  # (N, S)
    return weighted_mean(softplus.sum(-1) - (chosen * values).sum(-1), weights, count)

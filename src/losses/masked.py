"""Losses of masked image and audio tokens: regression to the clean features, and a contrastive loss."""

import mindspore as ms
from mindspore import Tensor, ops

from src.losses.means import weighted_mean
from src.models.layers import MASKED

EPSILON = 1e-6


def normalised(features: Tensor) -> Tensor:
    """(…, D) → (…, D) float32 of mean 0 and variance 1 a token, without gradient: what regression aims at.

    Without it the encoder could make the regression easy by shrinking its features.
    """
    x = ops.stop_gradient(features).astype(ms.float32)
    x = x - x.mean(-1, keep_dims=True)
    return x * ops.rsqrt((x * x).mean(-1, keep_dims=True) + EPSILON)


def feature_regression(predicted: Tensor, target: Tensor, weights: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean squared error over the weighted slots; predicting the mean everywhere costs about 1.

    Args:
        predicted: (B, K, D) float.
        target: (B, K, D) float32, normalised.
        weights: (B, K) float32; slots of weight 0 do not count.
        count: as in :func:`src.losses.means.weighted_mean`.

    Returns:
        () float32; 0 when every weight is 0.
    """
    error = predicted.astype(ms.float32) - target
    losses = (error * error).mean(-1)  # (B, K)
    return weighted_mean(losses, weights, count)


def frame_contrastive(
    predicted: Tensor, target: Tensor, weights: Tensor, temperature: float, count: Tensor | None = None
) -> Tensor:
    """Each masked slot finds its own clean frame among those of the same sample (wav2vec 2.0, equation 3).

    loss = −mean over slots of log softmax_j(cos(predicted_i, target_j) / temperature) at j = i, with j over the masked
    slots of the sample. A sample with one masked slot has no negatives and does not count.

    Args:
        predicted: (B, K, D) float; target: (B, K, D) float32, without gradient.
        weights: (B, K) float32; slots of weight 0 are neither query nor candidate.
        temperature: of the cosines.
        count: as in :func:`src.losses.means.weighted_mean`.

    Returns:
        () float32; 0 when nothing counts.
    """
    slots = weights.shape[1]
    queries, candidates = _unit(predicted), _unit(target)
    cosine = ops.BatchMatMul(transpose_b=True)(queries, candidates)  # (B, K, K)
    logits = cosine / temperature + (1.0 - weights.expand_dims(1)) * MASKED
    places = ops.arange(slots)
    own = ops.equal(places.reshape(-1, 1), places.reshape(1, -1)).astype(ms.float32)  # ops.eye is wrong on a GPU
    losses = -(ops.log_softmax(logits, -1) * own).sum(-1)  # (B, K)
    return weighted_mean(losses, in_company(weights), count)


def in_company(weights: Tensor) -> Tensor:
    """(B, K) float32: the weights of the slots that have another one in their sample."""
    return weights * (weights.sum(1, keepdims=True) > 1).astype(ms.float32)


def _unit(x: Tensor) -> Tensor:
    x = x.astype(ms.float32)
    return x * ops.rsqrt((x * x).sum(-1, keepdims=True) + EPSILON)

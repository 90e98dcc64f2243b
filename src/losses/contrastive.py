"""Contrastive losses between embeddings of two modalities."""

import mindspore as ms
from mindspore import Tensor, ops

from src.models.layers import MASKED


def contrastive_loss(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_present: Tensor,
    gallery_present: Tensor,
    scale: Tensor,
) -> Tensor:
    """InfoNCE from queries to gallery with several positives.

    With p the uniform distribution over the gallery items of the query's image,
    loss = −mean over queries of Σ_j p_j · log softmax_j(scale · q·g_j). Absent items are neither query nor candidate.

    Args:
        queries: (B, E) unit vectors.
        gallery: (G, E) unit vectors.
        query_ids, gallery_ids: (B,), (G,) int32; equal ids are positives.
        query_present, gallery_present: (B,), (G,) int32.
        scale: () logit scale.

    Returns:
        () float32; 0 when no query is present.
    """
    candidate = gallery_present.astype(ms.float32).reshape(1, -1)  # (1, G)
    logits = ops.matmul(queries, gallery.T) * scale + (1.0 - candidate) * MASKED  # (B, G)
    positive = ops.equal(query_ids.reshape(-1, 1), gallery_ids.reshape(1, -1)).astype(ms.float32) * candidate
    target = positive / ops.maximum(positive.sum(1, keepdims=True), Tensor(1.0, ms.float32))
    losses = -(target * ops.log_softmax(logits, 1)).sum(1)  # (B,)
    weights = query_present.astype(ms.float32) * ops.minimum(positive.sum(1), Tensor(1.0, ms.float32))
    return (losses * weights).sum() / ops.maximum(weights.sum(), Tensor(1.0, ms.float32))

"""Contrastive losses between embeddings of two modalities."""

import mindspore as ms
from mindspore import Tensor, ops

from src.models.layers import MASKED


def contrastive_loss(
    queries: Tensor,
    gallery: Tensor,
    positive: Tensor,
    query_present: Tensor,
    gallery_present: Tensor,
    scale: Tensor,
) -> Tensor:
    """InfoNCE from queries to gallery with several positives, summed over the queries.

    With p the uniform distribution over the query's positives,
    loss = −Σ over queries of Σ_j p_j · log softmax_j(scale · q·g_j). Absent items are neither query nor candidate; a
    query without a positive does not count.

    Args:
        queries: (B, E) unit vectors.
        gallery: (G, E) unit vectors.
        positive: (B, G) float32, 1 where the two belong together.
        query_present, gallery_present: (B,), (G,) int32.
        scale: () logit scale.

    Returns:
        () float32.
    """
    candidate = gallery_present.astype(ms.float32).reshape(1, -1)  # (1, G)
    logits = ops.matmul(queries, gallery.T) * scale + (1.0 - candidate) * MASKED  # (B, G)
    positive = positive * candidate
    counts = positive.sum(1, keepdims=True)  # (B, 1)
    target = positive / ops.maximum(counts, Tensor(1.0, ms.float32))  # a row of zeros without a positive
    losses = -(target * ops.log_softmax(logits, 1)).sum(1)  # (B,)
    return (losses * query_present.astype(ms.float32)).sum()

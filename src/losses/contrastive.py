"""Contrastive losses between embeddings of two modalities."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.losses.positives import alike
from src.models.layers import MASKED

LARGEST = 2**24  # logits that are held at once, of one direction: 64 MiB


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


class BlockedContrastive(nn.Cell):
    """:func:`contrastive_loss` by blocks of queries, each computed again in the backward pass.

    No tensor of queries times gallery outlives its block: eight directions of a large global batch would hold several
    such tensors each.

    Args:
        largest: logits of a block at most; one query's are never cut.

    Inputs:
        queries, gallery, query_present, gallery_present, scale: as :func:`contrastive_loss`; ids (B, 2), gallery_ids
        (G, 2) int32: what is equal in either column belongs together.

    Outputs:
        () float32.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        super().__init__()
        self.largest = largest
        self.gradient = ops.grad(contrastive_loss, (0, 1, 5))
        self.depend, self.zeros = ops.Depend(), ops.ZerosLike()

    def block(self, start, queries, gallery, query_present, gallery_present, scale, ids, gallery_ids, after):
        """The arguments of a block's loss, which is computed ``after`` something else."""
        stop = start + self.rows(gallery)
        own = ids[start:stop]
        positive = alike(own[:, 0], own[:, 1], gallery_ids[:, 0], gallery_ids[:, 1]).astype(ms.float32)
        some = self.depend(queries[start:stop], after)
        return some, gallery, positive, query_present[start:stop], gallery_present, scale

    def rows(self, gallery):
        rows = self.largest // gallery.shape[0]
        return rows if rows > 0 else 1

    def construct(self, queries, gallery, query_present, gallery_present, scale, ids, gallery_ids):
        total = scale * 0.0
        for start in range(0, queries.shape[0], self.rows(gallery)):
            total = total + contrastive_loss(
                *self.block(start, queries, gallery, query_present, gallery_present, scale, ids, gallery_ids, total)
            )
        return total

    def bprop(self, queries, gallery, query_present, gallery_present, scale, ids, gallery_ids, out, dout):
        dqueries, dgallery, dscale, after = (), gallery * 0.0, scale * 0.0, dout
        for start in range(0, queries.shape[0], self.rows(gallery)):
            found = self.gradient(
                *self.block(start, queries, gallery, query_present, gallery_present, scale, ids, gallery_ids, after)
            )
            dqueries, dgallery, dscale = (*dqueries, found[0]), dgallery + found[1], dscale + found[2]
            after = dgallery
        return (
            ops.concat(dqueries, 0) * dout,
            dgallery * dout,
            self.zeros(query_present),
            self.zeros(gallery_present),
            dscale * dout,
            self.zeros(ids),
            self.zeros(gallery_ids),
        )

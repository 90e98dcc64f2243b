"""Ranks and recall: of exact ranking by embeddings, and of the top ``k`` re-ranked by a second score.

Letters: ``Q`` queries, ``G`` gallery items, ``E`` embedding width, ``k`` re-ranked items. Which items are relevant to
a query is said by :mod:`src.metrics.relevance`. Among equal scores the lower gallery index comes first everywhere.
"""

import numpy as np

from src.metrics.nearest import GALLERY_BLOCK, QUERY_BLOCK, GridTable, blocks, grid_tables
from src.metrics.relevance import Relevance


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevance: Relevance,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> np.ndarray:
    """The rank of each query's best relevant item in the whole gallery, 0 for the first.

    Args: queries [Q, E], gallery [G, E], relevance of both.
    Returns: int64 [Q].
    """
    if (len(relevance), len(relevance.gallery)) != (len(queries), len(gallery)):
        raise ValueError(
            f"relevance of {len(relevance)} queries and {len(relevance.gallery)} items, "
            f"expected {len(queries)} and {len(gallery)}"
        )
    if not relevance.answerable.all():
        raise ValueError(f"query {relevance.answerable.argmin()} has no relevant item in the gallery")
    asked, offered = grid_tables(queries, gallery)
    result = np.empty(len(asked), np.int64)
    for rows in blocks(len(asked), query_block):
        vectors = asked[rows]
        target_score, target_index = _best_relevant(vectors, offered, relevance, rows, gallery_block)
        before = np.zeros(len(vectors), np.int64)
        for columns in blocks(len(offered), gallery_block):
            block = vectors @ offered[columns].T  # [q, g]
            earlier = np.arange(columns.start, columns.stop) < target_index[:, None]
            before += (block > target_score[:, None]).sum(1)
            before += ((block == target_score[:, None]) & earlier).sum(1)
        result[rows] = before
    return result


def rerank(indices: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Orders the candidates of the first stage by a second score; equal scores keep the first order.

    Args: indices [Q, k] from :func:`src.metrics.nearest.top_k`, scores [Q, k] of the same candidates.
    Returns: indices [Q, k], best first.
    """
    if indices.shape != scores.shape:
        raise ValueError(f"second scores have shape {list(scores.shape)}, the candidates {list(indices.shape)}")
    if np.isnan(scores).any():
        raise ValueError(f"the second score of query {np.isnan(scores).any(1).argmax()} is not a number")
    return np.take_along_axis(indices, np.argsort(-scores, axis=1, kind="stable"), 1)


def reranked_ranks(reranked: np.ndarray, first_ranks: np.ndarray, relevance: Relevance) -> np.ndarray:
    """The rank of each query's best relevant item after the second stage; beyond ``k`` the first rank stands.

    Args: reranked [Q, k] from :func:`rerank`, first_ranks [Q] from :func:`ranks`.
    Returns: int64 [Q].
    """
    relevant = relevance.at(reranked)  # [Q, k]
    return np.where(relevant.any(1), relevant.argmax(1), first_ranks)


def recall(ranks: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 as shares of the queries, and the median rank, where the first item has rank 1.

    Args: ranks [Q], 0 for the first item.
    """
    if not len(ranks):
        raise ValueError("recall of no queries: the split is empty")
    shares = {f"R@{k}": float((ranks < k).mean()) for k in (1, 5, 10)}
    return {**shares, "median_rank": float(np.median(ranks)) + 1}


def _best_relevant(
    vectors: np.ndarray, offered: GridTable, relevance: Relevance, rows: slice, gallery_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score [q] and gallery index [q] of the relevant item that ranks first."""
    best = np.full(len(vectors), -np.inf)
    index = np.full(len(vectors), -1)
    keys = relevance.keys(rows)
    for columns in blocks(len(offered), gallery_block):
        relevant = keys[:, relevance.gallery[columns]]
        block = np.where(relevant, vectors @ offered[columns].T, -np.inf)  # [q, g]
        place = block.argmax(1)
        score = np.take_along_axis(block, place[:, None], 1)[:, 0]
        better = score > best
        best[better], index[better] = score[better], place[better] + columns.start
    return best, index

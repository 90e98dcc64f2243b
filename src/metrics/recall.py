"""Ranks and recall: of exact ranking by embeddings, and of the top ``k`` re-ranked by a second score.

Letters: ``Q`` queries, ``G`` gallery items, ``E`` embedding width, ``k`` re-ranked items. An item is relevant to a
query when both carry the same image id. Among equal scores the lower gallery index comes first everywhere.
"""

import numpy as np

from src.metrics.nearest import GALLERY_BLOCK, QUERY_BLOCK, GridTable, blocks, grid_tables


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> np.ndarray:
    """The rank of each query's best relevant item in the whole gallery, 0 for the first.

    Args: queries [Q, E], gallery [G, E], query_ids [Q], gallery_ids [G].
    Returns: int64 [Q].
    """
    _check_ids("query", queries, query_ids)
    _check_ids("gallery", gallery, gallery_ids)
    asked, offered = grid_tables(queries, gallery)
    result = np.empty(len(asked), np.int64)
    for rows in blocks(len(asked), query_block):
        vectors = asked[rows]
        target_score, target_index = _best_relevant(
            vectors, offered, query_ids[rows], gallery_ids, rows.start, gallery_block
        )
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


def reranked_ranks(
    reranked: np.ndarray, first_ranks: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> np.ndarray:
    """The rank of each query's best relevant item after the second stage; beyond ``k`` the first rank stands.

    Args: reranked [Q, k] from :func:`rerank`, first_ranks [Q] from :func:`ranks`, query_ids [Q], gallery_ids [G].
    Returns: int64 [Q].
    """
    relevant = gallery_ids[reranked] == query_ids[:, None]  # [Q, k]
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
    vectors: np.ndarray,
    offered: GridTable,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    first_query: int,
    gallery_block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Score [q] and gallery index [q] of the relevant item that ranks first."""
    best = np.full(len(vectors), -np.inf)
    index = np.full(len(vectors), -1)
    for columns in blocks(len(offered), gallery_block):
        relevant = query_ids[:, None] == gallery_ids[None, columns]
        block = np.where(relevant, vectors @ offered[columns].T, -np.inf)  # [q, g]
        place = block.argmax(1)
        score = np.take_along_axis(block, place[:, None], 1)[:, 0]
        better = score > best
        best[better], index[better] = score[better], place[better] + columns.start
    if (index < 0).any():
        row = (index < 0).argmax()
        raise ValueError(f"query {first_query + row} (image id {query_ids[row]}) has no relevant item in the gallery")
    return best, index


def _check_ids(name: str, table: np.ndarray, ids: np.ndarray) -> None:
    if ids.shape != (len(table),):
        raise ValueError(f"{name} ids have shape {list(ids.shape)}, expected [{len(table)}]")

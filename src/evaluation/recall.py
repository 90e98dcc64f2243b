"""Retrieval in two stages: exact ranking by embeddings, then the best ``k`` ranked again by a second score.

Letters: ``Q`` queries, ``G`` gallery items, ``E`` embedding width, ``k`` items ranked again. Directions are named
``x2y``: query x, gallery y. An item is relevant to a query when both carry the same image id. Among equal scores the
lower gallery index comes first, in every function below.
"""

from collections.abc import Iterator

import numpy as np

QUERY_BLOCK = 1024
GALLERY_BLOCK = 8192  # a block of scores takes 64 MB
GRID_BITS = 26


def top_k(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` gallery items of the highest dot product, best first.

    Args: queries [Q, E], gallery [G, E]; k is at most G.
    Returns: indices int64 [Q, k], scores float64 [Q, k].
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k = {k}: choose 1 to {len(gallery)}, the number of gallery items")
    queries, gallery, unit = _on_grid(queries, gallery)
    indices = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64)
    for rows in _blocks(len(queries), query_block):
        best_scores = np.empty((rows.stop - rows.start, 0))
        best_indices = np.empty((rows.stop - rows.start, 0), np.int64)
        for columns in _blocks(len(gallery), gallery_block):
            block = queries[rows] @ gallery[columns].T  # [q, g]
            numbers = np.broadcast_to(np.arange(columns.start, columns.stop), block.shape)
            best_scores, best_indices = _keep_best(
                np.concatenate([best_scores, block], 1), np.concatenate([best_indices, numbers], 1), k
            )
        order = np.argsort(-best_scores, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(best_indices, order, 1)
        scores[rows] = np.take_along_axis(best_scores, order, 1) * unit
    return indices, scores


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
    queries, gallery, _ = _on_grid(queries, gallery)
    result = np.empty(len(queries), np.int64)
    for rows in _blocks(len(queries), query_block):
        target_score, target_index = _best_relevant(
            queries[rows], gallery, query_ids[rows], gallery_ids, rows.start, gallery_block
        )
        before = np.zeros(rows.stop - rows.start, np.int64)
        for columns in _blocks(len(gallery), gallery_block):
            block = queries[rows] @ gallery[columns].T  # [q, g]
            earlier = np.arange(columns.start, columns.stop) < target_index[:, None]
            before += (block > target_score[:, None]).sum(1)
            before += ((block == target_score[:, None]) & earlier).sum(1)
        result[rows] = before
    return result


def rerank(indices: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Orders the candidates of the first stage by a second score; equal scores keep the first order.

    Args: indices [Q, k] from :func:`top_k`, scores [Q, k] of the same candidates.
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
    figures = {f"r{k}": float((ranks < k).mean()) for k in (1, 5, 10)}
    return {**figures, "median_rank": float(np.median(ranks)) + 1}


def _on_grid(queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Both tables scaled to rows no longer than 1 and rounded to 2⁻²⁶, and the factor that restores the scores.

    Products are then multiples of 2⁻⁵² and no partial sum exceeds 2, so that float64 holds each of them exactly:
    scores depend neither on the block sizes nor on the order in which a library adds, and equal rows tie exactly.
    """
    unit = 1.0
    scaled = []
    for name, table in (("query", queries), ("gallery", gallery)):
        if table.ndim != 2 or table.shape[1] != queries.shape[1]:
            raise ValueError(f"{name} embeddings have shape {list(table.shape)}, expected [n, {queries.shape[-1]}]")
        table = table.astype(np.float64)
        finite = np.isfinite(table).all(1)
        if not finite.all():
            raise ValueError(f"{name} embedding {finite.argmin()} is not finite")
        longest = np.sqrt((table**2).sum(1)).max(initial=0)
        scale = 2.0 ** np.ceil(np.log2(longest)) if longest > 0 else 1.0
        scaled.append(np.rint(table * (2.0**GRID_BITS / scale)) / 2.0**GRID_BITS)
        unit *= scale
    return scaled[0], scaled[1], unit


def _blocks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _keep_best(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row [q, n] in the order they stand; of equal scores at the edge, those that stand first."""
    if scores.shape[1] <= k:
        return scores, indices
    edge = np.partition(scores, -k, axis=1)[:, -k, None]  # [q, 1]: the k-th best score
    above, level = scores > edge, scores == edge
    room = k - above.sum(1, keepdims=True)
    keep = above | (level & (level.cumsum(1) <= room))  # exactly k in each row
    return scores[keep].reshape(-1, k), indices[keep].reshape(-1, k)


def _best_relevant(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    first_query: int,
    gallery_block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Score [q] and gallery index [q] of the relevant item that ranks first."""
    best = np.full(len(queries), -np.inf)
    index = np.full(len(queries), -1)
    for columns in _blocks(len(gallery), gallery_block):
        relevant = query_ids[:, None] == gallery_ids[None, columns]
        block = np.where(relevant, queries @ gallery[columns].T, -np.inf)  # [q, g]
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

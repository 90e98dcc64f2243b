"""The nearest items of a gallery by dot product: exactly, and in blocks, so that memory does not grow with N².

Letters: ``Q`` queries, ``G`` gallery items, ``E`` embedding width, ``k`` items wanted. Among equal scores the lower
gallery index comes first. With faiss installed it proposes the candidates, numpy otherwise; scores and order are the
same to the last bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

QUERY_BLOCK = 256
GALLERY_BLOCK = 8192  # a block of scores takes 16 MB
GRID_BITS = 26
FAISS_BLOCK = 1024  # queries: fewer at once cost it more
SPARE = 8  # candidates that faiss is asked for beyond k: its sums are rounded
GATHERED = 1 << 23  # numbers of candidates that are scored exactly at once: 64 MB


@dataclass(frozen=True)
class GridTable:
    """Embeddings [n, E] scaled to rows no longer than 1 and rounded to 2⁻²⁶; ``table[rows]`` is float64 [rows, E].

    Products of two such tables are multiples of 2⁻⁵² and no partial sum reaches 2, so that float64 holds each of them
    exactly: scores depend neither on the block sizes nor on the order in which a library adds, and equal rows tie.
    """

    rows: np.ndarray
    scale: float

    @classmethod
    def of(cls, name: str, rows: np.ndarray, width: int) -> "GridTable":
        """Checks the rows; ``name`` is what an error calls them."""
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"{name} embeddings have shape {list(rows.shape)}, expected [n, {width}]")
        longest = 0.0
        for part in blocks(len(rows), GALLERY_BLOCK):
            block = rows[part].astype(np.float64)
            finite = np.isfinite(block).all(1)
            if not finite.all():
                raise ValueError(f"{name} embedding {part.start + finite.argmin()} is not finite")
            longest = max(longest, np.sqrt((block**2).sum(1)).max())
        return cls(rows, float(2.0 ** np.ceil(np.log2(longest))) if longest > 0 else 1.0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        return np.rint(self.rows[part].astype(np.float64) * (2.0**GRID_BITS / self.scale)) / 2.0**GRID_BITS


def grid_tables(queries: np.ndarray, gallery: np.ndarray) -> tuple[GridTable, GridTable]:
    """Both tables on the grid; the product of their scales restores the scores."""
    width = queries.shape[-1]
    return GridTable.of("query", queries, width), GridTable.of("gallery", gallery, width)


def has_faiss() -> bool:
    """Whether faiss is installed and fits the rest."""
    try:
        import faiss  # noqa: F401 - an optional requirement
    except ImportError:
        return False
    return True


def top_k(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` gallery items of the highest dot product, best first.

    Args: queries [Q, E], gallery [G, E]; k is at most G.
    Returns: indices int64 [Q, k], scores float64 [Q, k].
    """
    return (top_k_faiss if has_faiss() else top_k_numpy)(queries, gallery, k)


def top_k_numpy(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`top_k`: every score, a block at a time."""
    _check_k(k, gallery)
    asked, offered = grid_tables(queries, gallery)
    indices = np.empty((len(asked), k), np.int64)
    scores = np.empty((len(asked), k), np.float64)
    for rows in blocks(len(asked), query_block):
        vectors = asked[rows]
        best_scores = np.empty((len(vectors), 0))
        best_indices = np.empty((len(vectors), 0), np.int64)
        for columns in blocks(len(offered), gallery_block):
            block = vectors @ offered[columns].T  # [q, g]
            numbers = np.broadcast_to(np.arange(columns.start, columns.stop), block.shape)
            best_scores, best_indices = _keep_best(
                np.concatenate([best_scores, block], 1), np.concatenate([best_indices, numbers], 1), k
            )
        order = np.argsort(-best_scores, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(best_indices, order, 1)
        scores[rows] = np.take_along_axis(best_scores, order, 1) * (asked.scale * offered.scale)
    return indices, scores


def top_k_faiss(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`top_k`: faiss proposes by rounded scores, the proposals are scored exactly.

    A query whose k-th score is not clear of what faiss left out, by more than its rounding, is searched by numpy.
    """
    import faiss

    _check_k(k, gallery)
    asked, offered = grid_tables(queries, gallery)
    index = faiss.IndexFlatIP(queries.shape[1])
    for columns in blocks(len(offered), GALLERY_BLOCK):
        index.add(offered[columns].astype(np.float32))
    wanted, slack = min(len(offered), k + SPARE), (queries.shape[1] + 8) * 2.0**-23
    indices = np.empty((len(asked), k), np.int64)
    scores = np.empty((len(asked), k), np.float64)
    clear = np.empty(len(asked), bool)
    for rows in blocks(len(asked), max(1, min(FAISS_BLOCK, GATHERED // (wanted * queries.shape[1])))):
        vectors = asked[rows]
        rounded, found = index.search(vectors.astype(np.float32), wanted)
        found.sort(axis=1)  # equal scores stay in the gallery's order
        exact = np.matmul(offered[found], vectors[:, :, None])[:, :, 0]  # [q, k + spare]
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        indices[rows] = np.take_along_axis(found, order, 1)
        scores[rows] = np.take_along_axis(exact, order, 1)
        clear[rows] = scores[rows, -1] > rounded[:, -1] + slack
    scores *= asked.scale * offered.scale
    if wanted < len(offered) and not clear.all():
        indices[~clear], scores[~clear] = top_k_numpy(queries[~clear], gallery, k)
    return indices, scores


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total`` rows."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _check_k(k: int, gallery: np.ndarray) -> None:
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k = {k}: choose 1 to {len(gallery)}, the number of gallery items")


def _keep_best(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row [q, n] in the order they stand; of equal scores at the edge, those that stand first."""
    if scores.shape[1] <= k:
        return scores, indices
    edge = np.partition(scores, -k, axis=1)[:, -k, None]  # [q, 1]: the k-th best score
    above, level = scores > edge, scores == edge
    room = k - above.sum(1, keepdims=True)
    keep = above | (level & (level.cumsum(1) <= room))  # exactly k in each row
    return scores[keep].reshape(-1, k), indices[keep].reshape(-1, k)

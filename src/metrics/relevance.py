"""Which items of a gallery are right for which queries.

Letters: ``Q`` queries, ``G`` gallery items, ``K`` different keys of the gallery.
"""

from dataclasses import dataclass, replace

import numpy as np

from src.metrics.nearest import QUERY_BLOCK, blocks


@dataclass(frozen=True)
class Relevance:
    """Queries and items have keys, and some keys of the two are linked: an item is right where its key is linked.

    So memory grows with the links, and not with Q·G.
    """

    first: np.ndarray  # int64 [Q]: where a query's links begin
    last: np.ndarray  # int64 [Q]: behind its last one
    linked: np.ndarray  # int64: the gallery keys that queries are linked to
    gallery: np.ndarray  # int64 [G]: keys, 0 … K − 1

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray, links: np.ndarray) -> "Relevance":
        """Of keys int64 [Q] and [G], and links int64 [n, 2]: the key of a query, the key of an item."""
        keys, numbers = np.unique(gallery, return_inverse=True)
        links = np.unique(links[np.isin(links[:, 1], keys)], axis=0)
        first, last = (np.searchsorted(links[:, 0], queries, side) for side in ("left", "right"))
        return cls(first, last, np.searchsorted(keys, links[:, 1]), numbers.reshape(-1))

    @classmethod
    def same(cls, queries: np.ndarray, gallery: np.ndarray) -> "Relevance":
        """Equal keys belong together."""
        keys = np.unique(queries)
        return cls.of(queries, gallery, np.stack([keys, keys], 1))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def answerable(self) -> np.ndarray:
        """Whether the gallery has an item that is right, bool [Q]."""
        return self.last > self.first

    def take(self, rows: np.ndarray | slice) -> "Relevance":
        """Of some of the queries."""
        return replace(self, first=self.first[rows], last=self.last[rows])

    def keys(self, rows: np.ndarray | slice) -> np.ndarray:
        """Which gallery keys are right for some queries, bool [q, K]; index it by ``gallery``."""
        first, counts = self.first[rows], self.last[rows] - self.first[rows]
        table = np.zeros((len(first), self.gallery.max(initial=-1) + 1), bool)
        places = np.arange(counts.sum()) + np.repeat(first - (counts.cumsum() - counts), counts)
        table[np.repeat(np.arange(len(first)), counts), self.linked[places]] = True
        return table

    def chance(self) -> float:
        """R@1 of an order by chance: the share of the gallery that is right for a query, mean over the queries."""
        sizes = np.bincount(self.gallery, minlength=self.gallery.max(initial=-1) + 1)  # items of each key
        sums = np.concatenate([[0], sizes[self.linked].cumsum()])
        return float((sums[self.last] - sums[self.first]).mean() / len(self.gallery))

    def at(self, items: np.ndarray) -> np.ndarray:
        """Whether each query's items, int64 [Q, k], are right: bool [Q, k]."""
        found = np.empty(items.shape, bool)
        for rows in blocks(len(self), QUERY_BLOCK):
            found[rows] = np.take_along_axis(self.keys(rows), self.gallery[items[rows]], 1)
        return found


def reachable(relevance: Relevance, queries: np.ndarray, gallery: np.ndarray) -> float:
    """The best R@1 there can be where equal inputs get equal embeddings.

    Equal queries have one answer, and of equal items, which tie, the first is the answer.

    Args: queries [Q], gallery [G]: equal for equal inputs.
    """
    offered = relevance.gallery[np.unique(gallery, return_index=True)[1]]
    _, groups, sizes = np.unique(queries, return_inverse=True, return_counts=True)
    order = np.argsort(groups.reshape(-1), kind="stable")
    alone = order[np.repeat(sizes, sizes) == 1]
    right = sum(int(relevance.keys(alone[rows])[:, offered].any(1).sum()) for rows in blocks(len(alone), QUERY_BLOCK))
    ends = sizes.cumsum()
    for start, end in zip((ends - sizes)[sizes > 1], ends[sizes > 1], strict=True):
        votes = np.zeros(len(offered), np.int64)
        for rows in blocks(end - start, QUERY_BLOCK):
            votes += relevance.keys(order[start:end][rows])[:, offered].sum(0)
        right += int(votes.max())
    return right / len(queries)

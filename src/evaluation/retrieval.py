"""Retrieval between the three modalities: by embeddings, then the best ``k`` by a second score.

``x2y`` is query x, gallery y. The second score of a pair is, in nats,

    w_e · scale · cosine + w_m · log p(the pair matches) + w_l · log p(text | the other)

A picture and a sound have no text between them: the likelihood is then that of what the model itself writes down from
the sound. A term of weight 0 is not computed, and a direction without any but the first is not ranked again.
"""

from dataclasses import dataclass

import numpy as np

from src.config import EvalConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.evaluation import recall
from src.evaluation.encode import Items, name_of
from src.evaluation.rerank import Matching, TextLikelihood
from src.generation.greedy import GreedyDecoder
from src.models.opt import OPT

COUPLES = ((TEXT, IMAGE), (IMAGE, AUDIO), (TEXT, AUDIO))
SHOWN = 5


@dataclass(frozen=True)
class Ranking:
    """The best of the gallery for every query, with what they share of the probability among the candidates."""

    queries: np.ndarray  # int64 [Q]: which items of the query's modality asked
    indices: np.ndarray  # int64 [Q, k]
    shares: np.ndarray  # float64 [Q, k], each row sums to 1


@dataclass(frozen=True)
class _Direction:
    """A direction's first stage."""

    query: int
    gallery: int
    queries: np.ndarray  # int64 [Q]: the query items that have a relevant one in the gallery
    ranks: np.ndarray  # int64 [Q]
    candidates: np.ndarray  # int64 [Q, k]
    cosines: np.ndarray  # float64 [Q, k]

    @property
    def name(self) -> str:
        return f"{name_of(self.query)}2{name_of(self.gallery)}"

    def pairs(self) -> np.ndarray:
        """int64 [Q·k, 2]: the item of the lower modality, that of the higher one."""
        rows = np.repeat(self.queries, self.candidates.shape[1]), self.candidates.reshape(-1)
        return np.stack(rows if self.query < self.gallery else rows[::-1], 1)


class Retriever:
    """Ranks and re-ranks encoded items; its graphs are compiled once and serve every call.

    Args:
        model: the network.
        tokenizer: its vocabulary.
        config: the weights of the second score.
        decoder: writes sounds down.
    """

    def __init__(self, model: OPT, tokenizer: Tokenizer, config: EvalConfig, decoder: GreedyDecoder) -> None:
        self.model, self.config, self.decoder = model, config, decoder
        self.likelihood = TextLikelihood(model, tokenizer.pad_id)
        self.matching = Matching(model)

    @property
    def fused(self) -> int:
        """How often the cross-modal encoder read a row so far."""
        return self.likelihood.fused + self.matching.fused

    def temperature(self) -> float:
        """The factor that makes cosines contrastive logits."""
        return float(self.model.scale().asnumpy())

    def second_scores(self, items: dict[int, Items], pairs: np.ndarray, cosines: np.ndarray) -> np.ndarray | None:
        """The second score of pairs, or None where it is no more than the first.

        Args:
            items: of two modalities.
            pairs: int64 [n, 2]: items of the lower and the higher modality.
            cosines: float64 [n].
        """
        low, high = sorted(items)
        matches, reads = self.config.rerank_matching > 0, self.config.rerank_likelihood > 0
        if not matches and not reads:
            return None
        scores = self.config.rerank_embedding * self.temperature() * cosines
        if matches:
            label = f"matching {name_of(low)}-{name_of(high)}"
            scores = scores + self.config.rerank_matching * self.matching.score(items, pairs, label)
        if reads:
            label = f"likelihood {name_of(low)}-{name_of(high)}"
            scores = scores + self.config.rerank_likelihood * self._log_likelihood(items, pairs, label)
        return scores

    def _log_likelihood(self, items: dict[int, Items], pairs: np.ndarray, label: str) -> np.ndarray:
        if TEXT in items:
            given = max(items)
            return self.likelihood.score(given, items[given], items[TEXT].ids, pairs, label)
        written = items[AUDIO].ids
        if written is None:
            written = self.decoder.write(audio=(items[AUDIO].tokens, items[AUDIO].mask))
        return self.likelihood.score(IMAGE, items[IMAGE], written, pairs[:, ::-1], label)

    def evaluate(self, items: dict[int, Items], depth: int) -> tuple[dict, dict, dict[str, Ranking]]:
        """Recall in every direction.

        Args:
            items: by modality.
            depth: k, how many of the best are ranked again; 0: none.

        Returns:
            figures of the first stage and of the second by direction, and the final rankings.
        """
        first, second, rankings = {}, {}, {}
        for couple in COUPLES:
            if not set(couple) <= items.keys():
                continue
            both = {modality: items[modality] for modality in couple}
            directions = [self._first_stage(both, query, depth) for query in couple]
            directions = [direction for direction in directions if len(direction.queries)]
            for direction in directions:
                first[direction.name] = recall.recall(direction.ranks)
                rankings[direction.name] = _rank(direction, self.temperature() * direction.cosines)
            if depth and directions:
                for direction, scores in zip(directions, self._second_stage(both, directions), strict=False):
                    ranking = _rank(direction, scores)
                    ranks = recall.reranked_ranks(
                        ranking.indices,
                        direction.ranks,
                        both[direction.query].pictures[direction.queries],
                        both[direction.gallery].pictures,
                    )
                    second[direction.name] = recall.recall(ranks)
                    rankings[direction.name] = ranking
        return first, second, rankings

    def _first_stage(self, items: dict[int, Items], query: int, depth: int) -> _Direction:
        gallery = next(modality for modality in items if modality != query)
        asked, offered = items[query], items[gallery]
        queries = np.flatnonzero(np.isin(asked.pictures, offered.pictures))
        if not len(queries):
            empty = np.zeros((0, 1), np.int64)
            return _Direction(query, gallery, queries, queries, empty, empty.astype(np.float64))
        vectors = asked.embeddings[queries]
        ranks = recall.ranks(vectors, offered.embeddings, asked.pictures[queries], offered.pictures)
        candidates, cosines = recall.top_k(vectors, offered.embeddings, min(depth or SHOWN, len(offered)))
        return _Direction(query, gallery, queries, ranks, candidates, cosines)

    def _second_stage(self, items: dict[int, Items], directions: list[_Direction]) -> list[np.ndarray]:
        """Second scores of the candidates by direction; a pair that both directions propose is scored once."""
        pairs = np.concatenate([direction.pairs() for direction in directions])
        cosines = np.concatenate([direction.cosines.reshape(-1) for direction in directions])
        distinct, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        scores = self.second_scores(items, distinct, cosines[first])
        if scores is None:
            return []
        sizes = [direction.candidates.size for direction in directions]
        parts = np.split(scores[inverse.reshape(-1)], np.cumsum(sizes)[:-1])
        return [part.reshape(direction.candidates.shape) for part, direction in zip(parts, directions, strict=True)]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _rank(direction: _Direction, scores: np.ndarray) -> Ranking:
    """The candidates [Q, k] in the order of their scores, in nats, with the softmax of those."""
    order = recall.rerank(direction.candidates, scores)
    return Ranking(direction.queries, order, -np.sort(-softmax(scores), axis=1))

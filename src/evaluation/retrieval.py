"""Retrieval between text, image, audio, and text with its speech: by embeddings, then the top k by a second score.

A direction that has no second score but the first is not re-ranked (:mod:`src.inference.rerank`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.config import EvalConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, COUPLES, IMAGE, JOINT, TEXT
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.evaluation.relevance import relevance
from src.evaluation.sheets import HITS
from src.inference.encode import NAMES, Items, first_images
from src.inference.rerank import Proposal, Ranking, distinct_pairs, softmax
from src.metrics import recall
from src.metrics.geometry import effective_rank, mean_cosine
from src.metrics.nearest import top_k
from src.metrics.relevance import Relevance, reachable

Metrics = dict[str, dict[str, float]]  # by direction


@dataclass(frozen=True)
class Direction:
    """A direction's first stage."""

    query: int
    gallery: int
    queries: np.ndarray  # int64 [Q]: the query items that have a relevant one in the gallery
    relevance: Relevance  # of these to the gallery
    ranks: np.ndarray  # int64 [Q]
    candidates: np.ndarray  # int64 [Q, k]
    cosines: np.ndarray  # float64 [Q, k]

    @property
    def name(self) -> str:
        return f"{NAMES[self.query]}_to_{NAMES[self.gallery]}"

    def pairs(self) -> np.ndarray:
        """int64 [Q·k, 2]: the item of the lower modality, that of the higher one."""
        rows = np.repeat(self.queries, self.candidates.shape[1]), self.candidates.reshape(-1)
        return np.stack(rows if self.query < self.gallery else rows[::-1], 1)

    def ranked(self, scores: np.ndarray) -> Ranking:
        """The candidates in the order of their scores [Q, k], in nats, with the softmax of those."""
        order = recall.rerank(self.candidates, scores)
        return Ranking(self.queries, order, -np.sort(-softmax(scores), axis=1))

    def reranked(self, scores: np.ndarray) -> tuple[np.ndarray, Ranking]:
        """Final ranks [Q] and ranking by the second scores [Q, k] of the candidates."""
        ranking = self.ranked(scores)
        return recall.reranked_ranks(ranking.indices, self.ranks, self.relevance), ranking

    def limits(self, items: dict[int, Items]) -> dict[str, float]:
        """The size of the gallery, how many of it the model can tell apart, the best R@1 that leaves, R@1 by chance."""
        asked, offered = items[self.query].inputs[self.queries], items[self.gallery].inputs
        different = len(np.unique(offered))
        best = reachable(self.relevance, asked, offered)
        chance = self.relevance.chance()
        return {"gallery": len(offered), "different": different, "best_R@1": best, "chance_R@1": chance}


@dataclass(frozen=True)
class Couple:
    """The first stage of two modalities."""

    items: dict[int, Items]  # of both; beside joint items stand those that they are made of
    directions: list[Direction]

    def propose(self) -> tuple[Proposal, list[np.ndarray]]:
        """The candidates of both directions, each pair once, and where each direction's [Q, k] stand among them."""
        distinct, first, parts = distinct_pairs([direction.pairs() for direction in self.directions])
        cosines = np.concatenate([direction.cosines.reshape(-1) for direction in self.directions])
        shapes = [direction.candidates.shape for direction in self.directions]
        places = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return Proposal(self.items, distinct, cosines[first]), places


@dataclass(frozen=True)
class Scored:
    """A direction with the terms of its candidates' second scores, [Q, k] each."""

    direction: Direction
    items: dict[int, Items]
    terms: dict[str, np.ndarray]


class RetrievalEvaluator(Evaluator):
    """Recall in every direction, by embeddings and re-ranked."""

    name = "retrieval"

    def needs(self, settings: EvalConfig) -> Needs:
        tokens = set()
        if settings.rerank.top_k and settings.rerank.matching:
            tokens |= {TEXT, IMAGE, AUDIO}
        if settings.rerank.top_k and settings.rerank.likelihood:
            tokens |= {IMAGE, AUDIO}
        read = frozenset({TEXT, IMAGE, AUDIO})
        return Needs(settings.retrieval.gallery_size, frozenset(), read, frozenset(tokens))

    def run(self, split: Split) -> dict[str, Any]:
        """``gallery``, ``retrieval``, ``reranked``, ``rerank``, ``fused_passes``, ``embeddings``, ``folds``: what eval
        asks for."""
        if len(split.items) < 2:
            return {}
        settings, fused = split.settings, self.engine.reranker.fused
        if settings.rerank.top_k and settings.rerank.likelihood:
            split.items = self.with_transcripts(split.items)
        compared = first_images(split.items, settings.retrieval.gallery_size)
        _check_folds(compared, settings.retrieval.folds)
        first, second, rankings = self.evaluate(compared, settings.rerank.top_k)
        if not first:
            return {}
        found: dict[str, Any] = {"gallery": len(compared.get(IMAGE, compared.get(TEXT, ())))}
        found |= {"retrieval": first, "reranked": second, "fused_passes": self.engine.reranker.fused - fused}
        found["embeddings"] = {NAMES[which]: spread(group) for which, group in compared.items() if len(group) > 1}
        if second:
            found["rerank"] = {"top_k": settings.rerank.top_k, "weights": self.engine.reranker.weights}
            found["rerank"]["tuned_on"] = settings.rerank.tuned_on
        if settings.retrieval.folds > 1:
            found["folds"] = self.folds(compared, settings)
        if split.sheets:
            split.sheets.retrieval(compared, rankings)
        return found

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Recall at 1 of every direction, and the mean."""
        recalls = {f"{direction}_R@1": found["R@1"] for direction, found in metrics.get("retrieval", {}).items()}
        return recalls | {"mean_R@1": sum(recalls.values()) / len(recalls)} if recalls else {}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """R@1 by chance, and how the embeddings of each modality lie."""
        chances = {f"{name}_R@1": found["chance_R@1"] for name, found in metrics.get("retrieval", {}).items()}
        if chances:
            chances["mean_R@1"] = sum(chances.values()) / len(chances)
        found = {f"chance/{name}": chance for name, chance in chances.items()}
        for name, how in metrics.get("embeddings", {}).items():
            measures = ("mean_cosine", "effective_rank", "items")
            found |= {f"embeddings/{name}_{measure}": how[measure] for measure in measures}
        return found

    def with_transcripts(self, items: dict[int, Items]) -> dict[int, Items]:
        """The items, where images are compared with audio clips by likelihood with the clips' transcripts."""
        if not {IMAGE, AUDIO} <= items.keys():
            return items
        return items | {AUDIO: self.engine.transcribe(items[AUDIO])}

    def evaluate(self, items: dict[int, Items], depth: int) -> tuple[Metrics, Metrics, dict[str, Ranking]]:
        """Recall in every direction.

        Args:
            items: by modality.
            depth: k, how many of the best are re-ranked; 0: none.

        Returns:
            metrics of the first stage and of the second by direction, and the final rankings.
        """
        reranker = self.engine.reranker
        first, second, rankings = {}, {}, {}
        couples = self.first_stage(items, depth)
        for couple in couples:
            for direction in couple.directions:
                first[direction.name] = recall.recall(direction.ranks) | direction.limits(couple.items)
                rankings[direction.name] = direction.ranked(reranker.logit_scale() * direction.cosines)
        if depth and reranker.active:
            for scored in self.second_stage(couples, tuple(reranker.weights)):
                name, size = scored.direction.name, len(scored.items[scored.direction.gallery])
                ranks, rankings[name] = scored.direction.reranked(reranker.weigh(scored.terms))
                second[name] = recall.recall(ranks) | {"gallery": size}
        return first, second, rankings

    def folds(self, items: dict[int, Items], settings: EvalConfig) -> dict[str, Any]:
        """Retrieval as the mean over smaller galleries of consecutive images."""
        count, found = settings.retrieval.folds, []
        for part in np.array_split(_images_of(items), count):
            chosen = {which: group.take(np.isin(group.images, part)) for which, group in items.items()}
            chosen = {which: group for which, group in chosen.items() if len(group)}
            found.append(self.evaluate(chosen, settings.rerank.top_k)[:2])
        first, second = (_mean(stage) for stage in zip(*found, strict=True))
        size = len(items.get(IMAGE, items.get(TEXT, ()))) // count
        return {"count": count, "gallery": size, "retrieval": first, "reranked": second}

    def first_stage(self, items: dict[int, Items], depth: int) -> list[Couple]:
        """Every couple that the items have relevant pairs of, ranked by embeddings both ways."""
        if items.keys() >= {TEXT, AUDIO}:
            joint = self.engine.encoder.joint(items[TEXT], items[AUDIO])
            items = items if joint is None else items | {JOINT: joint}
        found = []
        for couple in COUPLES:
            if not set(couple) <= items.keys():
                continue
            directions = [_rank_all(items, query, gallery, depth) for query, gallery in (couple, couple[::-1])]
            directions = [direction for direction in directions if len(direction.queries)]
            if directions:
                wanted = {*couple, TEXT, AUDIO} if JOINT in couple else set(couple)
                found.append(Couple({which: items[which] for which in wanted}, directions))
        return found

    def second_stage(self, couples: Sequence[Couple], names: Sequence[str]) -> list[Scored]:
        """Every direction of the first stage, with the named terms of its candidates' second scores."""
        made = [couple.propose() for couple in couples]
        terms = self.engine.reranker.terms([proposal for proposal, _ in made], names)
        return [
            Scored(direction, couple.items, {name: term[chosen] for name, term in found.items()})
            for couple, (_, places), found in zip(couples, made, terms, strict=True)
            for direction, chosen in zip(couple.directions, places, strict=True)
        ]


def spread(items: Items) -> dict[str, float]:
    """How the embeddings of two items or more lie, and of how many dimensions they are."""
    vectors = items.embeddings
    found = {"mean_cosine": mean_cosine(vectors), "effective_rank": effective_rank(vectors)}
    return found | {"dimensions": vectors.shape[1], "items": len(vectors)}


def _rank_all(items: dict[int, Items], query: int, gallery: int, depth: int) -> Direction:
    asked, offered = items[query], items[gallery]
    relevant = relevance(items, query, gallery)
    queries = np.flatnonzero(relevant.answerable)
    relevant = relevant.take(queries)
    if not len(queries):
        empty = np.zeros((0, 1), np.int64)
        return Direction(query, gallery, queries, relevant, queries, empty, empty.astype(np.float64))
    vectors = asked.embeddings[queries]
    ranks = recall.ranks(vectors, offered.embeddings, relevant)
    candidates, cosines = top_k(vectors, offered.embeddings, min(depth or HITS, len(offered)))
    return Direction(query, gallery, queries, relevant, ranks, candidates, cosines)


def _images_of(items: dict[int, Items]) -> np.ndarray:
    return np.unique(np.concatenate([group.images for group in items.values()]))


def _check_folds(items: dict[int, Items], count: int) -> None:
    """Raises DataError, before anything is ranked, if there are fewer images than galleries."""
    if count > 1 and (images := len(_images_of(items))) < count:
        raise DataError(f"eval.retrieval.folds={count}: the gallery has only {images} images: lower it")


def _mean(metrics: Sequence[Metrics]) -> Metrics:
    """By direction; of those that every fold has, so that all are means over the same folds."""
    names = [name for name in metrics[0] if all(name in fold for fold in metrics)]
    return {
        name: {key: float(np.mean([fold[name][key] for fold in metrics])) for key in metrics[0][name]} for name in names
    }

"""Retrieval between text, image, audio, and text with audio: by embeddings, then the best ``k`` by a second score.

``x2y`` is query x, gallery y; ``ta`` is a text and its speech as one. The second score of a pair is, in nats,

    w_e · scale · cosine + w_m · log p(the pair matches) + w_l · log p(text | the other)

An image and an audio clip have no text between them: the likelihood is then that of what the model itself writes down from
the audio. A text with its audio matches an image when all three do, and the likelihood is that of the text given the
image. A term of weight 0 is not computed, and a direction without any but the first is not ranked again.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.config import RerankConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, JOINT, TEXT
from src.data.tokenizer import Tokenizer
from src.generation.beam import BeamSearch
from src.inference.encode import NAMES, Encoder, Items
from src.inference.scorers import Matching, TextLikelihood
from src.metrics import recall
from src.metrics.nearest import top_k
from src.models.opt import OPT

COUPLES = ((TEXT, IMAGE), (IMAGE, AUDIO), (TEXT, AUDIO), (IMAGE, JOINT))
TERMS = ("embedding", "matching", "likelihood")  # of the second score; eval.rerank has their weights
SHOWN = 5

Figures = dict[str, dict[str, float]]  # by direction


@dataclass(frozen=True)
class Ranking:
    """The best of the gallery for every query, with what they share of the probability among the candidates."""

    queries: np.ndarray  # int64 [Q]: which items of the query's modality asked
    indices: np.ndarray  # int64 [Q, k]
    shares: np.ndarray  # float64 [Q, k], each row sums to 1


@dataclass(frozen=True)
class Direction:
    """A direction's first stage."""

    query: int
    gallery: int
    queries: np.ndarray  # int64 [Q]: the query items that have a relevant one in the gallery
    ranks: np.ndarray  # int64 [Q]
    candidates: np.ndarray  # int64 [Q, k]
    cosines: np.ndarray  # float64 [Q, k]

    @property
    def name(self) -> str:
        return f"{NAMES[self.query]}2{NAMES[self.gallery]}"

    def pairs(self) -> np.ndarray:
        """int64 [Q·k, 2]: the item of the lower modality, that of the higher one."""
        rows = np.repeat(self.queries, self.candidates.shape[1]), self.candidates.reshape(-1)
        return np.stack(rows if self.query < self.gallery else rows[::-1], 1)

    def reranked(self, items: dict[int, Items], scores: np.ndarray) -> tuple[np.ndarray, Ranking]:
        """Final ranks [Q] and ranking by the second scores [Q, k] of the candidates."""
        ranking = _rank(self, scores)
        asked, offered = items[self.query].images[self.queries], items[self.gallery].images
        return recall.reranked_ranks(ranking.indices, self.ranks, asked, offered), ranking


@dataclass(frozen=True)
class Proposal:
    """Pairs whose second score is asked for."""

    items: dict[int, Items]  # of two modalities; beside joint items stand those that they are made of
    pairs: np.ndarray  # int64 [n, 2]: items of the lower and the higher modality
    cosines: np.ndarray  # float64 [n]

    @property
    def label(self) -> str:
        low, high = sorted(pairs_of(self.items))
        return f"{NAMES[low]}–{NAMES[high]}"

    def parts(self) -> tuple[dict[int, Items], np.ndarray]:
        """The items without joint ones, and a pair's place in each: int64 [n, 2 or 3], text, image, audio in turn."""
        if JOINT not in self.items:
            return self.items, self.pairs
        texts, clips = self.items[JOINT].parts[self.pairs[:, 1]].T
        parts = {which: self.items[which] for which in (TEXT, IMAGE, AUDIO)}
        return parts, np.stack([texts, self.pairs[:, 0], clips], 1)


Proposed = tuple[dict[int, Items], list[Direction]]  # the items of a couple, and the first stage of its directions
Scored = tuple[Direction, dict[int, Items], dict[str, np.ndarray]]  # the candidates' terms are [Q, k]


class Retriever:
    """Ranks and re-ranks encoded items; its graphs are compiled once and serve every call.

    Args:
        model: the network.
        tokenizer: its vocabulary.
        config: the weights of the second score.
        encoder: joins texts and audio clips.
        decoder: writes audio clips down.
    """

    def __init__(
        self, model: OPT, tokenizer: Tokenizer, config: RerankConfig, encoder: Encoder, decoder: BeamSearch
    ) -> None:
        self.model, self.encoder, self.decoder = model, encoder, decoder
        weights = {term: getattr(config, term) for term in TERMS}
        self.weights = {term: weight for term, weight in weights.items() if weight > 0}
        self.likelihood = TextLikelihood(model, tokenizer.pad_id)
        self.matching = Matching(model)

    @property
    def reranks(self) -> bool:
        """Whether the second score is more than the first."""
        return bool(self.weights.keys() - {"embedding"})

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
        if not self.reranks:
            return None
        (found,) = self.terms([Proposal(items, pairs, cosines)], tuple(self.weights))
        return sum(self.weights[name] * term for name, term in found.items())

    def terms(self, proposals: Sequence[Proposal], names: Sequence[str] = TERMS) -> list[dict[str, np.ndarray]]:
        """The terms of the second score that are named, float64 [n] each, of every proposal."""
        compute = {
            "embedding": lambda: [self.temperature() * proposal.cosines for proposal in proposals],
            "matching": lambda: [self._log_match(proposal) for proposal in proposals],
            "likelihood": lambda: self._log_likelihoods(proposals),
        }
        found = {name: compute[name]() for name in names}
        return [{name: terms[at] for name, terms in found.items()} for at in range(len(proposals))]

    def _log_match(self, proposal: Proposal) -> np.ndarray:
        return self.matching.score(*proposal.parts(), f"matching {proposal.label}")

    def _log_likelihoods(self, proposals: Sequence[Proposal]) -> list[np.ndarray]:
        """A text and an image that come with and without the text's speech are scored once."""
        asked = [self._likelihood_of(proposal) for proposal in proposals]
        alike = defaultdict(list)
        for at, (given, texts, _) in enumerate(asked):
            alike[given, id(texts)].append(at)
        found: dict[int, np.ndarray] = {}
        for places in alike.values():
            given, texts, _ = asked[places[0]]
            distinct, _, parts = _distinct([asked[at][2] for at in places])
            label = f"likelihood {', '.join(proposals[at].label for at in places)}"
            scores = self.likelihood.score(given, proposals[places[0]].items[given], texts, distinct, label)
            found.update((at, scores[part]) for at, part in zip(places, parts, strict=True))
        return [found[at] for at in range(len(proposals))]

    def _likelihood_of(self, proposal: Proposal) -> tuple[int, np.ndarray, np.ndarray]:
        """Given what, the likelihood of which texts (ids [m, T]), and the pairs: text, what it is given, [n, 2]."""
        items, rows = proposal.parts()
        if TEXT in items:
            given = IMAGE if IMAGE in items else AUDIO
            columns = [sorted(items).index(TEXT), sorted(items).index(given)]
            return given, items[TEXT].ids, rows[:, columns]
        written = items[AUDIO].ids
        if written is None:
            written = self.decoder.write({AUDIO: (items[AUDIO].tokens, items[AUDIO].mask)})
        return IMAGE, written, rows[:, ::-1]

    def evaluate(self, items: dict[int, Items], depth: int) -> tuple[Figures, Figures, dict[str, Ranking]]:
        """Recall in every direction.

        Args:
            items: by modality.
            depth: k, how many of the best are ranked again; 0: none.

        Returns:
            figures of the first stage and of the second by direction, and the final rankings.
        """
        first, second, rankings = {}, {}, {}
        proposed = self.first_stage(items, depth)
        for chosen, directions in proposed:
            for direction in directions:
                size = len(chosen[direction.gallery])
                first[direction.name] = recall.recall(direction.ranks) | {"gallery": size}
                rankings[direction.name] = _rank(direction, self.temperature() * direction.cosines)
        if depth and self.reranks:
            for direction, chosen, terms in self.scored(proposed, tuple(self.weights)):
                scores = sum(self.weights[name] * term for name, term in terms.items())
                ranks, rankings[direction.name] = direction.reranked(chosen, scores)
                second[direction.name] = recall.recall(ranks) | {"gallery": len(chosen[direction.gallery])}
        return first, second, rankings

    def evaluate_folds(self, items: dict[int, Items], depth: int, folds: int) -> tuple[Figures, Figures]:
        """The mean of :meth:`evaluate`'s figures over ``folds`` galleries of consecutive images."""
        images = np.unique(np.concatenate([group.images for group in items.values()]))
        if len(images) < folds:
            raise DataError(f"eval.retrieval.folds={folds}: the gallery has only {len(images)} images")
        found = []
        for part in np.array_split(images, folds):
            chosen = {which: group.take(np.isin(group.images, part)) for which, group in items.items()}
            found.append(self.evaluate({which: group for which, group in chosen.items() if len(group)}, depth)[:2])
        first, second = zip(*found, strict=True)
        return _mean(first), _mean(second)

    def first_stage(self, items: dict[int, Items], depth: int) -> list[Proposed]:
        """For each couple that the items have relevant pairs of: its items, and its directions by embeddings."""
        if items.keys() >= {TEXT, AUDIO} and (joint := self.encoder.joint(items[TEXT], items[AUDIO])) is not None:
            items = items | {JOINT: joint}
        found = []
        for couple in COUPLES:
            if not set(couple) <= items.keys():
                continue
            directions = [self._rank_all(items, query, gallery, depth) for query, gallery in (couple, couple[::-1])]
            directions = [direction for direction in directions if len(direction.queries)]
            if directions:
                wanted = {*couple, TEXT, AUDIO} if JOINT in couple else set(couple)
                found.append(({which: items[which] for which in wanted}, directions))
        return found

    def _rank_all(self, items: dict[int, Items], query: int, gallery: int, depth: int) -> Direction:
        asked, offered = items[query], items[gallery]
        queries = np.flatnonzero(np.isin(asked.images, offered.images))
        if not len(queries):
            empty = np.zeros((0, 1), np.int64)
            return Direction(query, gallery, queries, queries, empty, empty.astype(np.float64))
        vectors = asked.embeddings[queries]
        ranks = recall.ranks(vectors, offered.embeddings, asked.images[queries], offered.images)
        candidates, cosines = top_k(vectors, offered.embeddings, min(depth or SHOWN, len(offered)))
        return Direction(query, gallery, queries, ranks, candidates, cosines)

    def scored(self, proposed: Sequence[Proposed], names: Sequence[str]) -> list[Scored]:
        """Every direction that :meth:`first_stage` found, with the named terms of its candidates' second scores."""
        made = [_propose(items, directions) for items, directions in proposed]
        terms = self.terms([proposal for proposal, _ in made], names)
        return [
            (direction, items, {name: term[chosen] for name, term in found.items()})
            for (items, directions), (_, places), found in zip(proposed, made, terms, strict=True)
            for direction, chosen in zip(directions, places, strict=True)
        ]


def pairs_of(items: dict[int, Items]) -> set[int]:
    """The two that are compared; beside joint items stand those that they are made of."""
    return {IMAGE, JOINT} if JOINT in items else set(items)


def _propose(items: dict[int, Items], directions: Sequence[Direction]) -> tuple[Proposal, list[np.ndarray]]:
    """The candidates of both directions, each pair once, and where each direction's [Q, k] stand among them."""
    distinct, first, parts = _distinct([direction.pairs() for direction in directions])
    cosines = np.concatenate([direction.cosines.reshape(-1) for direction in directions])
    shaped = [part.reshape(direction.candidates.shape) for part, direction in zip(parts, directions, strict=True)]
    return Proposal(items, distinct, cosines[first]), shaped


def _distinct(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pairs [n, 2] of several groups, each once; where each stood first among all; where each group's stand now."""
    distinct, first, places = np.unique(np.concatenate(groups), axis=0, return_index=True, return_inverse=True)
    return distinct, first, np.split(places.reshape(-1), np.cumsum([len(group) for group in groups])[:-1])


def _mean(figures: Sequence[Figures]) -> Figures:
    """By direction, over the folds that have it."""
    names = [name for name in figures[0] if all(name in fold for fold in figures)]
    return {
        name: {key: float(np.mean([fold[name][key] for fold in figures])) for key in figures[0][name]} for name in names
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _rank(direction: Direction, scores: np.ndarray) -> Ranking:
    """The candidates [Q, k] in the order of their scores, in nats, with the softmax of those."""
    order = recall.rerank(direction.candidates, scores)
    return Ranking(direction.queries, order, -np.sort(-softmax(scores), axis=1))

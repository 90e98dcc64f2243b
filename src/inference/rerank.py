"""Re-ranking: the second score of a pair, in nats,

    w_e · logit scale · cosine + w_m · log p(the pair matches) + w_l · log p(text | the other)

A pair of an image and an audio clip has no text: the likelihood is then that of the clip's transcript. A text with its
speech matches an image when all three do, and the likelihood is that of the text given the image. A term of weight 0 is
not computed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.config import RerankConfig
from src.data.schema import AUDIO, IMAGE, JOINT, TEXT
from src.data.tokenizer import Tokenizer
from src.generation.beam import BeamSearch
from src.inference.encode import NAMES, Items
from src.inference.scorers import Matching, TextLikelihood
from src.models.opt import OPT

TERMS = ("embedding", "matching", "likelihood")  # of the second score; eval.rerank holds their weights


@dataclass(frozen=True)
class Proposal:
    """Pairs whose second score is asked for."""

    items: dict[int, Items]  # of two modalities; beside joint items stand those that they are made of
    pairs: np.ndarray  # int64 [n, 2]: items of the lower and the higher modality
    cosines: np.ndarray  # float64 [n]

    @property
    def label(self) -> str:
        low, high = sorted(pair_of(self.items))
        return f"{NAMES[low]}–{NAMES[high]}"

    def parts(self) -> tuple[dict[int, Items], np.ndarray]:
        """The items without joint ones, and a pair's place in each: int64 [n, 2 or 3], text, image, audio in turn."""
        if JOINT not in self.items:
            return self.items, self.pairs
        texts, clips = self.items[JOINT].parts[self.pairs[:, 1]].T
        parts = {which: self.items[which] for which in (TEXT, IMAGE, AUDIO)}
        return parts, np.stack([texts, self.pairs[:, 0], clips], 1)


@dataclass(frozen=True)
class Ranking:
    """The best of the gallery for every query, with what they share of the probability among the candidates."""

    queries: np.ndarray  # int64 [Q]: which items of the query's modality asked
    indices: np.ndarray  # int64 [Q, k]
    shares: np.ndarray  # float64 [Q, k], each row sums to 1


class Reranker:
    """Scores pairs a second time; its graphs are compiled once and serve every call.

    Args:
        model: the network.
        tokenizer: its vocabulary.
        config: the weights of the terms.
        text_generator: transcribes audio clips that are compared with images.
    """

    def __init__(self, model: OPT, tokenizer: Tokenizer, config: RerankConfig, text_generator: BeamSearch) -> None:
        self.model, self.text_generator = model, text_generator
        weights = {term: getattr(config, term) for term in TERMS}
        self.weights = {term: weight for term, weight in weights.items() if weight > 0}
        self.likelihood = TextLikelihood(model, tokenizer.pad_id)
        self.matching = Matching(model)

    @property
    def active(self) -> bool:
        """Whether the second score is more than the first."""
        return bool(self.weights.keys() - {"embedding"})

    @property
    def fused(self) -> int:
        """How many rows the cross-modal encoder has read so far."""
        return self.likelihood.fused + self.matching.fused

    def logit_scale(self) -> float:
        """The factor that makes cosines contrastive logits."""
        return float(self.model.scale().asnumpy())

    def scores(self, proposal: Proposal) -> np.ndarray:
        """The second score of every pair, float64 [n]."""
        (found,) = self.terms([proposal], tuple(self.weights))
        return self.weigh(found)

    def weigh(self, terms: dict[str, np.ndarray]) -> np.ndarray:
        """The weighted sum of terms."""
        return sum(self.weights[name] * term for name, term in terms.items())

    def terms(self, proposals: Sequence[Proposal], names: Sequence[str] = TERMS) -> list[dict[str, np.ndarray]]:
        """The terms of the second score that are named, float64 [n] each, of every proposal."""
        compute = {
            "embedding": lambda: [self.logit_scale() * proposal.cosines for proposal in proposals],
            "matching": lambda: [self._log_match(proposal) for proposal in proposals],
            "likelihood": lambda: self._log_likelihoods(proposals),
        }
        found = {name: compute[name]() for name in names}
        return [{name: terms[row] for name, terms in found.items()} for row in range(len(proposals))]

    def _log_match(self, proposal: Proposal) -> np.ndarray:
        return self.matching.score(*proposal.parts(), f"matching {proposal.label}")

    def _log_likelihoods(self, proposals: Sequence[Proposal]) -> list[np.ndarray]:
        """A text and an image that are compared with and without the text's speech are scored once."""
        asked = [self._likelihood_of(proposal) for proposal in proposals]
        alike = defaultdict(list)
        for row, (given, texts, _) in enumerate(asked):
            alike[given, id(texts)].append(row)
        found: dict[int, np.ndarray] = {}
        for rows in alike.values():
            given, texts, _ = asked[rows[0]]
            distinct, _, parts = distinct_pairs([asked[row][2] for row in rows])
            label = f"likelihood {', '.join(proposals[row].label for row in rows)}"
            scores = self.likelihood.score(given, proposals[rows[0]].items[given], texts, distinct, label)
            found.update((row, scores[part]) for row, part in zip(rows, parts, strict=True))
        return [found[row] for row in range(len(proposals))]

    def _likelihood_of(self, proposal: Proposal) -> tuple[int, np.ndarray, np.ndarray]:
        """Given what, the likelihood of which texts (ids [m, T]), and the pairs: text, what it is given, [n, 2]."""
        items, rows = proposal.parts()
        if TEXT in items:
            given = IMAGE if IMAGE in items else AUDIO
            columns = [sorted(items).index(TEXT), sorted(items).index(given)]
            return given, items[TEXT].ids, rows[:, columns]
        transcripts = items[AUDIO].ids
        if transcripts is None:
            transcripts = self.text_generator.generate({AUDIO: (items[AUDIO].tokens, items[AUDIO].mask)})
        return IMAGE, transcripts, rows[:, ::-1]


def pair_of(items: dict[int, Items]) -> set[int]:
    """The two that are compared; beside joint items stand those that they are made of."""
    return {IMAGE, JOINT} if JOINT in items else set(items)


def distinct_pairs(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pairs [n, 2] of several groups, each once; where each stood first among all; where each group's stand now."""
    distinct, first, places = np.unique(np.concatenate(groups), axis=0, return_index=True, return_inverse=True)
    return distinct, first, np.split(places.reshape(-1), np.cumsum([len(group) for group in groups])[:-1])


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)

"""What the library answers with.

Letters: ``N`` items, ``E`` embedding width, ``S`` image side, ``T`` text tokens.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.data.errors import DataError
from src.data.tokenizer import split_words
from src.inference.media import Medium


class Batch(NamedTuple):
    """Some of the items that were handed over, encoded."""

    numbers: list[int]  # their places among all items
    media: list[Medium]
    vectors: np.ndarray  # float32 [n, E], unit vectors


@dataclass(frozen=True)
class Hit:
    """An item of a gallery with its cosine to the query and its share of the probability among the candidates."""

    index: int  # its place in the gallery
    medium: Medium
    share: float
    cosine: float


@dataclass(frozen=True)
class Generated:
    """The images that were generated of one text or audio clip, the best first where they were scored.

    A single image is not, nor are those of a model that reads regions of images; they stand as they were sampled.
    """

    images: np.ndarray  # uint8 [samples, S, S, 3]
    scores: np.ndarray  # float64 [samples], by eval.image_generation.rank_by; NaN where they were not scored

    @classmethod
    def best_first(cls, images: np.ndarray, scores: np.ndarray) -> "Generated":
        """Of images in any order."""
        order = np.argsort(-scores, kind="stable")
        return cls(images[order], scores[order])

    @property
    def image(self) -> np.ndarray:
        """The first, uint8 [S, S, 3]."""
        return self.images[0]

    @property
    def known_scores(self) -> list[float | None]:
        """The scores, None where an image was not scored."""
        return [None if np.isnan(score) else score for score in self.scores.tolist()]


@dataclass(frozen=True)
class Classes:
    """What images or audio clips were taken for."""

    labels: list[str]
    cosines: np.ndarray  # float64 [N, labels]
    shares: np.ndarray  # float64 [N, labels]: of the probability among the labels; a row sums to 1

    @property
    def best(self) -> list[str]:
        """The likeliest label of each item."""
        return [self.labels[at] for at in self.cosines.argmax(1)]


@dataclass(frozen=True)
class MatchMap:
    """Where the text decoder looks in an image or in an audio clip for each token of a text.

    Of a text that is longer than the model reads, they are those of its beginning. ``places`` are the rows and columns
    of an image's patches, an image's regions, or the tokens of the audio encoder.
    """

    tokens: list[str]
    owners: np.ndarray  # int32 [T]: the word that each token belongs to; Chinese is cut into words by jieba
    logs: np.ndarray  # float64 [T]: ln p of each token, given those before it and the image or clip
    weights: np.ndarray  # float64 [T, *places]: the share of the attention that each place gets

    def words(self) -> list[tuple[str, float, np.ndarray]]:
        """Each word of the text, in its order, with its probability and its map, float64 [*places]."""
        pieces, found = self._pieces(), []
        for owner in dict.fromkeys(self.owners.tolist()):
            own = self.owners == owner
            word = "".join(pieces[at] for at in np.flatnonzero(own))
            found.append((word, float(np.exp(self.logs[own].sum())), self.weights[own].mean(0)))
        return found

    def of(self, word: str) -> np.ndarray:
        """The map of a word, or of any part of the text, float64 [*places]: the mean over its tokens.

        Raises:
            DataError: what was read of the text does not hold it.
        """
        pieces, sought = self._pieces(), "".join(split_words(word))
        text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        starts = ends - [len(piece) for piece in pieces]
        chosen = np.zeros(len(pieces), bool)
        for match in re.finditer(re.escape(sought), text) if sought else ():
            chosen |= (starts < match.end()) & (ends > match.start())
        if not chosen.any():
            raise DataError(f"{word!r} is not in what the model reads of the text, {text!r}: name a word of that")
        return self.weights[chosen].mean(0)

    def _pieces(self) -> list[str]:
        return [token.removeprefix("##") for token in self.tokens]

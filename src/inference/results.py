"""What the library answers with.

Letters: ``N`` items, ``E`` embedding width, ``S`` image side.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
    """The images that were generated of one text or audio clip, the best first."""

    images: np.ndarray  # uint8 [samples, S, S, 3]
    scores: np.ndarray  # float64 [samples], by eval.image_generation.rank_by; 0 for a single sample

    @classmethod
    def best_first(cls, images: np.ndarray, scores: np.ndarray) -> "Generated":
        """Of images in any order."""
        order = np.argsort(-scores, kind="stable")
        return cls(images[order], scores[order])

    @property
    def image(self) -> np.ndarray:
        """The best, uint8 [S, S, 3]."""
        return self.images[0]


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

"""What belongs together in a split: a text and its speech by caption, all else by image or by equal text."""

from collections.abc import Mapping

import numpy as np

from src.data.schema import AUDIO, IMAGE, TEXT
from src.inference.encode import Items
from src.metrics.relevance import Relevance


def relevance(items: Mapping[int, Items], query: int, gallery: int) -> Relevance:
    """Which items of one modality are right for those of another.

    An image is right for a text or speech if any of its captions says the same. Speech is right for a text that it
    says, whosever image it describes, and not for another caption of its image.
    """
    asked, offered = items[query], items[gallery]
    if IMAGE not in (query, gallery):
        return Relevance.same(asked.texts, offered.texts)
    if query == IMAGE:
        return Relevance.of(asked.images, offered.texts, _captions(items))
    return Relevance.of(asked.texts, offered.images, _captions(items)[:, ::-1])


def relevance_of_generated(items: Mapping[int, Items], source: int) -> Relevance:
    """Which texts are right for the images that were generated from texts or speech: those of the original image."""
    return Relevance.of(items[source].images, items[TEXT].texts, _captions(items))


def _captions(items: Mapping[int, Items]) -> np.ndarray:
    """Every image with the text of each of its captions, int64 [n, 2]."""
    groups = [items[modality] for modality in (TEXT, AUDIO) if modality in items]
    return np.concatenate([np.stack([group.images, group.texts], 1) for group in groups])

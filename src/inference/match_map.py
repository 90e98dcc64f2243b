"""Which part of an image or of a clip each word of a text is about.

A word's map is what the text decoder loses of its log-likelihood when the surroundings of a place are hidden: how much
less it expects the word there (occlusion, Zeiler and Fergus 2014, of the encoder's tokens instead of pixels). Of the
gradients, cosines and attention weights that were tried beside it none pointed more often at the right object
(docs/results.md).

Letters: ``R`` rows of a batch, ``L`` tokens of an image or a clip, ``D`` their width, ``T`` text tokens.
"""

import numpy as np
from mindspore import Tensor, nn

from src.data.schema import AUDIO, IMAGE
from src.inference.encode import ROWS, Items
from src.models.batches import fitting_size, run_batched
from src.models.layers import padding_bias
from src.models.opt import OPT

REACH = 1  # places on each side of one that are hidden with it


class _TokenLogs(nn.Cell):
    """Tokens (R, L, D), mask (R, L) and ids (R, T) → ln p of every token behind the first (R, T−1) float32."""

    def __init__(self, model: OPT, given: int) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.given = model, given
        self.places = Tensor(model.cross_encoder.single_modality_positions(given))

    def construct(self, tokens, mask, ids):
        decoder = self.model.text_decoder
        fused, fused_mask = self.model.cross_encoder.fuse_single_modality(tokens, mask, self.given)
        return decoder.log_probabilities(ids, decoder.read(fused, self.places), padding_bias(fused_mask))


class Occlusion:
    """How much less likely each token of a text is without a part of the image or clip that it is about."""

    def __init__(self, model: OPT) -> None:
        self.cells = {given: _TokenLogs(model, given) for given in (IMAGE, AUDIO)}

    def measure(self, given: int, item: Items, ids: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one item and one text.

        Args:
            given: IMAGE or AUDIO: what the item is.
            item: one, with its tokens.
            ids: of the text, int32 [T].
            hidden: bool [places, L]: the tokens that are hidden with each place.

        Returns:
            ln p of every token behind the first, given all of the item, float64 [T−1], and how much of it is lost
            without what is hidden, float64 [T−1, places].
        """
        (whole,) = self._logs(given, item, ids, item.mask)
        return whole, (whole - self._logs(given, item, ids, item.mask * ~hidden)).T

    def _logs(self, given: int, item: Items, ids: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """float64 [n, T−1] of the item behind n masks."""
        count = len(masks)
        tokens, texts = (np.broadcast_to(array, (count, *array.shape)) for array in (item.tokens[0], ids))
        inputs = (tokens, masks.astype(np.int32), texts)
        return run_batched(self.cells[given], fitting_size(count, ROWS), inputs)[0].astype(np.float64)


def surroundings(shape: tuple[int, ...]) -> np.ndarray:
    """Which places of a grid are at most :data:`REACH` from which in every direction, bool [places, places]."""
    at = np.indices(shape).reshape(len(shape), -1)
    return np.abs(at[:, :, None] - at[:, None]).max(0) <= REACH

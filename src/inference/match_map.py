"""Where the text decoder looks in an image or in a clip for each word of a text, and how likely it finds the word.

The weights of its last cross-attention, the mean over heads. On the demo's scenes they point at the right object more
often than gradients, cosines and hidden patches do, and take a single pass (docs/results.md).

Letters: ``B`` batch, ``L`` tokens of an image or a clip, ``D`` their width, ``T`` text tokens.
"""

import numpy as np
from mindspore import Tensor, nn

from src.data.schema import AUDIO, IMAGE
from src.inference.encode import Items
from src.models.batches import run_batched
from src.models.layers import padding_bias
from src.models.opt import OPT


class _Reading(nn.Cell):
    """Tokens (B, L, D), mask (B, L) and ids (B, T) → of every token behind the first ln p (B, T−1) and where the
    decoder looks for it (B, T−1, L)."""

    def __init__(self, model: OPT, given: int) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.given = model, given
        self.places = Tensor(model.cross_encoder.single_modality_positions(given))
        self.first = 1 + given  # behind the [CLS] and what stands for the absent modalities before it

    def construct(self, tokens, mask, ids):
        decoder = self.model.text_decoder
        fused, fused_mask = self.model.cross_encoder.fuse_single_modality(tokens, mask, self.given)
        memory, bias = decoder.read(fused, self.places), padding_bias(fused_mask)
        weights = decoder.attention(ids[:, :-1], memory, bias)
        return decoder.log_probabilities(ids, memory, bias), weights[:, :, self.first : self.first + tokens.shape[1]]


class Reader:
    """Reads a text token by token, beside the image or the clip that it is about."""

    def __init__(self, model: OPT) -> None:
        self.cells = {given: _Reading(model, given) for given in (IMAGE, AUDIO)}

    def read(self, given: int, item: Items, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one item and one text.

        Args:
            given: IMAGE or AUDIO: what the item is.
            item: one, with its tokens.
            ids: of the text, int32 [T].

        Returns:
            of every token behind the first ln p, float64 [T−1], and the share of the attention that each of the
            item's tokens gets, float64 [T−1, L].
        """
        logs, weights = run_batched(self.cells[given], 1, (item.tokens, item.mask, ids[None]))
        return logs[0].astype(np.float64), weights[0].astype(np.float64)

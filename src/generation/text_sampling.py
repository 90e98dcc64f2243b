"""Texts sampled from the model's own distribution.

Letters: ``B`` inputs, ``S`` texts of each, ``N`` = B·S, ``T`` positions, ``V`` vocabulary.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.tokenizer import Tokenizer
from src.generation.cache import CachedDecoder, called_often, past_bias
from src.models.layers import MASKED


def never_generated(tokenizer: Tokenizer) -> np.ndarray:
    """float32 [V]: MASKED for the tokens that no text may hold, 0 for the others; it is added to logits."""
    never = np.zeros(tokenizer.size, np.float32)
    never[[tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.unk_id]] = MASKED
    return never


class _SampleStep(nn.Cell):
    """One token further, by inverting the distribution function.

    Inputs:
        ids (N,) int32, the last tokens; position () int32, where they stand; bias of :meth:`CachedDecoder.step`;
        uniform (N, 1) float32 in (0, 1].

    Outputs:
        (N,) int32.
    """

    def __init__(self, cached: CachedDecoder, never: np.ndarray) -> None:
        super().__init__(auto_prefix=False)
        self.cached, self.never = cached, Tensor(never)
        self.softmax, self.sum = ops.Softmax(-1), ops.CumSum()

    def construct(self, ids, position, bias, uniform):
        sums = self.sum(self.softmax(self.cached.step(ids, position, bias) + self.never), 1)  # (N, V)
        return (sums < uniform * sums[:, -1:]).astype(ms.int32).sum(1)  # the first whose sum reaches it


class TextSampler:
    """Samples texts at temperature 1.

    Args:
        cached: a text decoder with S beams per memory: the samples.
        tokenizer: its vocabulary.
    """

    def __init__(self, cached: CachedDecoder, tokenizer: Tokenizer) -> None:
        self.cached, self.tokenizer = cached, tokenizer
        self.step = called_often(_SampleStep(cached, never_generated(tokenizer)))

    def sample(self, inputs: int, random: Callable[[int], np.ndarray]) -> np.ndarray:
        """Texts of what the cache has read.

        Args:
            inputs: B.
            random: so many numbers in [0, 1).

        Returns:
            int32 [B, S, T]: [CLS] tokens [SEP] [PAD] …; a text that found no end has no [SEP].
        """
        length, beams, tokenizer = self.cached.length, self.cached.beams, self.tokenizer
        texts = np.full((inputs * beams, length), tokenizer.pad_id, np.int32)
        texts[:, 0] = tokenizer.cls_id
        origins = np.tile(np.arange(beams)[:, None], (inputs, 1, length))
        going = np.ones(len(texts), bool)
        for position in range(length - 1):
            uniform = (1 - random(len(texts))).astype(np.float32)[:, None]
            state = texts[:, position].copy(), np.int32(position), past_bias(position, length, origins), uniform
            sampled = self.step(*map(Tensor, state)).asnumpy()
            texts[going, position + 1] = sampled[going]
            going &= sampled != tokenizer.sep_id
            if not going.any():
                break
        return texts.reshape(inputs, beams, length)

"""Text decoder: generates tokens of the vocabulary, from [CLS] to [SEP]."""

import mindspore as ms
from mindspore import ops

from src.config import TextDecoderConfig
from src.models.decoder import Decoder


class TextDecoder(Decoder):
    """The decoder of texts; inputs and outputs as :class:`src.models.decoder.Decoder`.

    Args:
        config: of the decoder.
        vocab_size: V.
        max_len: T, longest input.
        memory_len, memory_width: L and D of the fused tokens.
    """

    def __init__(
        self, config: TextDecoderConfig, vocab_size: int, max_len: int, memory_len: int, memory_width: int
    ) -> None:
        positions = {"positions": (1, max_len, config.width)}
        super().__init__(config, vocab_size, vocab_size, positions, memory_len, memory_width)
        self.length = max_len

    def all_positions(self):
        return self.positions

    def output_table(self):
        return self.tokens

    def log_probabilities(self, ids, memory, memory_bias, allowed=None):
        """log p of every token of a text behind the first one, given those before it.

        Args:
            ids: (B, T') int32, [CLS] … [SEP] [PAD] …
            memory: keys and values of :meth:`read`, a row for each text.
            memory_bias: (B, 1, 1, Lm) float32.
            allowed: (V,) float32, added to the logits, or None.

        Returns:
            (B, T'−1) float32; what stands at [PAD] means nothing.
        """
        logits = ops.cast(self.score(ids[:, :-1], memory, memory_bias), ms.float32)  # (B·(T'−1), V)
        if allowed is not None:
            logits = logits + allowed
        labels = ids[:, 1:]
        chosen = ops.gather_elements(ops.log_softmax(logits, -1), 1, labels.reshape(-1, 1))
        return chosen.reshape(labels.shape)


def repeat_memory(memory, owner):
    """Keys and values (B, H, Lm, D/H) of each layer, a row for each ``owner`` (R,) int32 → (R, H, Lm, D/H)."""
    repeated = ()
    for keys, values in memory:
        repeated = (*repeated, (ops.gather(keys, owner, 0), ops.gather(values, owner, 0)))
    return repeated

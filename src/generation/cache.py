"""A decoder that goes on token by token, with a key/value cache.

Letters: ``B`` batch, ``L`` fused length, ``Lm`` memory length, ``H`` heads, ``D`` width, ``V`` vocabulary.
"""

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.models.decoder import Decoder
from src.models.layers import padding_bias


class CachedDecoder(nn.Cell):
    """The keys and values of every layer: of the memory, written once a batch, and of the tokens, once a token.

    Args:
        decoder: of texts or of pictures.
        batch_size: B.
        places: int32 [Lm], the fused tokens that the memory is made of.
    """

    def __init__(self, decoder: Decoder, batch_size: int, places: np.ndarray) -> None:
        super().__init__(auto_prefix=False)
        self.decoder, self.places = decoder, Tensor(places)
        self.layers = len(decoder.transformer.blocks)
        attention = decoder.transformer.blocks[0].attention
        heads = (batch_size, attention.heads)
        self.memory_keys = self.tables("memory_keys", (*heads, len(places), attention.head_width))
        self.memory_values = self.tables("memory_values", (*heads, len(places), attention.head_width))
        self.keys = self.tables("keys", (*heads, decoder.length, attention.head_width))
        self.values = self.tables("values", (*heads, decoder.length, attention.head_width))
        self.memory_bias = _state("memory_bias", (batch_size, 1, 1, len(places)))

    def tables(self, name: str, shape: tuple[int, ...]) -> ParameterTuple:
        return ParameterTuple([_state(f"{name}{layer}", shape) for layer in range(self.layers)])

    def read(self, memory, mask):
        """Begins anew over a memory (B, Lm, D), the ``places`` of the fused tokens, and its mask (B, Lm) int32."""
        made = self.decoder.read(memory, self.places)
        for i in range(self.layers):
            ops.assign(self.memory_keys[i], made[i][0])
            ops.assign(self.memory_values[i], made[i][1])
        ops.assign(self.memory_bias, padding_bias(mask))

    def step(self, ids, position):
        """The last tokens ids (B,) int32 at position (1,) int32 → logits (B, V) of the next."""
        past, memory = (), ()
        for i in range(self.layers):
            past = (*past, (self.keys[i], self.values[i]))
            memory = (*memory, (self.memory_keys[i], self.memory_values[i]))
        logits, written = self.decoder.step(ids, position, past, memory, self.memory_bias)
        for i in range(self.layers):
            ops.assign(self.keys[i], written[i][0])
            ops.assign(self.values[i], written[i][1])
        return logits


def _state(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=f"decoding.{name}", requires_grad=False)

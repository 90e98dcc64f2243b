"""What the decoders of text and of images share: causal, reading the fused tokens by cross-attention."""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.models import precision
from src.models.layers import (
    MEMORY_POSITION_STD,
    POSITION_STD,
    TOKEN_STD,
    Transformer,
    cast,
    causal_bias,
    padding_bias,
    tied_std,
)


class Decoder(nn.Cell):
    """Autoregressive Transformer with tied input and output embeddings.

    The memory gets a learned position per place: without one the decoder does not learn where things are.

    Args:
        config: of the decoder.
        inputs: entries of the input table.
        outputs: V, what is predicted: the first entries of the input table.
        positions: name and shape of the tables that :meth:`all_positions` is made of.
        memory_len, memory_width: L and D of the fused tokens.

    Inputs:
        ids (B, T') int32, beginning with what begins a sequence; memory (B, L, D) float; memory_mask (B, L) int32.

    Outputs:
        logits (B·T', V) float32: for the token behind each input token.
    """

    def __init__(
        self,
        config,
        inputs: int,
        outputs: int,
        positions: dict[str, tuple[int, ...]],
        memory_len: int,
        memory_width: int,
    ) -> None:
        super().__init__()
        self.width, self.outputs, self.memory_len = config.width, outputs, memory_len
        self.compute_type = precision.compute_type()
        token_std, position_std = tied_std(TOKEN_STD, config.width), tied_std(POSITION_STD, config.width)
        self.tokens = Parameter(initializer(Normal(token_std), (inputs, config.width)), name="tokens")
        for name, shape in positions.items():
            setattr(self, name, Parameter(initializer(Normal(position_std), shape), name=name))
        self.memory_positions = Parameter(
            initializer(Normal(MEMORY_POSITION_STD), (1, memory_len, memory_width)), name="memory_positions"
        )
        self.transformer = Transformer(config, memory_width)
        self.output_bias = Parameter(initializer("zeros", (outputs,)), name="output_bias")
        self.product_bt = ops.MatMul(transpose_b=True)

    def all_positions(self):
        """(1, T, D): what is added to the tokens of a sequence of the greatest length."""
        raise NotImplementedError

    def output_table(self):
        """(V, D): the rows of the input table that can be predicted."""
        raise NotImplementedError

    def construct(self, ids, memory, memory_mask):
        length = ids.shape[1]
        x = ops.gather(self.tokens, ids, 0) + self.all_positions()[:, :length]  # (B, T', D)
        memory = memory + self.memory_positions
        x = self.transformer(x, causal_bias(length), memory, padding_bias(memory_mask))
        return self.logits(x)

    def logits(self, x):
        """Hidden (B, T', D) → (B·T', V) float32."""
        rows, table = cast(x.reshape(-1, self.width), self.compute_type), cast(self.output_table(), self.compute_type)
        return cast(self.product_bt(rows, table), ms.float32) + self.output_bias  # (B·T', V)

    def read(self, memory, places):
        """Keys and values of a memory, made once for any number of sequences.

        Args:
            memory: (B, Lm, D), the ``places`` of the fused tokens, in that order.
            places: (Lm,) int32.

        Returns:
            for each layer its keys and values, both (B, H, Lm, D/H).
        """
        memory = memory + ops.gather(self.memory_positions, places, 1)
        made = ()
        for block in self.transformer.blocks:
            made = (*made, block.cross_attention.keys_values(memory))
        return made

    def attention(self, ids, memory, memory_bias):
        """Where the decoder looks for the token behind each input token: in its last block, the mean over heads.

        Args:
            ids: (B, T') int32.
            memory, memory_bias: as in :meth:`score`.

        Returns:
            (B, T', Lm) float32, a row sums to 1.
        """
        length = ids.shape[1]
        x = ops.gather(self.tokens, ids, 0) + self.all_positions()[:, :length]  # (B, T', D)
        bias, last = causal_bias(length), len(self.transformer.blocks) - 1
        for i in range(last):
            x = self.transformer.blocks[i].extend(x, bias, memory[i], memory_bias)
        return self.transformer.blocks[last].memory_weights(x, bias, memory[last][0], memory_bias).mean(1)

    def score(self, ids, memory, memory_bias):
        """As the decoder itself, over the keys and values of :meth:`read`: ids (B, T') → logits (B·T', V)."""
        length = ids.shape[1]
        x = ops.gather(self.tokens, ids, 0) + self.all_positions()[:, :length]  # (B, T', D)
        bias = causal_bias(length)
        for i, block in enumerate(self.transformer.blocks):
            x = block.extend(x, bias, memory[i], memory_bias)
        return self.logits(self.transformer.finish(x))

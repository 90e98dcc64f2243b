"""Text decoder: causal, reading the fused tokens by cross-attention."""

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import TextDecoderConfig
from src.models.layers import INIT_STD, Transformer, causal_bias, padding_bias


class TextDecoder(nn.Cell):
    """Autoregressive Transformer with tied input and output embeddings.

    The memory gets a learned position per place: without one the decoder does not learn where things are.

    Args:
        config: of the decoder.
        vocab_size: V.
        max_len: longest input.
        memory_len, memory_width: L and D of the fused tokens.

    Inputs:
        ids (B, T') int32, beginning with [CLS]; memory (B, L, D) float; memory_mask (B, L) int32.

    Outputs:
        logits (B·T', V) float32: for the token behind each input token.
    """

    def __init__(
        self, config: TextDecoderConfig, vocab_size: int, max_len: int, memory_len: int, memory_width: int
    ) -> None:
        super().__init__()
        self.width = config.width
        self.tokens = Parameter(initializer(Normal(INIT_STD), (vocab_size, config.width)), name="tokens")
        self.positions = Parameter(initializer(Normal(INIT_STD), (1, max_len, config.width)), name="positions")
        self.memory_positions = Parameter(
            initializer(Normal(INIT_STD), (1, memory_len, memory_width)), name="memory_positions"
        )
        self.transformer = Transformer(config, memory_width)
        self.output_bias = Parameter(initializer("zeros", (vocab_size,)), name="output_bias")
        self.product_bt = ops.MatMul(transpose_b=True)

    def construct(self, ids, memory, memory_mask):
        length = ids.shape[1]
        x = ops.gather(self.tokens, ids, 0) + self.positions[:, :length]  # (B, T', D)
        memory = memory + self.memory_positions
        x = self.transformer(x, causal_bias(length), memory, padding_bias(memory_mask))
        return self.product_bt(x.reshape(-1, self.width), self.tokens) + self.output_bias  # (B·T', V)

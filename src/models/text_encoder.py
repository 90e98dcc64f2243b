"""Text encoder: BERT's embeddings and layers."""

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import TextEncoderConfig
from src.models.layers import POSITION_STD, TOKEN_STD, LayerNorm, Transformer, padding_bias, tied_std


class TextEncoder(nn.Cell):
    """Token and position embeddings, layer norm, Transformer.

    BERT adds an embedding of the sentence's place in a pair as well; with one sentence that is part of the positions.

    Inputs:
        ids (B, T) int32; mask (B, T) int32, 1 on tokens.

    Outputs:
        (B, T, D) float.
    """

    def __init__(self, config: TextEncoderConfig, vocab_size: int) -> None:
        super().__init__()
        token_std, position_std = tied_std(TOKEN_STD, config.width), tied_std(POSITION_STD, config.width)
        self.tokens = Parameter(initializer(Normal(token_std), (vocab_size, config.width)), name="tokens")
        self.positions = Parameter(
            initializer(Normal(position_std), (1, config.max_len, config.width)), name="positions"
        )
        self.norm = LayerNorm(config.width, config.eps)
        self.transformer = Transformer(config, epsilon=config.eps)

    def construct(self, ids, mask):
        x = ops.gather(self.tokens, ids, 0) + self.positions  # (B, T, D)
        return self.transformer(self.norm(x), padding_bias(mask))

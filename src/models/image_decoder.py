"""Image decoder: generates the codes of an image tokenizer, row by row from the top left."""

from mindspore import ops

from src.config import ImageDecoderConfig
from src.models.decoder import Decoder


class ImageDecoder(Decoder):
    """The decoder of code grids; inputs and outputs as :class:`src.models.decoder.Decoder`, with V = K.

    The length is fixed, so nothing but codes is ever predicted: there is no end and no padding. One more entry of
    the input table, ``bos`` = K, begins the sequence. A position is the sum of its row's and its column's embedding;
    the input at a position is the code before it.

    Args:
        config: of the decoder.
        codes: K, entries of the tokenizer's codebook.
        grid: G, codes on a side; P' = G² codes an image.
        memory_len, memory_width: L and D of the fused tokens.
    """

    def __init__(self, config: ImageDecoderConfig, codes: int, grid: int, memory_len: int, memory_width: int) -> None:
        positions = {"row_positions": (grid, 1, config.width), "column_positions": (1, grid, config.width)}
        super().__init__(config, codes + 1, codes, positions, memory_len, memory_width)
        self.bos, self.length = codes, grid**2

    def all_positions(self):
        return (self.row_positions + self.column_positions).reshape(1, self.length, self.width)  # (1, P', D)

    def output_table(self):
        return self.tokens[: self.outputs]  # (K, D)

    def shift(self, codes):
        """The input that predicts ``codes`` (B, P') int32: BOS and all but the last; −1, no image, becomes 0."""
        begin = ops.full((codes.shape[0], 1), self.bos, dtype=codes.dtype)
        return ops.concat((begin, ops.maximum(codes[:, :-1], 0)), 1)  # (B, P')

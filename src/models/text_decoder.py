"""Text decoder: writes tokens of the vocabulary, from [CLS] to [SEP]."""

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

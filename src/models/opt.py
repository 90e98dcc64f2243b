"""OPT: the whole model, part by part.

Letters: ``B`` batch, ``T`` text tokens, ``P`` patches, ``F`` audio tokens, ``L`` fused length, ``D`` width, ``E``
embedding width, ``K`` masked positions of a row, ``V`` vocabulary.
"""

from mindspore import nn, ops

from src.config import ModelConfig
from src.data.schema import MATCH_CASES
from src.models.audio_encoder import AudioEncoder
from src.models.cross_encoder import CrossEncoder
from src.models.heads import EmbeddingHead, MaskedTextHead, MatchingHead, Scale
from src.models.image_encoder import ImageEncoder
from src.models.text_decoder import TextDecoder
from src.models.text_encoder import TextEncoder


class OPT(nn.Cell):
    """Three encoders with embedding heads, a cross-modal encoder with its heads, and a text decoder.

    Args:
        config: sizes of the parts.
        vocab_size: V, entries of the vocabulary file.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.cross.width
        self.text_len, self.vocab_size = config.text.max_len, vocab_size
        self.text_encoder = TextEncoder(config.text, vocab_size)
        self.image_encoder = ImageEncoder(config.image)
        self.audio_encoder = AudioEncoder(config.audio)
        self.text_head = EmbeddingHead(config.text.width, config.embed_dim)
        self.image_head = EmbeddingHead(config.image.width, config.embed_dim)
        self.audio_head = EmbeddingHead(config.audio.width, config.embed_dim)
        self.scale = Scale()
        self.cross_encoder = CrossEncoder(config, self.text_len, self.image_encoder.patches, self.audio_encoder.tokens)
        self.masked_text_head = MaskedTextHead(width, config.text.width, vocab_size)
        self.matching_head = MatchingHead(width, config.embed_dim, len(MATCH_CASES))
        self.text_decoder = TextDecoder(
            config.text_decoder, vocab_size, self.text_len, self.cross_encoder.length, width
        )

    def embed_text(self, tokens, mask):
        """(B, T, D), (B, T) → (B, E)."""
        return self.text_head(tokens, mask)

    def embed_image(self, tokens):
        """(B, P, D) → (B, E)."""
        return self.image_head(tokens, ops.ones(tokens.shape[:2], tokens.dtype))

    def embed_audio(self, tokens, mask):
        """(B, F, D), (B, F) → (B, E)."""
        return self.audio_head(tokens, mask)

    def masked_text_logits(self, fused, positions):
        """Logits (B·K, V) of the tokens at ``positions`` (B, K) of the text in ``fused`` (B, L, D)."""
        rows, slots = positions.shape
        offsets = ops.arange(rows).reshape(rows, 1) * fused.shape[1] + 1  # the text stands behind the [CLS]
        flat = (positions + offsets.astype(positions.dtype)).reshape(rows * slots)  # (B·K,)
        hidden = ops.gather(fused.reshape(-1, fused.shape[2]), flat, 0)
        return self.masked_text_head(hidden, self.text_encoder.tokens)


def count_parameters(model: nn.Cell) -> dict[str, int]:
    """Parameters of each top-level part, and their ``total``."""
    counts: dict[str, int] = {}
    for name, parameter in model.parameters_and_names():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.size
    return counts | {"total": sum(counts.values())}

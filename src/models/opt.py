"""OPT: the whole model, part by part.

Letters: ``B`` batch, ``T`` text tokens, ``P`` patches, ``F`` audio tokens, ``L`` fused length, ``D`` width, ``E``
embedding width, ``K`` masked positions of a row, ``V`` vocabulary.
"""

from mindspore import nn, ops

from src.config import ModelConfig
from src.data.schema import MATCH_CASES
from src.models.audio_encoder import AudioEncoder
from src.models.cross_encoder import CrossEncoder
from src.models.heads import EmbeddingHead, MaskedCodeHead, MaskedFeatureHead, MaskedTextHead, MatchingHead, Scale
from src.models.image_decoder import ImageDecoder
from src.models.image_encoder import ImageEncoder
from src.models.layers import at
from src.models.text_decoder import TextDecoder
from src.models.text_encoder import TextEncoder


class OPT(nn.Cell):
    """Three encoders with embedding heads, a cross-modal encoder with its heads, decoders of text and of pictures.

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
        # where each modality begins in the fused tokens, behind the [CLS]
        self.first_text = 1
        self.first_image = self.first_text + self.text_len
        self.first_audio = self.first_image + self.image_encoder.patches
        self.masked_text_head = MaskedTextHead(width, config.text.width, vocab_size)
        if config.masked_features:
            self.masked_image_head = MaskedFeatureHead(width, config.image.width)
            self.masked_audio_head = MaskedFeatureHead(width, config.audio.width)
        if config.image_codes:
            codes, side = config.tokenizer.codes, config.tokenizer.side
            self.masked_code_head = MaskedCodeHead(width, codes)
            self.image_decoder = ImageDecoder(config.image_decoder, codes, side, self.cross_encoder.length, width)
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

    def embed_joint(self, text, audio):
        """Unit vectors (B, E) of texts and their speech taken together: the sum of both (B, E), at length 1."""
        both = text + audio
        return both * ops.rsqrt((both * both).sum(-1, keepdims=True) + 1e-12)

    def masked_text_logits(self, fused, positions):
        """Logits (B·K, V) of the tokens at ``positions`` (B, K) of the text in ``fused`` (B, L, D)."""
        hidden = at(fused, positions + self.first_text)
        return self.masked_text_head(hidden.reshape(-1, fused.shape[2]), self.text_encoder.tokens)

    def fused_image(self, fused, positions):
        """Fused patches (B, K, D) at ``positions`` (B, K) of the picture."""
        return at(fused, positions + self.first_image)

    def fused_audio(self, fused, positions):
        """Fused sound tokens (B, K, D) at ``positions`` (B, K) of the sound."""
        return at(fused, positions + self.first_audio)


def count_parameters(model: nn.Cell) -> dict[str, int]:
    """Parameters of each top-level part, and their ``total``."""
    counts: dict[str, int] = {}
    for name, parameter in model.parameters_and_names():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.size
    return counts | {"total": sum(counts.values())}

"""OPT: the whole model, part by part.

Letters: ``B`` batch, ``T`` text tokens, ``P`` patches or regions, ``F`` audio tokens, ``L`` fused length, ``D`` width,
``E`` embedding width, ``K`` masked positions of a row, ``V`` vocabulary.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.config import ModelConfig
from src.data.schema import AUDIO, IMAGE, IMAGE_FIELDS, MATCH_CASES, TEXT, audio_tokens
from src.models.audio_encoder import AUDIO_ENCODERS
from src.models.cross_encoder import CrossEncoder
from src.models.dropout import salt_dropouts
from src.models.heads import (
    AnswerHead,
    EmbeddingHead,
    LogitScale,
    MaskedCodeHead,
    MaskedFeatureHead,
    MaskedTextHead,
    MatchingHead,
    Pointer,
)
from src.models.image_decoder import ImageDecoder
from src.models.image_encoder import IMAGE_ENCODERS
from src.models.layers import gather_positions
from src.models.text_decoder import TextDecoder
from src.models.text_encoder import TextEncoder


class OPT(nn.Cell):
    """Three encoders with embedding heads, a cross-modal encoder with its heads, a text and an image decoder.

    Args:
        config: sizes of the parts.
        vocab_size: V, entries of the vocabulary file.
        answers: A, entries of the file of answers; 0: nothing classifies questions.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, answers: int = 0) -> None:
        super().__init__()
        width, image, audio = config.cross.width, config.image, config.audio
        self.text_len, self.vocab_size = config.text.max_len, vocab_size
        self.image_input, self.image_fields = image.input, IMAGE_FIELDS[image.input]  # of a batch
        self.region_features = image.input == "region"
        self.audio_features = audio.input == "feature"
        self.image_shape = (image.tokens, image.width)  # (P, D) of the encoder's tokens
        self.audio_shape = (audio_tokens(audio, audio.length), audio.width)  # (F, D)
        self.text_encoder = TextEncoder(config.text, vocab_size)
        self.image_encoder = IMAGE_ENCODERS[image.input](image)
        self.audio_encoder = AUDIO_ENCODERS[audio.input](audio)
        self.text_head = EmbeddingHead(config.text.width, config.embed_dim)
        self.image_head = EmbeddingHead(image.width, config.embed_dim)
        self.audio_head = EmbeddingHead(audio.width, config.embed_dim)
        self.scale = LogitScale()
        self.cross_encoder = CrossEncoder(config, self.text_len, self.image_shape[0], self.audio_shape[0])
        # where each modality begins in the fused tokens, after the [CLS]
        self.first_text = 1
        self.first_image = self.first_text + self.text_len
        self.first_audio = self.first_image + self.image_shape[0]
        self.masked_text_head = MaskedTextHead(width, config.text.width, vocab_size)
        if config.masked_features:
            features = image.region_dim if self.region_features else image.width
            self.masked_image_head = MaskedFeatureHead(width, image.width, features)
            features = audio.stride * audio.feature_dim if self.audio_features else audio.width
            self.masked_audio_head = MaskedFeatureHead(width, audio.width, features)
            if self.region_features:
                self.masked_class_head = MaskedCodeHead(width, image.region_classes)
        if config.image_codes:
            codes, side = config.image_tokenizer.codes, config.image_tokenizer.side
            if not self.region_features:
                self.masked_code_head = MaskedCodeHead(width, codes)
            self.image_decoder = ImageDecoder(config.image_decoder, codes, side, self.cross_encoder.length, width)
        self.matching_head = MatchingHead(width, config.embed_dim, len(MATCH_CASES))
        if answers:
            places = np.arange(self.cross_encoder.length)
            asked = (places >= self.first_text) & (places < self.first_image) | (places >= self.first_audio)
            patches = 0 if self.region_features else image.tokens
            self.answer_head = AnswerHead(width, config.cross.heads, asked, answers, patches)
            self.pointer = Pointer()
        self.text_decoder = TextDecoder(
            config.text_decoder, vocab_size, self.text_len, self.cross_encoder.length, width
        )
        salt_dropouts(self)

    def embed_text(self, tokens, mask):
        """(B, T, D), (B, T) → (B, E)."""
        return self.text_head(tokens, mask)

    def encode_image(self, inputs, masked=None, mask_token=None):
        """The tensors that ``image_fields`` names → tokens (B, P, D), mask (B, P) int32, 1 on patches or regions."""
        return self.image_encoder(*inputs, masked, mask_token), self.image_mask(inputs)

    def image_mask(self, inputs):
        """Mask (B, P) int32 of what ``image_fields`` names: an image has all its patches, but fewer regions."""
        if self.region_features:
            return inputs[2]
        return ops.ones((inputs[0].shape[0], self.image_shape[0]), ms.int32)

    def embed_image(self, tokens, mask):
        """(B, P, D), (B, P) → (B, E)."""
        return self.image_head(tokens, mask)

    def embed_audio(self, tokens, mask):
        """(B, F, D), (B, F) → (B, E)."""
        return self.audio_head(tokens, mask)

    def embed_joint(self, text, audio):
        """Unit vectors (B, E) of texts and their speech taken together: the sum of both (B, E), at length 1."""
        both = text + audio
        return both * ops.rsqrt((both * both).sum(-1, keepdims=True) + 1e-12)

    def points(self, encoded, given):
        """Where in the image each token of a question points.

        Args:
            encoded: of text, image and audio, in that order, tokens (B, length, D) and mask (B, length) int32, which is
                0 in the rows that are not given the modality.
            given: the modalities that any row is given. Nothing is read of the others, which take one place each, as
                in :meth:`CrossEncoder.fuse_given`.

        Returns:
            (B, Lm, P) float32, zeros where no question stands; None without images, or where they are regions.
        """
        if IMAGE not in given or self.region_features:
            return None
        patches, mask = encoded[IMAGE]
        image = self.image_head.terms(patches, mask)
        rows, count = mask.shape
        nothing = ops.zeros((rows, 1, count), ms.float32)
        found = ()
        for which, head in ((TEXT, self.text_head), (AUDIO, self.audio_head)):
            if which in given:
                tokens, asked = encoded[which]
                found = (*found, self.pointer(head.terms(tokens, asked), asked, image, mask))
            else:
                found = (*found, nothing)
        return ops.concat((nothing, found[0], ops.zeros((rows, count, count), ms.float32), found[1]), 1)

    def masked_text_logits(self, fused, positions):
        """Logits (B·K, V) of the tokens at ``positions`` (B, K) of the text in ``fused`` (B, L, D)."""
        hidden = gather_positions(fused, positions + self.first_text)
        return self.masked_text_head(hidden.reshape(-1, fused.shape[2]), self.text_encoder.tokens)

    def fused_image(self, fused, positions):
        """Fused patches or regions (B, K, D) at ``positions`` (B, K) of the image."""
        return gather_positions(fused, positions + self.first_image)

    def fused_audio(self, fused, positions):
        """Fused audio tokens (B, K, D) at ``positions`` (B, K) of the audio."""
        return gather_positions(fused, positions + self.first_audio)


def count_parameters(model: nn.Cell) -> dict[str, int]:
    """Parameters of each top-level part, and their ``total``."""
    counts: dict[str, int] = {}
    for name, parameter in model.parameters_and_names():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.size
    return counts | {"total": sum(counts.values())}

"""The encoders with their embedding heads as graphs of their own: what inference, export and feature extraction run.

Letters as in :mod:`src.models.opt`.
"""

from mindspore import nn

from src.models.opt import OPT


class EncodeText(nn.Cell):
    """ids, mask (B, T) int32 → embedding (B, E), tokens (B, T, D)."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model = model

    def construct(self, text_ids, text_mask):
        tokens = self.model.text_encoder(text_ids, text_mask)
        return self.model.embed_text(tokens, text_mask), tokens


class EncodeImage(nn.Cell):
    """The batch fields that the image encoder reads → embedding (B, E), tokens (B, P, D), mask (B, P) int32."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *inputs):
        tokens, mask = self.model.encode_image(inputs)
        return self.model.embed_image(tokens, mask), tokens, mask


class EncodeAudio(nn.Cell):
    """audio (B, M, …), audio_frames (B,) int32 → embedding (B, E), tokens (B, F, D), mask (B, F) int32."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, audio, audio_frames):
        tokens, mask = self.model.audio_encoder(audio, audio_frames)
        return self.model.embed_audio(tokens, mask), tokens, mask

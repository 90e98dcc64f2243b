"""Audio encoders: of log-mel frames, of precomputed audio features, or of the waveform (wav2vec 2.0)."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import Normal, initializer

from src.config import AudioEncoderConfig
from src.models.layers import POSITION_STD, LayerNorm, Linear, Transformer, apply_mask_token, padding_bias
from src.models.wav2vec2 import Wav2Vec2Encoder


class AudioEncoder(nn.Cell):
    """A convolution whose kernel is as long as its stride (a linear map of joined frames), positions, Transformer.

    Inputs:
        audio (B, M, N) uint8 log-mel; frames (B,) int32, how many of the M are audio; to mask tokens also
        masked (B, F) float32, 1 where one is masked, and the mask_token (1, 1, D) that stands in its place.

    Outputs:
        tokens (B, F, D) float with F = M / stride; mask (B, F) int32, 1 where a token holds any audio.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.tokens = config.max_frames // config.stride
        self.joined = config.stride * config.mels
        self.project = Linear(self.joined, config.width)
        self.positions = Parameter(initializer(Normal(POSITION_STD), (1, self.tokens, config.width)), name="positions")
        self.transformer = Transformer(config, epsilon=config.eps)
        self.starts = Tensor(np.arange(self.tokens, dtype=np.int32)[None] * config.stride)  # (1, F)

    def construct(self, audio, frames, masked=None, mask_token=None):
        mask = (self.starts < frames.reshape(-1, 1)).astype(ms.int32)  # (B, F)
        x = audio.astype(ms.float32) / 127.5 - 1.0
        x = self.project(x.reshape(-1, self.tokens, self.joined))  # (B, F, D)
        if masked is not None:
            x = apply_mask_token(x, masked, mask_token)
        return self.transformer(x + self.positions, padding_bias(mask)), mask


class FeatureEncoder(nn.Cell):
    """Precomputed features of frames, joined ``stride`` at a time: projection, positions, layer norm, layers.

    Without layers it is the encoder of the paper, with positions added. Inputs and outputs are those of
    :class:`AudioEncoder`, with audio (B, M, N) float16 of N = feature_dim numbers a frame.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.tokens = config.max_frames // config.stride
        self.joined = config.stride * config.feature_dim
        self.project = Linear(self.joined, config.width)
        self.positions = Parameter(initializer(Normal(POSITION_STD), (1, self.tokens, config.width)), name="positions")
        self.norm = LayerNorm(config.width, config.eps)
        self.transformer = Transformer(config, epsilon=config.eps) if config.layers else None
        self.starts = Tensor(np.arange(self.tokens, dtype=np.int32)[None] * config.stride)  # (1, F)

    def join(self, audio):
        """(B, M, N) → (B, F, stride·N) float32."""
        return audio.astype(ms.float32).reshape(-1, self.tokens, self.joined)  # (B, F, stride·N)

    def construct(self, audio, frames, masked=None, mask_token=None):
        mask = (self.starts < frames.reshape(-1, 1)).astype(ms.int32)  # (B, F)
        x = self.project(self.join(audio))  # (B, F, D)
        if masked is not None:
            x = apply_mask_token(x, masked, mask_token)
        x = self.norm(x + self.positions)
        return (x if self.transformer is None else self.transformer(x, padding_bias(mask))), mask


AUDIO_ENCODERS = {"fbank": AudioEncoder, "feature": FeatureEncoder, "wav2vec2": Wav2Vec2Encoder}  # by model.audio.input

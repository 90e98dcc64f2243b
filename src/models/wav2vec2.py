"""wav2vec 2.0 (Baevski et al. 2020) in its base form: convolutions over the waveform, a Transformer over their tokens.

Letters: ``B`` batch, ``S`` samples, ``N`` steps of a convolution, ``C`` its width, ``F`` tokens, ``D`` their width.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import AudioEncoderConfig
from src.data.schema import WAVE_CONVOLUTIONS, audio_tokens
from src.models import precision
from src.models.kernels import row_mean
from src.models.layers import (
    EPSILON,
    Gelu,
    LayerNorm,
    Linear,
    Transformer,
    apply_mask_token,
    cast,
    padding_bias,
    reshape,
    transpose,
)

FULL_SCALE = 32768.0  # of int16
SILENCE = 1e-7  # added to the variance of a waveform


def standardise(waveform: Tensor, samples: Tensor) -> Tensor:
    """int16 (B, S) of which ``samples`` (B,) are audio → float32 of mean 0 and variance 1 over these, 0 behind them."""
    places = Tensor(np.arange(waveform.shape[1], dtype=np.int32)[None])
    heard = cast(places < reshape(samples, (-1, 1)), ms.float32)  # (B, S)
    share = row_mean(heard, 1) + 1e-12  # of S; a row without audio stays zero
    x = cast(waveform, ms.float32) / FULL_SCALE
    centred = (x - row_mean(x * heard, 1) / share) * heard
    return centred * ops.rsqrt(row_mean(centred * centred, 1) / share + SILENCE)


class WaveConvolution(nn.Cell):
    """A strided convolution along time, without bias.

    Args:
        inputs, outputs: channels.
        kernel, stride: in steps.

    Inputs:
        x (B, inputs, 1, N) float.

    Outputs:
        (B, outputs, 1, N') of the compute type with N' = (N − kernel) / stride + 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        spread = (2 / (kernel * inputs)) ** 0.5  # He et al. 2015: seven layers on end with one norm between them
        self.compute_type = precision.compute_type()
        self.weight = Parameter(initializer(Normal(spread), (outputs, inputs, kernel)), name="weight")
        self.convolve = ops.Conv2D(outputs, (1, kernel), pad_mode="valid", stride=(1, stride))

    def construct(self, x):
        weight = cast(ops.expand_dims(self.weight, 2), self.compute_type)  # (outputs, inputs, 1, kernel)
        return self.convolve(cast(x, self.compute_type), weight)


class ChannelNorm(nn.Cell):
    """Group norm (Wu and He 2018) of single channels: each over all of its steps, those of the padding too.

    Inputs and outputs: (B, C, 1, N) float.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = Parameter(initializer("ones", (width,)), name="gain")
        self.shift = Parameter(initializer("zeros", (width,)), name="shift")

    def construct(self, x):
        steps = cast(x, ms.float32)  # fp32: the mean of tens of thousands of steps
        centred = steps - row_mean(steps, 3)
        normal = centred * ops.rsqrt(row_mean(centred * centred, 3) + EPSILON)
        gain, shift = reshape(self.gain, (1, self.width, 1, 1)), reshape(self.shift, (1, self.width, 1, 1))
        return cast(normal * gain + shift, x.dtype)


class PositionConvolution(nn.Cell):
    """A grouped convolution along time that tells each token what stands around it.

    Its weight is kept as a direction and, for each place of the kernel, a length (Salimans and Kingma 2016).

    Args:
        width: D.
        kernel: tokens that it spans.
        groups: of the channels.

    Inputs and outputs: (B, F, D) float32.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.compute_type = precision.compute_type()
        shape, spread = (width, width // groups, kernel), 2 * (kernel * width) ** -0.5
        self.direction = Parameter(initializer(Normal(spread), shape), name="direction")
        length = spread * (width * width // groups) ** 0.5  # that of a random direction
        self.length = Parameter(initializer(length, (1, 1, kernel)), name="length")
        self.bias = Parameter(initializer("zeros", (width,)), name="bias")
        half = kernel // 2
        self.convolve = ops.Conv2D(width, (1, kernel), pad_mode="pad", pad=(0, 0, half, half), group=groups)
        self.gelu = Gelu()

    def weight(self):
        """(D, D / groups, 1, kernel)."""
        squares = (self.direction * self.direction).sum((0, 1), keepdims=True)  # (1, 1, kernel)
        return ops.expand_dims(self.direction * (self.length * ops.rsqrt(squares)), 2)

    def construct(self, x):
        channels = ops.expand_dims(transpose(x, (0, 2, 1)), 2)  # (B, D, 1, F)
        # one token more than F for an even kernel
        y = self.convolve(cast(channels, self.compute_type), cast(self.weight(), self.compute_type))
        y = transpose(y[:, :, 0, : x.shape[1]], (0, 2, 1))  # (B, F, D)
        return self.gelu(cast(y, ms.float32) + self.bias)


class Wav2Vec2Encoder(nn.Cell):
    """Seven convolutions (one token is 25 ms of audio, 20 ms apart at 16 kHz), a projection, positions, Transformer.

    Inputs:
        waveform (B, S) int16; samples (B,) int32, how many of the S are audio; to mask tokens also masked (B, F)
        float32, 1 where one is masked, and the mask_token (1, 1, D) that stands in its place.

    Outputs:
        tokens (B, F, D) float; mask (B, F) int32, 1 on the tokens whose samples are all audio, and on the first of a
        audio that is too short for one.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.tokens = audio_tokens(config, config.length)
        inputs = [1] + [config.conv_width] * (len(WAVE_CONVOLUTIONS) - 1)
        self.convolutions = nn.CellList(
            [
                WaveConvolution(width, config.conv_width, kernel, stride)
                for width, (kernel, stride) in zip(inputs, WAVE_CONVOLUTIONS, strict=True)
            ]
        )
        self.wave_norm = ChannelNorm(config.conv_width)
        self.gelu = Gelu()
        self.feature_norm = LayerNorm(config.conv_width, config.eps)
        self.project = Linear(config.conv_width, config.width)
        self.positions = PositionConvolution(config.width, config.position_kernel, config.position_groups)
        self.norm = LayerNorm(config.width, config.eps)
        self.transformer = Transformer(config, epsilon=config.eps)
        self.ends = Tensor(_token_ends(self.tokens))  # (1, F)

    def features(self, waveform, samples):
        """(B, S), (B,) → what the convolutions hear, (B, F, C)."""
        wave = standardise(waveform, samples)
        x = reshape(wave, (-1, 1, 1, wave.shape[1]))
        for i in range(len(self.convolutions)):
            x = self.convolutions[i](x)
            if i == 0:
                x = self.wave_norm(x)
            x = self.gelu(x)  # (B, C, 1, N)
        return cast(transpose(x[:, :, 0], (0, 2, 1)), ms.float32)  # (B, F, C)

    def construct(self, waveform, samples, masked=None, mask_token=None):
        mask = cast(self.ends <= reshape(samples, (-1, 1)), ms.int32)  # (B, F)
        x = self.project(self.feature_norm(self.features(waveform, samples)))
        if masked is not None:
            x = apply_mask_token(x, masked, mask_token)
        x = x * cast(ops.expand_dims(mask, 2), x.dtype)  # the positions would read the padding
        x = self.norm(x + self.positions(x))
        return self.transformer(x, padding_bias(mask)), mask


def _token_ends(tokens: int) -> np.ndarray:
    """int32 (1, F): how many samples an audio clip needs for each token to be heard whole; any at all for the first."""
    window, hop = 1, 1
    for kernel, stride in WAVE_CONVOLUTIONS:
        window, hop = window + (kernel - 1) * hop, hop * stride
    ends = np.arange(tokens, dtype=np.int32)[None] * hop + window
    ends[:, 0] = 1
    return ends

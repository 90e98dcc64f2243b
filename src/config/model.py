"""The parts of the network and their sizes."""

from dataclasses import dataclass, field
from typing import Literal

from src.config.checks import check_pretrained, check_transformer, require
from src.config.paths import REPOSITORY, PathText

Resize = Literal["crop", "pad", "squash"]  # how an image becomes a square


LOGIT_SCALES = 1.0, 100.0  # limits of the learned inverse temperature of the contrastive logits


@dataclass(frozen=True)
class TextEncoderConfig:
    vocab: PathText = str(REPOSITORY / "config/vocab/demo.txt")  # WordPiece vocabulary, one token a line
    max_len: int = 32  # T: tokens with [CLS] and [SEP]; longer text is cut and has no [SEP]
    width: int = 128
    layers: int = 3  # also 0: embeddings and a layer norm, as in the paper
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"  # post: the layer order of BERT
    eps: float = 1e-5  # of the layer norms; BERT's are 1e-12
    dropout: float = 0.0
    init_from: PathText = ""  # folder or safetensors file of a BERT whose weights training starts from

    def __post_init__(self) -> None:
        check_transformer(self, fewest_layers=0)
        check_pretrained(self, "post")
        require(self.max_len >= 4, "max_len", "must be at least 4: [CLS], [SEP] and two tokens")


@dataclass(frozen=True)
class ImageEncoderConfig:
    input: Literal["patch", "region"] = "patch"  # what is read: pixels, or features of a detector's regions
    size: int = 64  # side of the square image in pixels
    # how an image becomes that square, also for the image tokenizer: crop its middle, pad it with bars, or squash it
    resize: Resize = "crop"
    patch: int = 8  # side of a patch in pixels; P = (size / patch)²
    regions: int = 36  # P with input=region: the most regions of an image; of more, the best are read
    region_dim: int = 2048  # width of a region's feature
    region_classes: int = 1601  # classes of the detector
    width: int = 128
    layers: int = 3  # with input=region also 0: two projections and a layer norm, as in the paper
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    eps: float = 1e-5  # of the layer norms; ViT's are 1e-12
    cls_token: bool = False  # with input=patch: a [CLS] beside the patches, as ViT has it; not handed on
    dropout: float = 0.0
    init_from: PathText = ""  # folder or safetensors file of a ViT whose weights training starts from

    def __post_init__(self) -> None:
        check_transformer(self, fewest_layers=0 if self.input == "region" else 1)
        check_pretrained(self, "pre")
        require(not self.init_from or self.input == "patch", "init_from", "needs input: patch")
        require(self.patch > 0 and self.size % self.patch == 0, "patch", f"must divide size={self.size}")
        for name in ("regions", "region_dim", "region_classes"):
            require(getattr(self, name) > 0, name, "must be positive")

    @property
    def tokens(self) -> int:
        """P: patches of an image, or the most regions."""
        return self.regions if self.input == "region" else (self.size // self.patch) ** 2


@dataclass(frozen=True)
class AudioEncoderConfig:
    input: Literal["fbank", "feature", "wav2vec2"] = "fbank"  # what is stored: log-mel, features, waveform
    sample_rate: int = 16000  # Hz; other rates are resampled
    mels: int = 64  # mel bands of a frame
    hop_ms: int = 20  # distance of two frames
    window_ms: int = 25  # length of the analysis window
    feature_dim: int = 1024  # with input=feature: width of a frame
    max_frames: int = 192  # longer audio is cut; a waveform behind max_frames · hop_ms
    stride: int = 4  # frames joined into one token; F = max_frames / stride; not for input=wav2vec2
    conv_width: int = 512  # with input=wav2vec2: width of the convolutions over the waveform
    position_kernel: int = 128  # ... tokens that the convolution for positions spans
    position_groups: int = 16  # ... groups of its channels
    width: int = 128
    layers: int = 3  # with input=feature also 0: a projection and a layer norm, as in the paper
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    eps: float = 1e-5  # of the layer norms; wav2vec 2.0's are 1e-5
    dropout: float = 0.0
    init_from: PathText = ""  # folder or safetensors file of a wav2vec 2.0 whose weights training starts from

    def __post_init__(self) -> None:
        check_transformer(self, fewest_layers=0 if self.input == "feature" else 1)
        check_pretrained(self, "post")
        for name in ("sample_rate", "mels", "hop_ms", "window_ms", "feature_dim", "max_frames", "stride"):
            require(getattr(self, name) > 0, name, "must be positive")
        if self.input == "wav2vec2":
            self._check_wave()
        else:
            require(self.max_frames % self.stride == 0, "stride", f"must divide max_frames={self.max_frames}")
        require(not self.init_from or self.input == "wav2vec2", "init_from", "needs input: wav2vec2")
        require(not self.init_from or self.sample_rate == 16000, "sample_rate", "init_from needs 16000")

    def _check_wave(self) -> None:
        for name in ("conv_width", "position_kernel", "position_groups"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.width % self.position_groups == 0, "position_groups", f"must divide width={self.width}")
        fewest = 400  # samples that one token spans
        require(self.length >= fewest, "max_frames", f"{self.length} samples are fewer than the {fewest} of one token")

    @property
    def length(self) -> int:
        """M: frames that a batch has room for; of a waveform, samples."""
        if self.input == "wav2vec2":
            return self.max_frames * self.hop_ms * self.sample_rate // 1000
        return self.max_frames


@dataclass(frozen=True)
class TransformerConfig:
    """What every part that is a plain Transformer has."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_transformer(self)


class CrossEncoderConfig(TransformerConfig):
    """Of the cross-modal encoder."""


class TextDecoderConfig(TransformerConfig):
    """Of the text decoder."""


@dataclass(frozen=True)
class ImageTokenizerConfig:
    size: int = 64  # side of the square image in pixels
    side: int = 8  # codes along a side; C = side²
    codes: int = 512  # K: entries of the codebook
    code_dim: int = 32  # width of a codebook vector
    width: int = 128  # of encoder and decoder, which mirror each other
    layers: int = 2
    heads: int = 8
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    ema_decay: float = 0.99  # share of the past in the codebook's moving counts and sums
    commitment: float = 0.25  # β: weight of the commitment loss
    revive_below: float = 0.1  # codes used less than this share of the mean are replaced; 0: none after the first step

    def __post_init__(self) -> None:
        check_transformer(self)
        require(self.side > 0 and self.size % self.side == 0, "side", f"must divide size={self.size}")
        require(self.codes > 1, "codes", "must be at least 2")
        require(self.code_dim > 0, "code_dim", "must be positive")
        require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1)")
        require(self.commitment >= 0, "commitment", "must not be negative")
        require(0 <= self.revive_below < 1, "revive_below", "must be in [0, 1)")


class ImageDecoderConfig(TransformerConfig):
    """Of the image decoder, which model.image_codes builds."""


@dataclass(frozen=True)
class ModelConfig:
    embed_dim: int = 128  # E: width of the shared contrastive space
    masked_features: bool = False  # heads that predict masked patches and audio tokens, for mvm_* and mam_*
    image_codes: bool = False  # image decoder and a head for masked patches' codes, for denoise_image and mvm_code
    answers: PathText = ""  # file of answers, one a line, that questions are classified into; empty: no such head
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    cross: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    text_decoder: TextDecoderConfig = field(default_factory=TextDecoderConfig)
    image_decoder: ImageDecoderConfig = field(default_factory=ImageDecoderConfig)  # built with image_codes
    image_tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)  # a model of its own

    def __post_init__(self) -> None:
        require(self.embed_dim > 0, "embed_dim", "must be positive")

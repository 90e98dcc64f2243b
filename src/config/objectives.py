"""What pre-training and fine-tuning minimise: the weights of the losses, and the settings of each."""

from dataclasses import dataclass, field, fields
from typing import Literal

from src.config.checks import require


@dataclass(frozen=True)
class WeightsConfig:
    """The weight of each loss; 0 removes its computation as well. The losses are logged in this order."""

    contrastive: float = 1.0  # embeddings of what belongs together are close
    mlm: float = 0.0  # masked words
    mvm_code: float = 0.0  # codes of masked patches; needs data.codes
    mvm_feature: float = 0.0  # features of masked patches or regions
    mvm_class: float = 0.0  # the detector's class of masked regions; needs model.image.input=region
    mam_feature: float = 0.0  # features of masked audio tokens
    mam_contrastive: float = 0.0  # which masked audio token is which
    matching: float = 0.0  # which of text, image and audio belong together
    denoise_text: float = 0.0  # text generated from the other modalities
    denoise_image: float = 0.0  # image codes generated from the other modalities; needs data.codes

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            require(getattr(self, name) >= 0, name, "a weight must not be negative")


OBJECTIVES = tuple(weight.name for weight in fields(WeightsConfig))


@dataclass(frozen=True)
class MaskingConfig:
    """Of mlm, mvm_* and mam_*."""

    ratio: float = 0.15  # share of the words, patches and audio tokens that is masked
    audio_span: int = 3  # consecutive audio tokens that are masked together
    temperature: float = 0.1  # of mam_contrastive's cosines
    batch_share: float = 1.0  # share of the batch that is masked

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, "ratio", "must be in (0, 1)")
        require(self.audio_span > 0, "audio_span", "must be positive")
        require(self.temperature > 0, "temperature", "must be positive")
        _check_share(self.batch_share)


@dataclass(frozen=True)
class MatchingConfig:
    batch_share: float = 1.0  # share of the batch that matching reads

    def __post_init__(self) -> None:
        _check_share(self.batch_share)


@dataclass(frozen=True)
class DenoiseTextConfig:
    given: tuple[str, ...] = ("image+audio", "image", "audio")  # what the text is generated from, sampled per row
    label_smoothing: float = 0.0  # of the generated text
    batch_share: float = 1.0  # share of the batch whose text is generated

    def __post_init__(self) -> None:
        _check_given(self.given, "image")
        require(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)")
        _check_share(self.batch_share)


@dataclass(frozen=True)
class DenoiseImageConfig:
    given: tuple[str, ...] = ("text+audio", "text", "audio")  # what the image is generated from, sampled per row
    drop_given: float = 0.1  # share of the rows that are given nothing, for classifier-free guidance
    batch_share: float = 1.0  # share of the batch whose image is generated

    def __post_init__(self) -> None:
        _check_given(self.given, "text")
        require(0 <= self.drop_given < 1, "drop_given", "must be in [0, 1)")
        _check_share(self.batch_share)


@dataclass(frozen=True)
class SelfCriticalConfig:
    """Of task=self_critical alone, which reads no weights."""

    samples: int = 5  # captions that are sampled of each image

    def __post_init__(self) -> None:
        require(self.samples > 1, "samples", "must be 2 or more: each is compared with the others")


ANSWERED_FROM = ("text+image", "image+audio", "text", "audio")  # what a question can be answered from


@dataclass(frozen=True)
class AnswerConfig:
    """Of task=vqa alone, which reads no weights."""

    head: Literal["classify", "generate"] = "classify"  # chooses out of model.answers, or the text decoder writes it
    # what a question is answered from, sampled per row: its text or its speech, with the image or (blind) without
    given: tuple[str, ...] = ("text+image", "image+audio")

    def __post_init__(self) -> None:
        known = bool(self.given) and set(self.given) <= set(ANSWERED_FROM)
        require(known, "given", f"must be a list out of {', '.join(ANSWERED_FROM)}")

    @property
    def alike(self) -> bool:
        """Whether every question is answered from the same modalities."""
        return len({frozenset(choice.split("+")) for choice in self.given}) == 1


@dataclass(frozen=True)
class ObjectivesConfig:
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    denoise_text: DenoiseTextConfig = field(default_factory=DenoiseTextConfig)
    denoise_image: DenoiseImageConfig = field(default_factory=DenoiseImageConfig)
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)


def _check_share(share: float) -> None:
    require(0 < share <= 1, "batch_share", "must be in (0, 1]")


def _check_given(given: tuple[str, ...], other: str) -> None:
    choices = {f"{other}+audio", other, "audio"}
    require(bool(given) and set(given) <= choices, "given", f"must be a list out of {', '.join(sorted(choices))}")

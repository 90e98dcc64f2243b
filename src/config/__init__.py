"""Typed configuration: frozen dataclasses, filled from YAML files and overrides (load)."""

from src.config.checks import ConfigError, FieldError
from src.config.data import COLOURS, AugmentConfig, DataConfig, SourceConfig
from src.config.evaluation import (
    CaptionConfig,
    DecodingConfig,
    EvalConfig,
    ImageGenerationConfig,
    MaskedConfig,
    ReconstructionConfig,
    RerankConfig,
    RetrievalConfig,
    TranscriptConfig,
    VqaConfig,
    ZeroShotConfig,
)
from src.config.load import load_config, to_yaml
from src.config.model import (
    AudioEncoderConfig,
    CrossEncoderConfig,
    ImageDecoderConfig,
    ImageEncoderConfig,
    ImageTokenizerConfig,
    ModelConfig,
    Resize,
    TextDecoderConfig,
    TextEncoderConfig,
)
from src.config.objectives import (
    ANSWERED_FROM,
    OBJECTIVES,
    AnswerConfig,
    DenoiseImageConfig,
    DenoiseTextConfig,
    MaskingConfig,
    MatchingConfig,
    ObjectivesConfig,
    SelfCriticalConfig,
    WeightsConfig,
)
from src.config.paths import REPOSITORY
from src.config.root import Config
from src.config.run import OptimizerConfig, RuntimeConfig, TrainConfig
from src.config.tasks import IMAGE_TOKENIZER, OPT, TASKS

__all__ = [
    "ANSWERED_FROM",
    "COLOURS",
    "IMAGE_TOKENIZER",
    "OBJECTIVES",
    "OPT",
    "REPOSITORY",
    "TASKS",
    "AnswerConfig",
    "AudioEncoderConfig",
    "AugmentConfig",
    "CaptionConfig",
    "Config",
    "ConfigError",
    "CrossEncoderConfig",
    "DataConfig",
    "DecodingConfig",
    "DenoiseImageConfig",
    "DenoiseTextConfig",
    "EvalConfig",
    "FieldError",
    "ImageDecoderConfig",
    "ImageEncoderConfig",
    "ImageGenerationConfig",
    "ImageTokenizerConfig",
    "MaskedConfig",
    "MaskingConfig",
    "MatchingConfig",
    "ModelConfig",
    "ObjectivesConfig",
    "OptimizerConfig",
    "ReconstructionConfig",
    "RerankConfig",
    "Resize",
    "RetrievalConfig",
    "RuntimeConfig",
    "SelfCriticalConfig",
    "SourceConfig",
    "TextDecoderConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "TranscriptConfig",
    "VqaConfig",
    "WeightsConfig",
    "ZeroShotConfig",
    "load_config",
    "to_yaml",
]

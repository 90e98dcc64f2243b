"""Typed configuration: frozen dataclasses (model, data, run, root), filled from YAML files and overrides (load)."""

from src.config.checks import ConfigError, FieldError
from src.config.data import COLOURS, AugmentConfig, DataConfig, SourceConfig
from src.config.load import load_config, to_yaml
from src.config.model import (
    AudioEncoderConfig,
    CrossEncoderConfig,
    ImageDecoderConfig,
    ImageEncoderConfig,
    ImageTokenizerConfig,
    ModelConfig,
    TextDecoderConfig,
    TextEncoderConfig,
)
from src.config.root import TASKS, Config
from src.config.run import (
    OBJECTIVES,
    EvalConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)

__all__ = [
    "COLOURS",
    "OBJECTIVES",
    "TASKS",
    "AudioEncoderConfig",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "CrossEncoderConfig",
    "DataConfig",
    "EvalConfig",
    "FieldError",
    "ImageDecoderConfig",
    "ImageEncoderConfig",
    "ImageTokenizerConfig",
    "ModelConfig",
    "ObjectivesConfig",
    "OptimizerConfig",
    "RuntimeConfig",
    "SourceConfig",
    "TextDecoderConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "load_config",
    "to_yaml",
]

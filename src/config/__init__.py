"""Typed configuration: frozen dataclasses (model, run, root), filled from YAML files and overrides (load)."""

from src.config.checks import ConfigError, FieldError
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
    DataConfig,
    EvalConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)

__all__ = [
    "OBJECTIVES",
    "TASKS",
    "AudioEncoderConfig",
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
    "TextDecoderConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "load_config",
    "to_yaml",
]

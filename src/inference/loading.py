"""Trained models from the folders that hold them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindspore import nn

from src.checkpoints.checkpoint import load_checkpoint_config, load_weights
from src.checkpoints.places import locate
from src.config import OPT, Config, ConfigError
from src.models.build import build_model


def load_model(
    path: str | Path, overrides: Sequence[str] = (), config_file: str | Path | None = None, ema: bool = False
) -> tuple[Config, nn.Cell]:
    """Builds the network of a checkpoint and loads its weights.

    Args:
        path: run folder, checkpoint folder, or a folder like ``pretrained/opt_demo``.
        overrides: ``key=value`` changes of the configuration.
        config_file: as in :func:`src.checkpoints.checkpoint.load_checkpoint_config`.
        ema: load the average of its weights.

    Returns:
        The configuration, and the network of its task.

    Raises:
        CheckpointError, ConfigError.
    """
    folder = locate(path, ema)
    config = load_checkpoint_config(folder, overrides, config_file)
    model = build_model(replace(config, runtime=replace(config.runtime, recompute=False)))  # there is no backward
    load_weights(model, folder, ema)
    return config, model


def check_network(config: Config) -> None:
    """Raises ConfigError for an image tokenizer, which answers nothing."""
    if config.network != OPT:
        raise ConfigError(f"task={config.task}: an image tokenizer answers no questions: measure it with eval.py")

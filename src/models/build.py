"""The network that a configuration describes, with new weights."""

from pathlib import Path

from mindspore import nn

from src.config import Config, ConfigError
from src.data.answers import AnswerList
from src.data.tokenizer import Tokenizer
from src.models import precision
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT


def build_opt(config: Config) -> OPT:
    answers = len(AnswerList(config.model.answers)) if config.model.answers else 0
    return OPT(config.model, Tokenizer(config.model.text.vocab).size, answers)


def build_image_tokenizer(config: Config) -> ImageTokenizer:
    return ImageTokenizer(config.model.image_tokenizer)


NETWORKS = {"opt": build_opt, "image_tokenizer": build_image_tokenizer}


def build_model(config: Config) -> nn.Cell:
    """The network of a configuration's task, built for runtime.precision and runtime.recompute.

    Raises:
        ConfigError: there is no vocabulary where model.text.vocab says.
    """
    if not Path(config.model.text.vocab).is_file():
        raise ConfigError(f"model.text.vocab={config.model.text.vocab}: no such file")
    with precision.building(config.runtime.precision, config.runtime.recompute):
        return NETWORKS[config.network](config)

"""What the dataclasses of the configuration check themselves with."""

from typing import Any

from src.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; its message is one line meant for the user."""


class FieldError(ConfigError):
    """A field whose value contradicts another; the loader adds the full key and the file."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message


def require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise FieldError(name, message)


def check_transformer(config: Any, fewest_layers: int = 1) -> None:
    for name in ("width", "heads", "ffn"):
        require(getattr(config, name) > 0, name, "must be positive")
    require(config.layers >= fewest_layers, "layers", "must be positive" if fewest_layers else "must not be negative")
    require(config.width % config.heads == 0, "heads", f"must divide width={config.width}")
    require(0 <= config.dropout < 1, "dropout", "must be in [0, 1)")


def check_pretrained(config: Any, norm: str) -> None:
    """An encoder that may start from another library's weights, whose layers have that order of norms."""
    require(config.eps > 0, "eps", "must be positive")
    require(not config.init_from or config.norm == norm, "norm", f"the weights of init_from are for norm: {norm}")

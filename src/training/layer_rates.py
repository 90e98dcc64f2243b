"""Which parameters stay as they are, and at what share of the learning rate the others learn."""

import re
from collections.abc import Collection, Sequence

from mindspore import Parameter

from src.config import ConfigError

ENCODER = re.compile(r"((?:text|image|audio|cross)_encoder)\.(?:transformer\.(?:blocks\.(\d+)\.|(final_norm)\.))?")


def unfrozen(parameters: Sequence[Parameter], freeze: Sequence[str], unfed: Collection[str] = ()) -> list[Parameter]:
    """The parameters of all parts but the frozen ones (``optimizer.freeze``, top-level names of the network).

    Args:
        unfed: parts that are not trained for want of data; to freeze them is no mistake.

    Raises:
        ConfigError: a part that nothing would train anyway, or nothing left to train.
    """
    parts = {parameter.name.split(".")[0] for parameter in parameters}
    for part in freeze:
        if part not in parts and part not in unfed:
            raise ConfigError(f"optimizer.freeze={part}: these objectives train {', '.join(sorted(parts))}")
    left = [parameter for parameter in parameters if parameter.name.split(".")[0] not in freeze]
    if not left:
        raise ConfigError(f"optimizer.freeze={', '.join(freeze)} leaves nothing to train")
    return left


def rate_shares(parameters: Sequence[Parameter], decay: float) -> tuple[float, ...]:
    """Each parameter's share of the learning rate: d^k in the k-th layer from the top of its encoder.

    In an encoder of n layers the topmost has d, the lowest dⁿ, and what lies below (projection, tables, positions)
    dⁿ⁺¹. What stands on top of the encoders, their last norm included, has 1. As in BEiT (Bao et al. 2022).

    Args:
        parameters: of the network, by their names in it.
        decay: d.
    """
    found = [ENCODER.match(parameter.name) for parameter in parameters]
    layers: dict[str, int] = {}
    for match in found:
        if match and match[2]:
            layers[match[1]] = max(layers.get(match[1], 0), int(match[2]) + 1)
    return tuple(1.0 if match is None or match[3] else decay ** _depth(match, layers) for match in found)


def _depth(match: re.Match, layers: dict[str, int]) -> int:
    """Layers counted from the top of the encoder, which is 1."""
    count = layers.get(match[1], 0)
    return count - int(match[2]) if match[2] else count + 1

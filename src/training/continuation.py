"""What a run may take from a checkpoint: --resume continues the very run, train.init_from takes parts of a network.

Shapes do not show everything: with other numbers of heads, another vocabulary of equal size or another image tokenizer
the tensors still fit, and mean something else.
"""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import VOCAB
from src.config import IMAGE_TOKENIZER, OPT, Config, ConfigError
from src.data.image_codes import tokenizer_fingerprint
from src.errors import UserError

# of model: paths (their content is compared), and what a run may change on its way
FREE = ("vocab", "init_from", "dropout", "ema_decay", "commitment", "revive_below")
KEPT = ("task", "seed", "optimizer.name", "optimizer.freeze", "optimizer.layer_decay")  # beside the network
SECTIONS = {  # of model, by the part that it describes
    "text_encoder": "text",
    "image_encoder": "image",
    "audio_encoder": "audio",
    "cross_encoder": "cross",
    "text_decoder": "text_decoder",
    "image_decoder": "image_decoder",
}
READ_TOKENS = {"text_encoder", "text_decoder", "masked_text_head"}  # parts with a row for every token
READ_CODES = {"image_decoder", "masked_code_head"}  # ... for every image code


def check_resume(config: Config, folder: Path) -> None:
    """Raises ConfigError if the checkpoint that a run goes on from was trained with something that cannot change."""
    stored = load_checkpoint_config(folder)
    kept = dict(_keys(stored.model, "model."))
    kept |= {key: _value(stored, key) for key in KEPT}
    for key, theirs in kept.items():
        ours = _value(config, key)
        if theirs != ours:
            raise ConfigError(
                f"--resume: {key} is {ours!r}, but {theirs!r} in {folder}, and cannot change: set it back, or start a "
                "new run from these weights (train.init_from, another train.output)"
            )
    _check_vocabulary(config, folder, "--resume")
    if _codes_differ(config, stored):
        raise ConfigError(
            f"--resume: data.codes={config.data.codes} is another image tokenizer than that of the run in {folder}, "
            "whose codes the network has learned: name that one"
        )


def check_init(config: Config, folder: Path, shared: Collection[str]) -> list[str]:
    """Compares what shapes do not show of the parts that a network shares with the checkpoint of train.init_from.

    Returns:
        What is to be told.

    Raises:
        ConfigError: another vocabulary, other heads or another order of norms.
    """
    name, stored = f"train.init_from={config.train.init_from}", load_checkpoint_config(folder)
    found = SECTIONS if config.network == OPT else dict.fromkeys(shared, "image_tokenizer")
    for part in sorted(shared):
        section = found.get(part)
        for setting in ("heads", "norm") if section else ():
            key = f"model.{section}.{setting}"
            theirs, ours = _value(stored, key), _value(config, key)
            if theirs != ours:
                raise ConfigError(f"{name}: its {part} has {key}={theirs}, here it is {ours}: set {key}={theirs}")
    told = []
    theirs, ours = stored.model.image.resize, config.model.image.resize
    if theirs != ours and _reads_pixels(config, shared):
        told.append(f"{name} was trained with model.image.resize={theirs}, here it is {ours}")
    if config.network == IMAGE_TOKENIZER:
        return told
    if READ_TOKENS & set(shared):
        _check_vocabulary(config, folder, name)
    if READ_CODES & set(shared) and _codes_differ(config, stored):
        told.append(f"{name} was trained with the codes of another image tokenizer than data.codes={config.data.codes}")
    return told


def _reads_pixels(config: Config, shared: Collection[str]) -> bool:
    """Whether a part that is taken from a checkpoint has learned how images become squares."""
    return config.network != OPT or ("image_encoder" in shared and config.model.image.input == "patch")


def _keys(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key of a section with its value, but those that are free to change."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{key}.")
        elif field.name not in FREE:
            yield key, value


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _check_vocabulary(config: Config, folder: Path, option: str) -> None:
    """The same tokens in the same rows as in the checkpoint's vocabulary."""
    path = Path(config.model.text.vocab)
    ours, theirs = (place.read_text(encoding="utf-8").rstrip("\n").split("\n") for place in (path, folder / VOCAB))
    if ours == theirs:
        return
    row = next((row for row, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    which = (
        f"{len(ours)} tokens, not {len(theirs)}" if row is None else f"line {row + 1}: {ours[row]!r}, {theirs[row]!r}"
    )
    raise ConfigError(
        f"{option}: model.text.vocab={path} is not the vocabulary of {folder} ({which}), so that tokens would get "
        f"other tokens' weights: set model.text.vocab={folder / VOCAB}"
    )


def _codes_differ(config: Config, stored: Config) -> bool:
    """Whether both have an image tokenizer, and not the same; False if one of them is no longer there."""
    if not (config.data.codes and stored.data.codes):
        return False
    try:
        ours, theirs = (tokenizer_fingerprint(which.data.codes) for which in (config, stored))
    except UserError:
        return False
    return ours != theirs

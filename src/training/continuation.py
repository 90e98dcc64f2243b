"""What a run may take from a checkpoint: --resume continues the very run, train.init_from takes parts of a network.

Shapes do not show everything: with other numbers of heads, another vocabulary of equal size or another image tokenizer
the tensors still fit, and mean something else. What train.init_from may change is the vocabulary, the size of images
and the lengths of texts and audio: tokens' rows and tables of positions are converted.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from src.checkpoints.checkpoint import load_checkpoint_config, load_parts, parts_of, read_config
from src.checkpoints.files import ANSWERS, VOCAB, CheckpointError, Tensors
from src.checkpoints.places import locate
from src.config import OPT, Config, ConfigError
from src.data.answers import AnswerList
from src.data.image_codes import tokenizer_fingerprint
from src.data.pipeline import Loader
from src.data.tokenizer import Tokenizer
from src.errors import UserError
from src.training.new_lengths import Shape, convert_positions
from src.training.new_vocabulary import TOKEN_ROWS, NewVocabulary

# of model: paths (their content is compared), and what a run may change on its way
FREE = ("vocab", "answers", "init_from", "dropout", "ema_decay", "commitment", "revive_below")
KEPT = ("task", "seed", "optimizer.name", "optimizer.freeze", "optimizer.layer_decay")  # beside the network
SECTIONS = {  # of model, by the part that it describes
    "text_encoder": "text",
    "image_encoder": "image",
    "audio_encoder": "audio",
    "cross_encoder": "cross",
    "text_decoder": "text_decoder",
    "image_decoder": "image_decoder",
}
AUDIO_UNITS = {  # of model.audio, by its input: what a place of that stands for
    "fbank": ("sample_rate", "hop_ms", "window_ms", "mels", "stride"),
    "feature": ("feature_dim", "stride"),
    "wav2vec2": ("sample_rate",),
}
CHOOSES_PARTS = {
    f"objectives.{key}" for key in ("denoise_text.given", "denoise_image.given", "answer.head", "answer.given")
}
READ_CODES = {"image_decoder", "masked_code_head"}  # parts with a row for every image code


def check_resume(config: Config, folder: Path) -> None:
    """Raises ConfigError if the checkpoint that a run goes on from was trained with something that cannot change."""
    stored = load_checkpoint_config(folder)
    kept = {key: value for key, value in _leaves(stored.model, "model.") if key.split(".")[-1] not in FREE}
    kept |= {key: _value(stored, key) for key in KEPT}
    for key, theirs in kept.items():
        ours = _value(config, key)
        if theirs != ours:
            raise ConfigError(
                f"--resume: {key} is {ours!r}, but {theirs!r} in {folder}, and cannot change: set it back, or start a "
                "new run from these weights (train.init_from, another train.output)"
            )
    _check_vocabulary(config, folder)
    if not _same_answers(config, stored):
        raise ConfigError(
            f"--resume: model.answers={config.model.answers} is not the list of the run in {folder}: set model.answers="
            f"{folder / ANSWERS}"
        )
    if _codes_differ(config, stored):
        raise ConfigError(
            f"--resume: data.codes={config.data.codes} is another image tokenizer than that of the run in {folder}, "
            "whose codes the network has learned: name that one"
        )


def data_identity(loader: Loader) -> list[dict[str, Any]]:
    """What defines the order of samples beside the seed, as a checkpoint's state holds it: a row for each source.

    A source is known by the content of its shards: its folder may move.
    """
    sources = zip(loader.sources.datasets, loader.order.shares, strict=True)
    return [{"sha256": dataset.digest(), "share": share} for dataset, share in sources]


def resume_place(state: Mapping[str, Any], folder: Path, loader: Loader) -> dict[str, Any]:
    """Where a resumed run is in the order of samples: the arguments of Loader.batches.

    Args:
        state: of the checkpoint in ``folder``.

    Raises:
        ConfigError: the order is another one.
    """
    if "data" not in state:  # of a version whose epochs were cut to full steps
        size = load_checkpoint_config(folder).data.batch_size * loader.ranks
        epoch, step = divmod(state["step"], max(1, loader.order.size // size))
        return {"position": epoch * loader.order.size + step * size, "postponed": []}
    _check_data(state["data"], folder, loader)
    return {name: state[name] for name in ("position", "postponed")}


def _check_data(theirs: list[dict[str, Any]], folder: Path, loader: Loader) -> None:
    """The same sources in the same order, and as much of each."""
    ours, hint = data_identity(loader), "start a new run from these weights (train.init_from, another train.output)"
    if len(ours) != len(theirs):
        raise ConfigError(
            f"--resume: data.path and data.sources name {len(ours)} datasets, {len(theirs)} in {folder}, and the order "
            f"of samples cannot change: name those, or {hint}"
        )
    for place, (dataset, own, other) in enumerate(zip(loader.sources.datasets, ours, theirs, strict=True)):
        if own["sha256"] != other["sha256"]:
            raise ConfigError(
                f"--resume: split {dataset.split!r} of {dataset.folder} is not the data that the run in {folder} was "
                f"trained with, and the order of samples cannot change: name that, or {hint}"
            )
        if own["share"] != other["share"]:
            raise ConfigError(
                f"--resume: data.sources[{place}].weight gives {own['share']} samples in an epoch, {other['share']} in "
                f"{folder}, and the order of samples cannot change: set the weights back, or {hint}"
            )


def describe_changes(config: Config, folder: Path, state: Mapping[str, Any], ranks: int) -> str:
    """What differs from the configuration that a checkpoint was trained with, in one line; nothing if nothing does.

    Args:
        state: of the checkpoint in ``folder``.
    """
    changed = [f"{key}: {theirs} → {ours}" for key, theirs, ours in _changes(config, folder)]
    if state.get("ranks", ranks) != ranks:  # earlier versions did not store them
        changed.append(f"ranks: {state['ranks']} → {ranks}")
    return f"changed since {folder}: {', '.join(changed)}" if changed else ""


def refuse_objectives(config: Config, folder: Path) -> None:
    """Of a run whose optimiser's state does not fit: raises ConfigError if that is because its objectives changed."""
    changed = [f"{key}={ours}" for key, theirs, ours in _changes(config, folder) if _decides_parts(key, theirs, ours)]
    if changed:
        raise ConfigError(
            f"--resume: with {', '.join(changed)} other parts are trained than by the run in {folder}, and they cannot "
            "change: set it back, or start a new run from these weights (train.init_from, another train.output)"
        )


def _decides_parts(key: str, theirs: Any, ours: Any) -> bool:
    """Whether what is trained may differ by a setting that does."""
    return bool(theirs) != bool(ours) if key.startswith("objectives.weights.") else key in CHOOSES_PARTS


def _changes(config: Config, folder: Path) -> list[tuple[str, Any, Any]]:
    """The settings that differ from those of a checkpoint: key, the checkpoint's value and the new one, as written."""
    theirs, ours = (dict(_leaves(which, "")) for which in (read_config(folder), config))
    return [(key, _shown(theirs[key]), _shown(ours[key])) for key in ours if theirs[key] != ours[key]]


def _shown(value: Any) -> Any:
    """A setting as it is written on a command line; sources as mappings."""
    if isinstance(value, tuple):
        return [dataclasses.asdict(item) if dataclasses.is_dataclass(item) else item for item in value]
    return "''" if value == "" else value


def start_from(model: nn.Cell, config: Config) -> list[str]:
    """Sets the parts that a network shares with the checkpoint of train.init_from.

    Returns:
        What is to be told.

    Raises:
        CheckpointError, ConfigError: there is no checkpoint, it shares nothing, or a shared part cannot be taken.
    """
    folder = locate(config.train.init_from)
    parts = {name.partition(".")[0] for name, _ in model.parameters_and_names()}
    told = check_init(config, folder, parts & parts_of(folder))

    def fit(arrays: Tensors, shapes: dict[str, Shape]) -> Tensors:
        arrays, changes = fit_tensors(arrays, shapes, config, folder)
        told.extend(changes)
        return arrays

    new, left = load_parts(model, folder, fit)
    return [*told, f"weights of {folder}{_listed('; new: ', new)}{_listed('; not used: ', left)}"]


def check_init(config: Config, folder: Path, shared: Collection[str]) -> list[str]:
    """Compares what shapes do not show of the parts that a network shares with the checkpoint of train.init_from.

    Returns:
        What is to be told.

    Raises:
        ConfigError: other heads, another order of norms, another kind of input, audio in other units, other answers.
    """
    name, stored = f"train.init_from={config.train.init_from}", load_checkpoint_config(folder)
    found = SECTIONS if config.network == OPT else dict.fromkeys(shared, "image_tokenizer")
    for part in sorted(shared):
        section = found.get(part)
        for setting in _meanings(config, section) if section else ():
            key = f"model.{section}.{setting}"
            theirs, ours = _value(stored, key), _value(config, key)
            if theirs != ours:
                raise ConfigError(f"{name}: its {part} has {key}={theirs}, here it is {ours}: set {key}={theirs}")
    if "answer_head" in shared and not _same_answers(config, stored):
        raise ConfigError(f"{name}: its answer_head knows other answers: set model.answers={folder / ANSWERS}")
    told = []
    theirs, ours = stored.model.image.resize, config.model.image.resize
    if theirs != ours and _reads_pixels(config, shared):
        told.append(f"{name} was trained with model.image.resize={theirs}, here it is {ours}")
    if READ_CODES & set(shared) and _codes_differ(config, stored):
        told.append(f"{name} was trained with the codes of another image tokenizer than data.codes={config.data.codes}")
    return told


def _reads_pixels(config: Config, shared: Collection[str]) -> bool:
    """Whether a part that is taken from a checkpoint has learned how images become squares."""
    return config.network != OPT or ("image_encoder" in shared and config.model.image.input == "patch")


def _meanings(config: Config, section: str) -> tuple[str, ...]:
    """Settings of a section of the model that shapes do not show, or say less clearly."""
    if section == "audio":
        return ("input", *AUDIO_UNITS[config.model.audio.input], "heads", "norm")
    return ("input", "heads", "norm") if section == "image" else ("heads", "norm")


def fit_tensors(
    arrays: Tensors, shapes: Mapping[str, Shape], config: Config, folder: Path
) -> tuple[Tensors, list[str]]:
    """Converts what another vocabulary, other images and other lengths change in a checkpoint's tensors.

    Args:
        arrays: tensors of the checkpoint in ``folder`` by name.
        shapes: of the network's parameters.

    Returns:
        The tensors, of which those that do not fit for another reason are as they were, and what is to be told.

    Raises:
        CheckpointError: the checkpoint's vocabulary is not that of its tensors.
    """
    stored = load_checkpoint_config(folder)
    converted, told = convert_positions(arrays, shapes, config.model, stored.model, config.seed)
    tables = sorted(TOKEN_ROWS.keys() & arrays.keys())
    ours, theirs = (Tokenizer(which.model.text.vocab).vocab if tables else [] for which in (config, stored))
    if ours == theirs:
        return arrays.change(converted), told
    vocabulary = NewVocabulary(ours, theirs)
    for number, name in enumerate(tables):
        if len(arrays[name]) != len(theirs):
            raise CheckpointError(
                f"{folder / VOCAB} has {len(theirs)} tokens, but tensor {name} {len(arrays[name])} rows: they are not "
                "of the same run; put the vocabulary there that the weights were trained with"
            )
        if arrays[name].shape[1:] == shapes[name][1:]:
            converted[name] = vocabulary.convert(arrays[name], TOKEN_ROWS[name], config.seed + number)
    title = f"{config.model.text.vocab} with {len(ours)} tokens, instead of the {len(theirs)} of {folder}"
    return arrays.change(converted), [f"{title}:\n{vocabulary}", *told]


def _listed(title: str, names: list[str]) -> str:
    return title + ", ".join(names) if names else ""


def _leaves(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key of a section with its value."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _check_vocabulary(config: Config, folder: Path) -> None:
    """The same tokens in the same rows as in the checkpoint's vocabulary."""
    path = Path(config.model.text.vocab)
    ours, theirs = (Tokenizer(place).vocab for place in (path, folder / VOCAB))
    if ours == theirs:
        return
    row = next((row for row, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    which = (
        f"{len(ours)} tokens, not {len(theirs)}" if row is None else f"line {row + 1}: {ours[row]!r}, {theirs[row]!r}"
    )
    raise ConfigError(
        f"--resume: model.text.vocab={path} is not the vocabulary of {folder} ({which}), so that tokens would get "
        f"other tokens' weights: set model.text.vocab={folder / VOCAB}"
    )


def _same_answers(config: Config, stored: Config) -> bool:
    """Whether both classify into the same answers in the same order, or both into none."""
    ours, theirs = (which.model.answers and AnswerList(which.model.answers).answers for which in (config, stored))
    return ours == theirs


def _codes_differ(config: Config, stored: Config) -> bool:
    """Whether both have an image tokenizer, and not the same; False if one of them is no longer there."""
    if not (config.data.codes and stored.data.codes):
        return False
    try:
        ours, theirs = (tokenizer_fingerprint(which.data.codes) for which in (config, stored))
    except UserError:
        return False
    return ours != theirs

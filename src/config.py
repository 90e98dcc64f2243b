"""Typed configuration: frozen dataclasses filled from YAML files and ``key=value`` overrides.

A file may name a parent, or a list of them, with ``base:`` (paths relative to the file); its own keys win, and a later
parent's those of an earlier one. Every error is one line that names the key, the value and the file it came from.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from src.errors import UserError

TASKS = ("pretrain", "retrieval", "caption", "image_tokenizer")
# fields of ObjectivesConfig that are loss weights, in the order in which the losses are logged
OBJECTIVES = ("contrastive", "mlm", "mvm_code", "mvm_feature", "mam_feature", "mam_contrastive", "matching")
OBJECTIVES += ("denoise_text", "denoise_image")


class ConfigError(UserError):
    """A configuration that cannot be used; its message is one line meant for the user."""


class FieldError(ConfigError):
    """A field whose value contradicts another; the loader adds the full key and the file."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise FieldError(name, message)


def _check_transformer(config: Any) -> None:
    for name in ("width", "layers", "heads", "ffn"):
        _require(getattr(config, name) > 0, name, "must be positive")
    _require(config.width % config.heads == 0, "heads", f"must divide width={config.width}")
    _require(0 <= config.dropout < 1, "dropout", "must be in [0, 1)")


@dataclass(frozen=True)
class RuntimeConfig:
    device: Literal["CPU", "GPU", "Ascend"] = "CPU"  # where the graphs run
    mode: Literal["graph", "pynative"] = "graph"  # pynative is for debugging: about twice as slow
    precision: Literal["fp32", "fp16"] = "fp32"  # fp16: mixed precision with a dynamic loss scale
    distributed: bool = False  # data parallel over the ranks that msrun started
    graph_kernel: bool = False  # fuse elementwise chains; on a CPU it needs g++, decorator and attrs


@dataclass(frozen=True)
class TextEncoderConfig:
    vocab: str = "config/vocab/demo.txt"  # WordPiece vocabulary, one token a line
    max_len: int = 32  # T: tokens with [CLS] and [SEP]; longer text is cut
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"  # post: the layer order of BERT
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)
        _require(self.max_len >= 4, "max_len", "must be at least 4: [CLS], [SEP] and two tokens")


@dataclass(frozen=True)
class ImageEncoderConfig:
    size: int = 64  # side of the square picture in pixels
    patch: int = 8  # side of a patch in pixels; P = (size / patch)²
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)
        _require(self.patch > 0 and self.size % self.patch == 0, "patch", f"must divide size={self.size}")


@dataclass(frozen=True)
class AudioEncoderConfig:
    sample_rate: int = 16000  # Hz; other rates are resampled
    mels: int = 64  # mel bands of a frame
    hop_ms: int = 20  # distance of two frames
    window_ms: int = 25  # length of the analysis window
    max_frames: int = 192  # longer sound is cut
    stride: int = 4  # frames joined into one token; F = max_frames / stride
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)
        for name in ("sample_rate", "mels", "hop_ms", "window_ms", "max_frames", "stride"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(self.max_frames % self.stride == 0, "stride", f"must divide max_frames={self.max_frames}")


@dataclass(frozen=True)
class CrossEncoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True)
class TextDecoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True)
class ImageTokenizerConfig:
    size: int = 64  # side of the square picture in pixels
    side: int = 8  # codes along a side; C = side²
    codes: int = 512  # K: entries of the codebook
    code_dim: int = 32  # width of a codebook vector
    width: int = 128  # of encoder and decoder, which mirror each other
    layers: int = 2
    heads: int = 8
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    ema_decay: float = 0.99  # share of the past in the codebook's moving counts and sums
    commitment: float = 0.25  # β: weight of the commitment loss
    revive_below: float = 0.1  # codes used less than this share of the mean use are replaced; 0: never

    def __post_init__(self) -> None:
        _check_transformer(self)
        _require(self.side > 0 and self.size % self.side == 0, "side", f"must divide size={self.size}")
        _require(self.codes > 1, "codes", "must be at least 2")
        _require(self.code_dim > 0, "code_dim", "must be positive")
        _require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1)")
        _require(self.commitment >= 0, "commitment", "must not be negative")
        _require(0 <= self.revive_below < 1, "revive_below", "must be in [0, 1)")


@dataclass(frozen=True)
class ImageDecoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True)
class ModelConfig:
    embed_dim: int = 128  # E: width of the shared contrastive space
    masked_features: bool = False  # heads that predict hidden patches and frames, for mvm_feature and mam_*
    image_codes: bool = False  # image decoder and a head for hidden patches' codes, for denoise_image and mvm_code
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    cross: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    text_decoder: TextDecoderConfig = field(default_factory=TextDecoderConfig)
    image_decoder: ImageDecoderConfig = field(default_factory=ImageDecoderConfig)  # built with image_codes
    tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)  # of pictures, a model of its own

    def __post_init__(self) -> None:
        _require(self.embed_dim > 0, "embed_dim", "must be positive")


@dataclass(frozen=True)
class DataConfig:
    path: str = ""  # folder of shards with dataset.json
    codes: str = ""  # run or checkpoint folder of the image tokenizer whose codes are read; empty: none
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 128  # B: samples a step and rank
    workers: int = 1  # threads that decode samples
    prefetch: int = 4  # batches made ahead of the step

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "prefetch"):
            _require(getattr(self, name) > 0, name, "must be positive")


@dataclass(frozen=True)
class ObjectivesConfig:
    contrastive: float = 1.0  # weights; 0 removes the computation as well
    mlm: float = 0.0
    mvm_code: float = 0.0  # codes of hidden patches; needs data.codes
    mvm_feature: float = 0.0  # clean features of hidden patches
    mam_feature: float = 0.0  # clean features of hidden frames
    mam_contrastive: float = 0.0  # which hidden frame is which
    matching: float = 0.0
    denoise_text: float = 0.0
    denoise_image: float = 0.0  # needs data.codes
    mask_ratio: float = 0.15  # share of the words, patches and frames that the token level hides
    mam_span: int = 3  # sound tokens hidden in a row
    mam_temperature: float = 0.1  # of the cosines that tell frames apart
    token_fraction: float = 1.0  # share of the batch that the token level reads
    modality_fraction: float = 1.0  # ... each half of the modality level: writing, drawing
    sample_fraction: float = 1.0  # ... the sample level (matching)
    denoise_given: tuple[str, ...] = ("image+audio", "image", "audio")  # what is left when the text is absent
    draw_given: tuple[str, ...] = ("text+audio", "text", "audio")  # ... when the picture is absent
    draw_drop: float = 0.1  # share of the drawing rows that are given nothing, for classifier-free guidance
    label_smoothing: float = 0.0  # of the denoised text

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            _require(getattr(self, name) >= 0, name, "a weight must not be negative")
        for name in ("token_fraction", "modality_fraction", "sample_fraction"):
            _require(0 < getattr(self, name) <= 1, name, "must be in (0, 1]")
        _require(0 < self.mask_ratio < 1, "mask_ratio", "must be in (0, 1)")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)")
        _require(self.mam_span > 0, "mam_span", "must be positive")
        _require(self.mam_temperature > 0, "mam_temperature", "must be positive")
        _require(0 <= self.draw_drop < 1, "draw_drop", "must be in [0, 1)")
        for name, other in (("denoise_given", "image"), ("draw_given", "text")):
            choices, given = {f"{other}+audio", other, "audio"}, getattr(self, name)
            _require(bool(given) and set(given) <= choices, name, f"must be a list out of {', '.join(sorted(choices))}")


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"  # muon: layers' matrices by Muon, the rest by AdamW
    lr: float = 1.5e-3  # peak learning rate of AdamW
    muon_lr: float = 0.02  # ... of Muon
    muon_momentum: float = 0.95
    min_lr: float = 1e-6  # where the cosine ends
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01  # never on gains, biases and embeddings' positions (any 1-d parameter)
    clip_norm: float = 1.0  # global norm of the gradients

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", "must be positive")
        _require(0 <= self.min_lr <= self.lr, "min_lr", f"must be between 0 and lr={self.lr}")
        _require(self.warmup_steps >= 0, "warmup_steps", "must not be negative")
        _require(self.muon_lr > 0, "muon_lr", "must be positive")
        for name in ("beta1", "beta2", "muon_momentum"):
            _require(0 <= getattr(self, name) < 1, name, "must be in [0, 1)")
        for name in ("eps", "clip_norm"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(self.weight_decay >= 0, "weight_decay", "must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    output: str = "runs/run"  # run folder
    init_from: str = ""  # checkpoint folder whose weights the run starts from
    steps: int = 1000
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0  # 0: only at the end
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "keep_checkpoints"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(bool(self.output), "output", "must name a folder")
        _require(self.eval_every >= 0, "eval_every", "must not be negative")


@dataclass(frozen=True)
class EvalConfig:
    split: str = "test"
    batch_size: int = 100
    gallery: int = 1000  # items of the retrieval gallery, the first of the split; 0: the whole split
    captions: int = 1000  # pictures to caption; 0: none
    probe: int = 1000  # samples on which masked modelling and matching are measured; 0: all
    draw: int = 0  # texts and sounds to draw pictures of; 0: none
    draw_samples: int = 1  # pictures for each, of which the one that suits it best is kept
    draw_temperature: float = 0.7  # 0: always the likeliest code
    draw_top_k: int = 0  # only the k likeliest codes are drawn; 0: all
    draw_guidance: float = 0.0  # w of classifier-free guidance; 0: none
    rerank: int = 16  # best k by embedding that are scored again; 0: embeddings only
    rerank_embedding: float = 1.0  # weights of the three scores in the second ranking
    rerank_matching: float = 0.0
    rerank_likelihood: float = 0.0

    def __post_init__(self) -> None:
        _require(self.batch_size > 0, "batch_size", "must be positive")
        _require(self.draw_samples > 0, "draw_samples", "must be positive")
        counts = ("gallery", "captions", "probe", "draw", "rerank")
        for name in (*counts, "draw_temperature", "draw_top_k", "draw_guidance"):
            _require(getattr(self, name) >= 0, name, "must not be negative")


@dataclass(frozen=True)
class Config:
    task: str = "pretrain"
    name: str = "opt"
    seed: int = 1
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", "must not be negative")
        _require(self.task in TASKS, "task", f"must be one of {', '.join(TASKS)}")
        weights = self.objectives
        _require(any(getattr(weights, name) > 0 for name in OBJECTIVES), "objectives", "one weight must be positive")
        for name in ("mvm_code", "mvm_feature", "mam_feature", "mam_contrastive"):
            wanted = getattr(weights, name) > 0
            _require(self.model.masked_features or not wanted, f"objectives.{name}", "needs model.masked_features=true")
        _require(self.eval.draw == 0 or self.model.image_codes, "eval.draw", "needs model.image_codes=true")
        _require(self.eval.draw == 0 or bool(self.data.codes), "eval.draw", "needs data.codes, an image tokenizer")
        for name in ("mvm_code", "denoise_image"):
            wanted = getattr(weights, name) > 0
            _require(self.model.image_codes or not wanted, f"objectives.{name}", "needs model.image_codes=true")
            _require(bool(self.data.codes) or not wanted, f"objectives.{name}", "needs data.codes, an image tokenizer")
        patches, side = self.model.image.size // self.model.image.patch, self.model.tokenizer.side
        _require(
            weights.mvm_code == 0 or patches == side,
            "objectives.mvm_code",
            f"needs as many codes as patches: model.tokenizer.side={side}, a picture has {patches} patches on a side",
        )
        _require(
            self.task != "caption" or weights.denoise_text > 0, "objectives.denoise_text", "a caption task needs it"
        )
        _require(
            self.optimizer.warmup_steps < self.train.steps,
            "optimizer.warmup_steps",
            f"must be below train.steps={self.train.steps}",
        )
        _require(
            self.runtime.precision == "fp32" or self.runtime.device != "CPU",
            "runtime.precision",
            "fp16 is slower than fp32 on a CPU; leave fp32",
        )


OVERRIDE = "command line"


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads a YAML file with its parents, applies ``key=value`` overrides, checks and returns the configuration.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` strings; the value is read as YAML.

    Raises:
        ConfigError: unknown key, wrong type, impossible combination, or a file that cannot be read.
    """
    path = Path(path)
    values, origins = _flatten(_read(path, ()))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not key=value (command line)")
        values[key] = _parse_yaml(text, f"{key}={text} (command line)")
        origins[key] = OVERRIDE
    return _build(Config, values, origins)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML text that :func:`load_config` reads back to an equal object."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {where}: {str(error).splitlines()[0]}") from None


def _read(path: Path, children: tuple[Path, ...]) -> list[tuple[Path, dict]]:
    """The file's mapping behind those of its parents, the root first."""
    if path.resolve() in children:
        raise ConfigError(f"base: of {path} leads back to the file itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config {path}: {getattr(error, 'strerror', None) or error}") from None
    mapping = _parse_yaml(text, str(path)) or {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold key: value pairs")
    bases = mapping.pop("base", None) or []
    parents: list[tuple[Path, dict]] = []
    for base in bases if isinstance(bases, list) else [bases]:
        parents += _read(path.parent / str(base), (*children, path.resolve()))
    return [*parents, (path, mapping)]


def _flatten(layers: list[tuple[Path, dict]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges the layers into dotted keys; the second dict says which file each key came from."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def visit(prefix: str, mapping: dict, path: Path) -> None:
        for name, value in mapping.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict):
                visit(f"{key}.", value, path)
            else:
                values[key], origins[key] = value, str(path)

    for path, mapping in layers:
        visit("", mapping, path)
    return values, origins


def _keys(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a config class with its type."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        nested = dataclasses.is_dataclass(kind)
        found.update(_keys(kind, f"{prefix}{name}.") if nested else {f"{prefix}{name}": kind})
    return found


def _build(cls: type, values: dict[str, Any], origins: dict[str, str]) -> Any:
    known = _keys(cls)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or _by_last_name(key, known)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown key {key}={value!r} in {origins[key]}{hint}")
        values[key] = _coerce(value, known[key], f"{key}={value!r} in {origins[key]}")
    return _assemble(cls, values, origins, "")


def _by_last_name(key: str, known: dict[str, Any]) -> list[str]:
    last = {name.rpartition(".")[2]: name for name in known}
    return [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=1)]


def _assemble(cls: type, values: dict[str, Any], origins: dict[str, str], prefix: str) -> Any:
    arguments = {}
    for name, kind in typing.get_type_hints(cls).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            arguments[name] = _assemble(kind, values, origins, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    try:
        return cls(**arguments)
    except FieldError as error:
        key = f"{prefix}{error.name}"
        shown = f"{key}={values[key]!r}" if key in values else key
        raise ConfigError(f"{shown} in {origins.get(key, 'the defaults')}: {error.message}") from None


def _coerce(value: Any, kind: Any, where: str) -> Any:
    """The value as ``kind``, or a ConfigError; an int passes as a float, ``1e-3`` (a YAML string) too."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{where}: must be one of {', '.join(map(str, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: must be a list")
        return tuple(_coerce(entry, item, where) for entry in value)
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is not None:
            if not math.isfinite(number):
                raise ConfigError(f"{where}: must be finite")
            return number
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: must be {_type_name(kind)}, not {type(value).__name__}")


def _type_name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return str(kind) if isinstance(kind, types.UnionType) else names[kind]

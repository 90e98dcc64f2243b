"""Encoders that start from BERT, ViT or wav2vec 2.0: safetensors with the names of Hugging Face.

The rename tables are in :mod:`src.checkpoints.layouts`. Nothing is guessed: a tensor of another shape is an error, and
so is a config.json that contradicts the configuration where shapes do not show it, or another preparation of texts and
waveforms. Another normalisation of pixels becomes part of the projection.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from safetensors import SafetensorError, safe_open

from src.checkpoints.files import unreadable
from src.checkpoints.layouts import LAYOUTS, Convert, Layout
from src.config import ModelConfig
from src.errors import UserError
from src.files import is_lfs_pointer

WEIGHTS, INDEX, SETTINGS, VOCAB = "model.safetensors", "model.safetensors.index.json", "config.json", "vocab.txt"
PROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer_config.json"  # what the network's inputs went through
CASED = 0.01  # share of tokens with capitals from which a vocabulary is cased


class PretrainedError(UserError):
    """Weights that an encoder cannot start from; the message is one line that names file and tensor."""


@dataclass
class Report:
    """What became of the tensors: our names taken and missing (which keep new weights), their names unused."""

    title: str
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.title]
        for name, names in (("taken", self.taken), ("missing, new", self.missing), ("unused", self.unused)):
            lines.append(f"  {name}: {len(names)}")
            lines += [f"    {shown}" for shown in _folded(names)]
        return "\n".join(lines)


def _folded(names: list[str]) -> list[str]:
    """Names of which those that differ in a layer's number are one line."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [name if count == 1 else f"{name} × {count}" for name, count in counts.items()]


class TensorFiles:
    """The tensors of a safetensors file, of a folder with one, or of a folder with several and their index.

    Args:
        path: of the file or folder; ``key`` is the setting that names it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.shown = f"{key}={path}"
        self.folder = path if path.is_dir() else path.parent
        self.files: dict[str, Any] = {}
        for file in self._find(path):
            try:
                opened = safe_open(file, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise PretrainedError(f"{self.shown}: cannot read {file}: {unreadable(file, error)}") from None
            self.files |= dict.fromkeys(opened.keys(), opened)

    def _find(self, path: Path) -> list[Path]:
        if path.is_file():
            if path.name.endswith(".index.json"):
                return self._listed(path)
            if path.suffix == ".bin" and not is_lfs_pointer(path):
                raise PretrainedError(
                    f"{self.shown} is a .bin file, which can run code when read: save it as {WEIGHTS}"
                )
            return [path]
        if (path / WEIGHTS).is_file():
            return [path / WEIGHTS]
        if (path / INDEX).is_file():
            return self._listed(path / INDEX)
        if any(path.glob("*.bin")):
            raise PretrainedError(
                f"{self.shown} holds only a .bin file, which can run code when read: save it as {WEIGHTS}"
            )
        raise PretrainedError(f"{self.shown}: no such safetensors file, nor a folder with {WEIGHTS}")

    def _listed(self, index: Path) -> list[Path]:
        """The files that an index names."""
        found = _read_json(index).get("weight_map")
        if not isinstance(found, dict):
            raise PretrainedError(f"{self.shown}: {index} has no weight_map: it is no index of safetensors files")
        return [index.parent / name for name in sorted(set(found.values()))]

    def read(self, name: str) -> np.ndarray:
        return self.files[name].get_tensor(name).astype(np.float32)  # bfloat16 is a type that MindSpore gives to numpy

    def config(self, name: str = SETTINGS) -> dict[str, Any]:
        """A JSON file beside the weights; empty where there is none."""
        path = self.folder / name
        return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"cannot read {path}: {unreadable(path, error)}") from None
    if not isinstance(found, dict):
        raise PretrainedError(f"cannot read {path}: it holds no JSON object")
    return found


def init_encoders(model: nn.Cell, config: ModelConfig) -> Iterator[Report]:
    """Sets the encoders whose section has ``init_from``, and says of each what was taken.

    Raises:
        PretrainedError: no such file, another network's, or a tensor that does not fit.
    """
    parts = dict(model.name_cells())
    for section in LAYOUTS:
        path, encoder = getattr(config, section).init_from, parts.get(f"{section}_encoder")
        if path and encoder is not None:  # the image tokenizer has none
            yield init_encoder(encoder, config, section)


def init_encoder(encoder: nn.Cell, config: ModelConfig, section: str) -> Report:
    """Sets one encoder from ``config.<section>.init_from``; all of it is checked before anything is set."""
    part, layout, key = getattr(config, section), LAYOUTS[section], f"model.{section}"
    files = TensorFiles(Path(part.init_from), f"{key}.init_from")
    parameters = dict(encoder.parameters_and_names())
    wanted = {ours: layout.sources(ours) for ours in parameters}
    names = {layout.plain(name): name for name in files.files}
    if not any(source in names for sources, _ in wanted.values() for source in sources):
        example = layout.sources("transformer.blocks.0.attention.query.weight")[0][0]
        raise PretrainedError(f"{files.shown} holds no tensor of a {layout.prefix}, as {example} would be one")
    _check_settings(files, layout, part, key)
    if section == "text":
        _check_vocabulary(files, Path(part.vocab))
    if section == "audio":
        _check_waveform(files)
    report, used, arrays = Report(files.shown), set(), {}
    for ours, (sources, convert) in wanted.items():
        if not sources or not all(name in names for name in sources):
            report.missing.append(ours)
            continue
        theirs = [names[name] for name in sources]
        arrays[ours] = _converted(files, theirs, convert, tuple(parameters[ours].shape), f"{key}'s {ours}")
        report.taken.append(ours)
        used |= set(theirs)
    if section == "image":
        _fold_pixels(files, arrays)
    report.unused = sorted(files.files.keys() - used)
    for ours, array in arrays.items():
        parameters[ours].set_data(Tensor(np.ascontiguousarray(array, np.float32), parameters[ours].dtype))
    return report


def _converted(files: TensorFiles, names: list[str], convert: Convert, shape: tuple[int, ...], ours: str) -> np.ndarray:
    arrays = [files.read(name) for name in names]
    try:
        array = convert(arrays, shape)
    except ValueError:  # numpy's: axes that are not there, or lengths that cannot be added
        array = arrays[0]
    if array.shape != shape:
        found = " and ".join(f"{name} {list(array.shape)}" for name, array in zip(names, arrays, strict=True))
        raise PretrainedError(f"{files.shown}: tensor {found} does not fit {ours} {list(shape)}")
    return array


def _check_settings(files: TensorFiles, layout: Layout, part: Any, key: str) -> None:
    """What the shapes do not show, as far as a config.json says it."""
    found = files.config()
    for name, ours in layout.settings.items():
        if name in found and found[name] != getattr(part, ours):
            raise PretrainedError(
                f"{files.shown}: its {SETTINGS} says {name}={found[name]}: set {key}.{ours}={found[name]}"
            )
    for name, value in layout.fixed.items():
        if name in found and found[name] != value:
            raise PretrainedError(f"{files.shown}: its {SETTINGS} says {name}={found[name]}, only {value} is supported")


def _check_vocabulary(files: TensorFiles, vocab: Path) -> None:
    """The same lines in the same places, if the weights lie beside a vocabulary; and none that is never read."""
    path, tokens = files.folder / VOCAB, vocab.read_bytes().split()
    if path.is_file() and path.read_bytes().split() != tokens:
        raise PretrainedError(f"{files.shown}: its {VOCAB} is not model.text.vocab={vocab}: take that of the weights")
    cased = [token for token in tokens if token.lower() != token and token[:1] not in b"[<"]
    # the flag alone says little: bert-base-chinese has it too, and no capitals
    if not files.config(TOKENIZER).get("do_lower_case") and len(cased) > CASED * len(tokens):
        raise PretrainedError(
            f"{files.shown}: its vocabulary is cased ({len(cased)} tokens with capitals; {TOKENIZER}: "
            "do_lower_case=false), but texts are lowered before they are read: take an uncased BERT"
        )


def _check_waveform(files: TensorFiles) -> None:
    """Waveforms are read at mean 0 and variance 1."""
    if files.config(PROCESSOR).get("do_normalize", True) is not True:
        raise PretrainedError(
            f"{files.shown}: its {PROCESSOR} says do_normalize=false, but waveforms are read at mean 0 and variance 1: "
            "take weights that were trained so"
        )


def _fold_pixels(files: TensorFiles, arrays: dict[str, np.ndarray]) -> None:
    """Makes the projection read pixels in [−1, 1], whatever mean and deviation its network was trained with.

    With x in [0, 1] theirs is W·(x − m)/s + b, and ours reads y = 2x − 1: W/(2s)·y + b + W·(½ − m)/s, by colour.
    """
    (mean, deviation), (weight, bias) = _normalisation(files), ("project.weight", "project.bias")
    if not {weight, bias} <= arrays.keys() or (np.all(mean == 0.5) and np.all(deviation == 0.5)):
        return
    theirs, pixels = arrays[weight].astype(np.float64), arrays[weight].shape[1] // 3
    arrays[weight] = theirs / np.tile(2 * deviation, pixels)  # a column is one colour of a pixel
    arrays[bias] = arrays[bias] + theirs @ np.tile((0.5 - mean) / deviation, pixels)


def _normalisation(files: TensorFiles) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of pixels in [0, 1] that an image network was trained with, [3] each."""
    found = files.config(PROCESSOR)
    if found.get("do_normalize", True):
        mean, deviation = (np.array(found.get(f"image_{name}", [0.5] * 3), np.float64) for name in ("mean", "std"))
    else:
        mean, deviation = np.zeros(3), np.ones(3)
    to_one = found.get("do_rescale", True) and abs(255 * found.get("rescale_factor", 1 / 255) - 1) < 1e-3
    if not to_one or mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all():
        raise PretrainedError(
            f"{files.shown}: its {PROCESSOR} does not scale pixels to 0 … 1, with a mean and a deviation of each "
            "colour: take weights that were trained so"
        )
    return mean, deviation

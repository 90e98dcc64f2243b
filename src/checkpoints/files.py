"""The files of a checkpoint folder: where they are, what arrays they hold, and how arrays become parameters."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from src.config.paths import path_setting
from src.errors import UserError
from src.files import ROOT, is_lfs_pointer

CONFIG, VOCAB, MODEL, EMA, OPTIMIZER, STATE, RERANKING, OUTLIERS, TOKENIZER = (
    "config.yaml",
    "vocab.txt",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "reranking.yaml",
    "outliers.safetensors",
    "tokenizer",  # folder of the image tokenizer whose codes the model was trained with
)
REPORT = "export.json"  # of a folder of exported graphs, which is no checkpoint
BUNDLED = "pretrained"  # folder of the repository


class CheckpointError(UserError):
    """A checkpoint that cannot be used; its message is one line that names the file or tensor."""


def weights_file(ema: bool) -> str:
    """The file of a checkpoint folder that holds its weights, or with ``ema`` their moving average."""
    return EMA if ema else MODEL


def locate(path: str | Path, ema: bool = False) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the latest of a run folder.

    ``opt_demo`` and ``pretrained/opt_demo`` mean the repository's own where the current folder has no such folder.

    Args:
        ema: it must hold the average of its weights.

    Raises:
        CheckpointError: there is none, or none with an average.
    """
    folder = _locate(Path(path))
    if ema and not (folder / EMA).is_file():
        raise CheckpointError(f"--ema: {folder} has no {EMA}, which runs with train.ema_decay write: leave out --ema")
    return folder


def _locate(path: Path) -> Path:
    if (path / MODEL).is_file():
        return path
    latest = pointed(path / "checkpoints" / "latest")
    if latest is not None and (latest / MODEL).is_file():
        return latest
    bundled = ROOT / BUNDLED / path.name
    if str(path.parent) in (".", BUNDLED) and not path.exists() and (bundled / MODEL).is_file():
        return bundled
    if (path / REPORT).is_file():
        raise CheckpointError(f"{path} holds exported graphs: name the run or checkpoint folder they were made from")
    raise CheckpointError(f"no checkpoint in {path}: expected {MODEL} or a run folder with checkpoints/latest")


def own_files(folder: Path) -> list[str]:
    """Settings that point at what a checkpoint carries: its vocabulary and, if it has one, its image tokenizer."""
    settings = [path_setting("model.text.vocab", folder / VOCAB)]
    if (folder / TOKENIZER / MODEL).is_file():
        settings.append(path_setting("data.codes", folder / TOKENIZER))
    return settings


def pointed(pointer: Path) -> Path | None:
    """The folder that ``latest`` or ``best`` names, if there is such a pointer."""
    if not pointer.is_file():
        return None
    return pointer.parent / pointer.read_text(encoding="utf-8", errors="replace").strip()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {unreadable(path, error)}") from None


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, without reading the arrays."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {unreadable(path, error)}") from None


def unreadable(path: Path, error: Exception) -> str:
    """Why a file of tensors or JSON cannot be read, in words of a user's."""
    if path.is_file() and is_lfs_pointer(path):
        return "it is a Git LFS pointer, not the content: run git lfs pull where it was cloned"
    if isinstance(error, SafetensorError):
        return f"it is no safetensors file, or cut short ({str(error).splitlines()[0]})"
    return str(error).splitlines()[0]


def set_parameters(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Copies arrays into the parameters of the same names, or raises a CheckpointError and changes nothing."""
    require_fit(parameters, arrays, path)
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def require_fit(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises a CheckpointError if arrays are not those of the parameters, by name and shape."""
    for name in parameters.keys() ^ arrays.keys():
        problem = "is not in" if name in parameters else "is not in the model but in"
        raise CheckpointError(f"tensor {name} {problem} {path}: another model wrote it")
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != arrays[name].shape:
            raise CheckpointError(
                f"tensor {name} of {path} is {list(arrays[name].shape)}, the model's is {list(parameter.shape)}"
            )


def results_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go: its run folder, or for a bundled one, which is left as it is, under runs/."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path("runs") / checkpoint.name

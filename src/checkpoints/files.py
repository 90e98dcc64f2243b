"""The files of a checkpoint folder: where they are, what arrays they hold, and how arrays become parameters."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from src.config.paths import path_setting
from src.errors import UserError
from src.files import is_lfs_pointer

CONFIG, VOCAB, MODEL, OPTIMIZER, STATE, RERANKING, TOKENIZER = (
    "config.yaml",
    "vocab.txt",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "reranking.yaml",
    "tokenizer",  # folder of the image tokenizer whose codes the model was trained with
)


class CheckpointError(UserError):
    """A checkpoint that cannot be used; its message is one line that names the file or tensor."""


def locate(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the latest of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / MODEL).is_file():
        return path
    latest = pointed(path / "checkpoints" / "latest")
    if latest is not None and (latest / MODEL).is_file():
        return latest
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


class TensorFile(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file by name, each read when it is asked for: a rank may keep but few of them.

    Raises:
        CheckpointError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {unreadable(path, error)}") from None
        self.names = list(self.file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, without reading the arrays."""
    return TensorFile(path).names


def unreadable(path: Path, error: Exception) -> str:
    """Why a file of tensors or JSON cannot be read, in words of a user's."""
    if path.is_file() and is_lfs_pointer(path):
        return "it is a Git LFS pointer, not the content: run git lfs pull where it was cloned"
    if isinstance(error, SafetensorError):
        return f"it is no safetensors file, or cut short ({str(error).splitlines()[0]})"
    return str(error).splitlines()[0]


def check_shapes(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises a CheckpointError unless the arrays of a file have these names and shapes."""
    for name in shapes.keys() ^ arrays.keys():
        problem = "is not in" if name in shapes else "is not in the model but in"
        raise CheckpointError(f"tensor {name} {problem} {path}: another model wrote it")
    for name, shape in shapes.items():
        found = arrays[name].shape
        if shape != found:
            raise CheckpointError(f"tensor {name} of {path} is {list(found)}, the model's is {list(shape)}")


def set_parameters(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Copies arrays into the parameters of the same names, or raises a CheckpointError and changes nothing."""
    check_shapes({name: tuple(parameter.shape) for name, parameter in parameters.items()}, arrays, path)
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def results_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go: its run folder, or for a bundled one, which is left as it is, under runs/."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path("runs") / checkpoint.name

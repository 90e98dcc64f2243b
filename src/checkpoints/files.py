"""The files of a checkpoint folder: where they are, what arrays they hold, and how arrays become parameters."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common.dtype import dtype_to_nptype
from safetensors import SafetensorError, safe_open

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

# NumPy's types and safetensors' names of them, in the order in which its writer lays out the tensors
TYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "uint8": "U8",
    "bool": "BOOL",
}


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


class Tensors(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file by name, each read when it is asked for: all may not fit beside a model.

    Args:
        path: the file.
        names: of the arrays that are shown; all by default.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, path: Path, names: Collection[str] | None = None) -> None:
        self.path = path
        try:
            self.file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {unreadable(path, error)}") from None
        self.names = list(self.file.keys()) if names is None else list(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read."""
        return tuple(self.file.get_slice(name).get_shape())


def read_tensors(path: Path) -> Tensors:
    """The arrays of a safetensors file by name."""
    return Tensors(path)


def write_tensors(path: Path, parameters: Mapping[str, Parameter], half: bool = False) -> None:
    """Writes a safetensors file tensor by tensor and flushes it: of all values no second copy is made.

    It is the file that the library's ``save_file`` writes, which holds copies of all tensors while it does.

    Args:
        half: float32 as float16.
    """

    def kind(name: str) -> np.dtype:
        dtype = np.dtype(dtype_to_nptype(parameters[name].dtype))
        return np.dtype(np.float16) if half and dtype == np.float32 else dtype

    ranks = {dtype: rank for rank, dtype in enumerate(TYPES)}
    names = sorted(parameters, key=lambda name: (ranks[kind(name).name], name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + kind(name).itemsize * parameters[name].size
        shape = list(parameters[name].shape)
        header[name] = {"dtype": TYPES[kind(name).name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = parameters[name].asnumpy()  # shares memory with the device tensor on a CPU
            file.write(np.ascontiguousarray(array, kind(name)).data)
        file.flush()
        os.fsync(file.fileno())


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, without reading the arrays."""
    return list(read_tensors(path))


def unreadable(path: Path, error: Exception) -> str:
    """Why a file of tensors or JSON cannot be read, in words of a user's."""
    if path.is_file() and is_lfs_pointer(path):
        return "it is a Git LFS pointer, not the content: run git lfs pull where it was cloned"
    if isinstance(error, SafetensorError):
        return f"it is no safetensors file, or cut short ({str(error).splitlines()[0]})"
    return str(error).splitlines()[0]


def set_parameters(parameters: Mapping[str, Parameter], arrays: Tensors, path: Path) -> None:
    """Copies arrays into the parameters of the same names, or raises a CheckpointError and changes nothing."""
    for name in parameters.keys() ^ arrays.keys():
        problem = "is not in" if name in parameters else "is not in the model but in"
        raise CheckpointError(f"tensor {name} {problem} {path}: another model wrote it")
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != arrays.shape(name):
            raise CheckpointError(
                f"tensor {name} of {path} is {list(arrays.shape(name))}, the model's is {list(parameter.shape)}"
            )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def results_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go: its run folder, or for a bundled one, which is left as it is, under runs/."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path("runs") / checkpoint.name

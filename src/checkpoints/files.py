"""The files of a checkpoint folder: their names, what arrays they hold, and how arrays become parameters."""

import hashlib
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

CONFIG, VOCAB, ANSWERS, MODEL, EMA, OPTIMIZER, STATE, EVALUATION, MANIFEST, RERANKING, OUTLIERS, TOKENIZER = (
    "config.yaml",
    "vocab.txt",
    "answers.txt",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "evaluation.json",
    "manifest.json",
    "reranking.yaml",
    "outliers.safetensors",
    "tokenizer",  # folder of the image tokenizer whose codes the model was trained with
)
REPORT = "export.json"  # of a folder of exported graphs, which is no checkpoint

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


def weights_file(ema: bool) -> str:
    """The file of a checkpoint folder that holds its weights, or with ``ema`` their moving average."""
    return EMA if ema else MODEL


def own_files(folder: Path) -> list[str]:
    """Settings that point at what a checkpoint carries: vocabulary and, if it has them, answers, image tokenizer."""
    settings = [path_setting("model.text.vocab", folder / VOCAB)]
    if (folder / ANSWERS).is_file():
        settings.append(path_setting("model.answers", folder / ANSWERS))
    if (folder / TOKENIZER / MODEL).is_file():
        settings.append(path_setting("data.codes", folder / TOKENIZER))
    return settings


class Tensors(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file by name, each read when it is asked for: all may not fit beside a model.

    Args:
        path: the file.
        names: of the arrays that are shown; all by default.
        changed: arrays that stand in for the file's.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(
        self, path: Path, names: Collection[str] | None = None, changed: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.path, self.changed = path, changed or {}
        try:
            self.file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {unreadable(path, error)}") from None
        self.names = list(self.file.keys()) if names is None else list(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.changed[name] if name in self.changed else self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read."""
        if name in self.changed:
            return self.changed[name].shape
        return tuple(self.file.get_slice(name).get_shape())

    def change(self, arrays: Mapping[str, np.ndarray]) -> "Tensors":
        """The same with some arrays in place of the file's."""
        return Tensors(self.path, self.names, {**self.changed, **arrays})


def read_tensors(path: Path) -> Tensors:
    """The arrays of a safetensors file by name."""
    return Tensors(path)


def write_tensors(path: Path, parameters: Mapping[str, Parameter | np.ndarray], half: bool = False) -> str:
    """Writes a safetensors file tensor by tensor and flushes it: of all values no second copy is made.

    It is the file that the library's ``save_file`` writes, which holds copies of all tensors while it does.

    Args:
        half: float32 as float16, but for tensors with a value that float16 has not.

    Returns:
        The file's sha256, of what was handed to the disk: whatever it gives back later is compared with that.
    """

    def array(name: str) -> np.ndarray:
        value = parameters[name]
        return value.asnumpy() if isinstance(value, Tensor) else value  # on a CPU without a copy

    def kind(name: str) -> np.dtype:
        dtype = parameters[name].dtype
        dtype = dtype if isinstance(dtype, np.dtype) else np.dtype(dtype_to_nptype(dtype))
        shorter = half and dtype == np.float32 and np.abs(array(name)).max(initial=0.0) <= np.finfo(np.float16).max
        return np.dtype(np.float16) if shorter else dtype

    ranks, kinds = {dtype: rank for rank, dtype in enumerate(TYPES)}, {name: kind(name) for name in parameters}
    names = sorted(parameters, key=lambda name: (ranks[kinds[name].name], name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + kinds[name].itemsize * parameters[name].size
        shape = list(parameters[name].shape)
        header[name] = {"dtype": TYPES[kinds[name].name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    found = hashlib.sha256()
    with open(path, "wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            found.update(data)

        write(len(text).to_bytes(8, "little") + text)
        for name in names:
            write(np.ascontiguousarray(array(name), kinds[name]).data)
        file.flush()
        os.fsync(file.fileno())
    return found.hexdigest()


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


def check_shapes(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises a CheckpointError unless the arrays of a file have these names and shapes."""
    for name in shapes.keys() ^ arrays.keys():
        problem = "is not in" if name in shapes else "is not in the model but in"
        raise CheckpointError(f"tensor {name} {problem} {path}: another model wrote it")
    for name, shape in shapes.items():
        found = arrays.shape(name) if isinstance(arrays, Tensors) else arrays[name].shape
        if shape != found:
            raise CheckpointError(f"tensor {name} of {path} is {list(found)}, the model's is {list(shape)}")


def set_parameters(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Copies arrays into the parameters of the same names, or raises a CheckpointError and changes nothing."""
    check_shapes(shapes_of(parameters), arrays, path)
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def shapes_of(parameters: Mapping[str, Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}

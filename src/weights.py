"""The files of a checkpoint folder as files: where they are, what arrays they hold. No network is needed."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.errors import UserError

CONFIG, VOCAB, MODEL, OPTIMIZER, STATE = (
    "config.yaml",
    "vocab.txt",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
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
    pointer = path / "checkpoints" / "latest"
    if pointer.is_file() and (path / "checkpoints" / pointer.read_text().strip() / MODEL).is_file():
        return path / "checkpoints" / pointer.read_text().strip()
    raise CheckpointError(f"no checkpoint in {path}: expected {MODEL} or a run folder with checkpoints/latest")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {str(error).splitlines()[0]}") from None

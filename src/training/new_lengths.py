"""A checkpoint's tables of positions for other sizes of images or lengths of texts and audio (train.init_from).

An image fills its grid whatever the side: its positions are interpolated. A text and an audio clip begin at the first
place and may end anywhere: the known places keep their positions, so that what fitted before is read as before, and
places behind them start anew. Interpolated, every place would mean another (docs/design.md has the measurement).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from src.checkpoints.positions import resize_grid, resize_line
from src.config import ModelConfig
from src.data.schema import audio_tokens
from src.models.layers import MEMORY_POSITION_STD, POSITION_STD

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Places that follow each other in a table of positions: of a text, an image, an audio clip, a row of codes."""

    kind: str
    length: int

    def __str__(self) -> str:
        side = int(self.length**0.5)
        return f"{side}×{side}" if self.kind == "image" else str(self.length)


def position_tables(model: ModelConfig) -> dict[str, tuple[Run, ...]]:
    """Every table of positions whose length a setting decides, of any network, and the runs that it consists of."""
    text, audio = Run("text", model.text.max_len), Run("audio", audio_tokens(model.audio, model.audio.length))
    image = Run("image" if model.image.input == "patch" else "regions", model.image.tokens)
    memory = (Run("[CLS]", 1), text, image, audio)
    codes, squares = Run("codes", model.image_tokenizer.side), Run("image", model.image_tokenizer.side**2)
    return {
        "text_encoder.positions": (text,),
        "image_encoder.positions": (image,),
        "audio_encoder.positions": (audio,),
        "text_decoder.positions": (text,),
        "text_decoder.memory_positions": memory,
        "image_decoder.row_positions": (codes,),
        "image_decoder.column_positions": (codes,),
        "image_decoder.memory_positions": memory,
        "encoder.positions": (squares,),  # of an image tokenizer
        "decoder.positions": (squares,),
    }


def convert_positions(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], ours: ModelConfig, theirs: ModelConfig, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tables of a checkpoint that have another length than the network's, at that length.

    Args:
        arrays: the checkpoint's tensors by name; of them tables [1, length, D], or [length, 1, D] of a grid's rows.
        shapes: of the network's parameters.
        ours, theirs: sizes of the network and of the checkpoint's.
        seed: of positions that start anew.

    Returns:
        float32 arrays of the network's shapes by name, and what is to be told of each. A table that does not fit for
        another reason is left out.
    """
    converted, told = {}, []
    wanted = position_tables(ours)
    for number, (name, runs) in enumerate(position_tables(theirs).items()):
        if name not in arrays or runs == wanted[name]:
            continue
        width, length = shapes[name][-1], sum(run.length for run in runs)
        pairs = list(zip(runs, wanted[name], strict=True))
        if arrays[name].size != length * width or not all(map(_convertible, runs, wanted[name])):
            continue
        rows = arrays[name].astype(np.float32).reshape(length, width)
        deviation = MEMORY_POSITION_STD if name.endswith("memory_positions") else POSITION_STD
        rng, ends = np.random.default_rng((seed, number)), np.cumsum([run.length for run in runs])[:-1]
        parts = [
            _convert(part, run.kind, new.length, deviation, rng)
            for part, (run, new) in zip(np.split(rows, ends), pairs, strict=True)
        ]
        converted[name] = np.concatenate(parts).astype(np.float32).reshape(shapes[name])
        told.append(f"{name}: " + ", ".join(_tell(run, new) for run, new in pairs if run != new))
    return converted, told


def _convertible(run: Run, new: Run) -> bool:
    """Another number of regions is no other size of an image."""
    return run == new or (run.kind == new.kind and run.kind in ("text", "image", "audio", "codes"))


def _convert(rows: np.ndarray, kind: str, length: int, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Positions [L, D] of a run at another length."""
    if kind == "image":
        return resize_grid(rows, length)
    if kind == "codes":
        return resize_line(rows, length)
    new = rng.normal(0, deviation, (max(0, length - len(rows)), rows.shape[1]))
    return np.concatenate([rows[:length], new])


def _tell(run: Run, new: Run) -> str:
    if run.kind in ("image", "codes"):
        how = "interpolated"
    elif new.length > run.length:
        how = f"the first {run.length} kept, {new.length - run.length} new"
    else:
        how = f"the first {new.length} kept"
    return f"{run.kind} {run} → {new} ({how})"

"""The image tokenizer's codes of a dataset's images, computed once and kept beside its shards.

    codes-train.npy     int16 or int32 [records, C]: an image's codes, −1 where a record has no image
    codes.json          the image tokenizer that made them, its grid, model.image.resize, and the shards; written last

Codes mean something only to the image tokenizer that made them: those of another one are refused, and so are those of
shards that have been written again since, or of images that were brought into the square in another way.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoints.checkpoint import read_config
from src.checkpoints.files import MODEL
from src.checkpoints.places import locate
from src.config import IMAGE_TOKENIZER, Config, ModelConfig
from src.data.errors import DataError
from src.data.store import Dataset, describe
from src.files import digest, write_text

ABOUT = "codes.json"
GRID = ("size", "side", "codes")  # settings of the image tokenizer that readers must share


def tokenizer_fingerprint(path: str | Path) -> str:
    """Identifies an image tokenizer: the sha256 of its weights and settings.

    Args:
        path: its run or checkpoint folder.

    Raises:
        CheckpointError: there is no checkpoint.
        DataError: it is not an image tokenizer's.
    """
    folder = locate(path)
    config = read_config(folder)
    if config.network != IMAGE_TOKENIZER:
        raise DataError(f"{folder} is a checkpoint of task={config.task}: codes need one of task=image_tokenizer")
    found = hashlib.sha256(json.dumps(asdict(config.model.image_tokenizer)).encode())
    with (folder / MODEL).open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def code_type(codes: int) -> type:
    """The smallest type that holds −1 … codes − 1."""
    return np.int16 if codes <= 1 << 15 else np.int32


def write_codes(
    folder: Path,
    model: ModelConfig,
    fingerprint: str,
    datasets: Mapping[str, Dataset],
    codes: Mapping[str, Any],
) -> None:
    """Writes the codes of all splits beside the shards and replaces earlier ones.

    Args:
        folder: the dataset folder.
        model: settings of the image tokenizer, and how images become squares.
        fingerprint: its :func:`tokenizer_fingerprint`.
        datasets: each split.
        codes: each split's [records, C].
    """
    # the description goes first: a killed process leaves no codes rather than those of two image tokenizers
    (folder / ABOUT).unlink(missing_ok=True)
    splits = {}
    for name, array in codes.items():
        place = folder / f"codes-{name}.npy"
        beside = folder / f".codes-{name}.tmp.npy"
        np.save(beside, array)
        beside.rename(place)
        splits[name] = {**describe(place), "shards": datasets[name].digest()}
    grid = {key: getattr(model.image_tokenizer, key) for key in GRID}
    about = {"tokenizer": fingerprint, **grid, "resize": model.image.resize, "splits": splits}
    write_text(folder / ABOUT, json.dumps(about, ensure_ascii=False, indent=1))


def open_codes(dataset: Dataset, config: Config) -> np.ndarray:
    """The codes of a split, read from disk on access.

    Args:
        dataset: the split.
        config: its data.codes names the image tokenizer whose codes are wanted, model.image_tokenizer is the grid,
            model.image.resize how its images become squares.

    Returns:
        [records, C] int16 or int32, mapped to memory.

    Raises:
        DataError: there are none, or another image tokenizer made them, or of other shards or squares.
    """
    hint = f"run python tools/make_image_codes.py --data {dataset.folder} --checkpoint {config.data.codes}"
    path = dataset.folder / ABOUT
    if not path.is_file():
        raise DataError(f"{dataset.folder} holds no image codes (data.codes): {hint}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        made, splits = about["tokenizer"], about["splits"]
        grid = {key: about[key] for key in GRID}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} does not describe image codes: {hint}") from None
    wanted = tokenizer_fingerprint(config.data.codes)
    if made != wanted:
        raise DataError(f"{path}: image tokenizer {made[:12]} made the codes, data.codes is {wanted[:12]}: {hint}")
    for key, value in grid.items():
        ours = getattr(config.model.image_tokenizer, key)
        if ours != value:
            message = f"the codes have {key}={value}, model.image_tokenizer.{key} is {ours}: change the config"
            raise DataError(f"{path}: {message}")
    stored, resize = about.get("resize", "crop"), config.model.image.resize  # codes of earlier versions are of crops
    if stored != resize:
        raise DataError(
            f"{path}: the codes are of images with resize={stored}, model.image.resize is {resize}: change the config, "
            f"or make codes by an image tokenizer that was trained with model.image.resize={resize}"
        )
    entry = splits.get(dataset.split)
    if entry is None or entry["shards"] != dataset.digest():
        raise DataError(f"{path}: split {dataset.split!r} was written again after its codes: {hint}")
    file = dataset.folder / entry["name"]
    if not file.is_file() or file.stat().st_size != entry["bytes"] or digest(file) != entry["sha256"]:
        raise DataError(f"{file} is not the file that {ABOUT} describes: {hint}")
    return np.load(file, mmap_mode="r")

"""Computes the image tokenizer's codes of every image of a dataset once, and keeps them beside its shards.

A training whose data.codes names the same image tokenizer finds them in the batch as image_codes.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from src.config import ModelConfig, Resize
from src.data.errors import DataError
from src.data.image import decode_image
from src.data.image_codes import code_type, tokenizer_fingerprint, write_codes
from src.data.prefetch import prefetch
from src.data.store import Dataset, read_info
from src.files import require_writable
from src.inference.loading import load_model
from src.models.batches import pad_rows
from src.models.image_tokenizer import ImageTokenizer
from src.runtime import setup

PREFETCH = 2  # batches of images decoded while one is encoded


class Encode(nn.Cell):
    """image (B, S, S, 3) uint8 → codes (B, C) int32, as a graph."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image):
        return self.model.encode(image)


def make_codes(data: Path, checkpoint: Path, settings: Sequence[str] = ()) -> None:
    """Writes the codes of every split of a dataset beside its shards and prints how many different codes occur.

    Args:
        data: dataset folder.
        checkpoint: run or checkpoint folder of an image tokenizer.
        settings: ``key=value`` settings that win over the checkpoint's configuration.
    """
    folder = locate(checkpoint)
    fingerprint = tokenizer_fingerprint(folder)
    splits = read_info(data)["splits"]
    require_writable(data)  # before all images are encoded
    config = load_checkpoint_config(folder, settings)
    setup(replace(config.runtime, distributed=False), config.seed)
    config, model = load_model(folder, settings)
    network, size = config.model, config.eval.batch_size
    encode = Encode(model.set_train(False))
    datasets = {name: Dataset(data, name) for name in splits}
    most = config.data.max_bad
    codes = {name: encode_split(encode, dataset, network, size, most) for name, dataset in datasets.items()}
    write_codes(data, network, fingerprint, datasets, codes)
    found = np.unique(np.concatenate([np.unique(array) for array in codes.values()]))
    used = int((found >= 0).sum())  # a record without an image has −1
    grid = network.image_tokenizer
    print(
        f"{data}: codes by image tokenizer {fingerprint[:12]}, resize={network.image.resize}, "
        f"{grid.side}×{grid.side} an image, {used} of {grid.codes} codes in use"
    )


def encode_split(
    encode: nn.Cell, dataset: Dataset, model: ModelConfig, batch_size: int, max_bad: int = 0
) -> np.ndarray:
    """The codes of a split's records [records, C], −1 where a record has no image.

    Args:
        max_bad: records that may fail to be read, whose codes are −1 as well and which training replaces.

    Raises:
        DataError: one more cannot be read.
    """
    grid = model.image_tokenizer
    codes = np.full((dataset.records, grid.side**2), -1, code_type(grid.codes))
    with tqdm(total=dataset.records, desc=dataset.split, unit="record", dynamic_ncols=True) as bar:
        found = _images(dataset, grid.size, model.image.resize, batch_size, max_bad, bar)
        for rows, images in prefetch(found, PREFETCH):
            encoded = encode(Tensor(pad_rows(images, batch_size))).asnumpy()
            codes[rows] = encoded[: len(rows)]
    return codes


def _images(
    dataset: Dataset, size: int, resize: Resize, batch_size: int, max_bad: int, bar: tqdm
) -> Generator[tuple[list[int], np.ndarray], None, None]:
    """Batches of (record numbers, uint8 [n, S, S, 3]); records without an image are skipped, bad ones are named."""
    rows: list[int] = []
    images: list[np.ndarray] = []
    bad = 0
    for index in range(dataset.records):
        bar.update()
        try:
            (record,) = dataset.read([index])
            if record.image is not None:
                name = f"{dataset.folder}: split {dataset.split!r}, record {record.key!r}"
                images.append(decode_image(record.image, size, resize, name))
                rows.append(index)
        except DataError as error:
            bad += 1
            if bad > max_bad:
                raise DataError(f"{error} (more than data.max_bad={max_bad} records)") from None
            bar.write(f"no codes: {error}")
        if len(rows) == batch_size:
            yield rows, np.stack(images)
            rows, images = [], []
    if rows:
        yield rows, np.stack(images)

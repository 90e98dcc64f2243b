"""What a caller hands over, texts, paths, Pillow images, arrays, samples, read into what the model reads."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from src.config import ModelConfig
from src.data.audio import checked_mono, longest
from src.data.decoding import whole_text
from src.data.errors import DataError
from src.data.image import quiet, rgb_of, to_square
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.inference.media import MODALITY, Medium, clip_of, find_files, read_file

TextLike = str | Path | Medium  # a text; the path of a .txt file
ImageLike = str | Path | Image.Image | np.ndarray | Medium  # a path; an image; uint8 [H, W], [H, W, 3] or [H, W, 4]
# a path; samples, [n] or [n, channels], float in [-1, 1] or signed whole numbers, and their rate in Hz
AudioLike = str | Path | tuple[np.ndarray, int] | Medium
Item = TextLike | ImageLike | AudioLike
OnError = Literal["raise", "skip"] | Callable[[int, DataError], object]  # the callable gets an item's place and error

Media = dict[int, list[Medium]]

PROMPT = -1  # a text or an audio clip, as each item says
NAMES = {TEXT: "texts", IMAGE: "images", AUDIO: "clips", PROMPT: "prompts"}  # of items without a file: images[3]
MISSING = object()
CHANNELS = (3, 4)  # of an array that is an image in colour
MOST_CHANNELS = 64  # of a clip: more are samples that stand the other way round


def read_batches(
    columns: Mapping[int, Iterable[Item]], size: int, model: ModelConfig, on_error: OnError
) -> Iterator[tuple[list[int], Media]]:
    """The items of one or several modalities, ``size`` places at a time: those that can be read, and their numbers.

    Args:
        columns: by modality; the items of a place belong together, and are all left out where one cannot be read.
        on_error: see :class:`src.inference.library.Model`.

    Raises:
        DataError: the columns differ in length, one is a single item, or, with ``"raise"``, an item cannot be read.
    """
    rows = read_each(columns, model, on_error)
    while part := list(islice(rows, size)):
        yield [number for number, _ in part], {which: [row[which] for _, row in part] for which in columns}


def read_each(
    columns: Mapping[int, Iterable[Item]], model: ModelConfig, on_error: OnError, numbers: Iterable[int] | None = None
) -> Iterator[tuple[int, dict[int, Medium]]]:
    """As :func:`read_batches`, place by place; ``numbers`` are those of the places, 0, 1, … by default."""
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise ValueError(f"on_error={on_error!r}: expected 'raise', 'skip' or a function of place and error")
    for which, items in columns.items():
        _check_several(items, NAMES[which])
    rows = zip_longest(*columns.values(), fillvalue=MISSING)
    for number, row in zip(count() if numbers is None else numbers, rows, strict=False):
        if any(item is MISSING for item in row):
            raise DataError(f"{' and '.join(NAMES[which] for which in columns)} differ in number")
        try:
            pairs = zip(columns, row, strict=True)
            yield number, {which: read_item(item, which, f"{NAMES[which]}[{number}]", model) for which, item in pairs}
        except DataError as error:
            _deal_with(number, error, on_error)


def collect(failures: list[str]) -> OnError:
    """An ``on_error`` that leaves items out and appends their errors to a list."""
    return lambda _, error: failures.append(str(error))


def _deal_with(number: int, error: DataError, on_error: OnError) -> None:
    if on_error == "raise":
        raise error
    if on_error == "skip":
        warnings.warn(f"skipped: {error}", stacklevel=5)
    else:
        on_error(number, error)


def read_item(item: Item, modality: int, name: str, model: ModelConfig) -> Medium:
    """One item of a modality.

    Args:
        name: of it in errors, if it has no file.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    if modality == PROMPT:
        modality = modality_of(item, name)
        if modality == IMAGE:
            raise DataError(f"{name}: an image: expected a text or an audio clip")
    if isinstance(item, Medium):
        if item.modality != modality:
            raise DataError(f"{name}: {MODALITIES[item.modality]}, expected {MODALITIES[modality]}")
        return item
    if isinstance(item, Path) or (isinstance(item, str) and modality != TEXT):
        return _read_path(Path(item), modality, model)
    with quiet():
        return READERS[modality](item, name, model)


def modality_of(item: Item, name: str) -> int:
    """TEXT, IMAGE or AUDIO of an item that may be any: a ``str`` is a text, a ``Path`` is what its ending says.

    Raises:
        DataError: it is nothing of these.
    """
    if isinstance(item, Medium):
        return item.modality
    if isinstance(item, str):
        return TEXT
    if isinstance(item, Path) and item.suffix.lower() in MODALITY:
        return MODALITY[item.suffix.lower()]
    if isinstance(item, tuple):
        return AUDIO
    if isinstance(item, Image.Image | np.ndarray):
        return IMAGE
    known = f"a file that ends in {' '.join(MODALITY)}" if isinstance(item, Path) else "a text, an image or audio"
    raise DataError(f"{name}: {item if isinstance(item, Path) else type(item).__name__}: expected {known}")


def first_modality(items: Iterable[Item], on_error: OnError) -> tuple[int, Iterable[Item]]:
    """IMAGE or AUDIO, as the first item says, where a ``str`` is a path; and all items. IMAGE where none says it.

    Raises:
        DataError: it is a single item or, with ``"raise"``, the first one is neither; otherwise such are passed over.
    """
    _check_several(items, "items")
    rest = iter(items)
    head: list[Item] = []
    for number, item in enumerate(rest):
        head.append(item)
        try:
            which = modality_of(Path(item) if isinstance(item, str) else item, f"items[{number}]")
            if which == TEXT:
                raise DataError(f"{item}: a text: expected images or audio clips")
            return which, chain(head, rest)
        except DataError:
            if on_error == "raise":
                raise
    return IMAGE, head


def gallery_modality(gallery: Sequence[Item], on_error: OnError) -> int:
    """The modality of a gallery, as its first item says; with ``on_error`` the first one that says any.

    Raises:
        DataError: it is a single item, or no item says it.
    """
    _check_several(gallery, "gallery")
    for number, item in enumerate(gallery):
        try:
            return modality_of(item, f"gallery[{number}]")
        except DataError:
            if on_error == "raise" or number == len(gallery) - 1:
                raise
    raise DataError("gallery: there is nothing to rank")


def _check_several(items: Iterable[Item], name: str) -> None:
    single = isinstance(items, np.ndarray) and items.ndim < 4
    if single or isinstance(items, str | Path | Image.Image | Medium):
        raise DataError(f"{name}: expected a list of them, not {type(items).__name__}")


def _read_path(path: Path, modality: int, model: ModelConfig) -> Medium:
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder: expected a file of {MODALITIES[modality]}")
    (file,) = find_files(path, (modality,))
    return read_file(file, model, modality)


def _read_text(item: Item, name: str, model: ModelConfig) -> Medium:
    if not isinstance(item, str):
        raise DataError(f"{name}: expected a text, not {type(item).__name__}")
    if not item.strip():
        raise DataError(f"{name}: the text is empty")
    return Medium(item, TEXT, whole_text(item))


def _read_image(item: Item, name: str, model: ModelConfig) -> Medium:
    if not isinstance(item, Image.Image | np.ndarray):
        raise DataError(f"{name}: expected a path, a Pillow image or an array, not {type(item).__name__}")
    if model.image.input != "patch":
        raise DataError(f"{name}: model.image.input={model.image.input} reads paths of regions (.npz)")
    if isinstance(item, np.ndarray):
        grey = item.ndim == 2
        if item.dtype != np.uint8 or not (grey or (item.ndim == 3 and item.shape[2] in CHANNELS)) or not item.size:
            shape = f"{item.dtype}{list(item.shape)}"
            raise DataError(f"{name}: an array {shape}: expected uint8 [H, W], [H, W, 3] or [H, W, 4]")
        item = Image.fromarray(np.ascontiguousarray(item))
    return Medium(name, IMAGE, to_square(rgb_of(item, name), model.image.size, model.image.resize))


def _read_clip(item: Item, name: str, model: ModelConfig) -> Medium:
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], np.ndarray)):
        raise DataError(f"{name}: expected a path or (array of samples, rate), not {type(item).__name__}")
    samples, rate = item
    if model.audio.input == "feature":
        raise DataError(f"{name}: model.audio.input=feature reads paths of features (.npy, .npz)")
    if not isinstance(rate, int | np.integer) or rate < 1:
        raise DataError(f"{name}: a sample rate of {rate!r}: expected Hz, a positive whole number")
    wave = samples[:, None] if samples.ndim == 1 else samples
    known = samples.dtype.kind == "f" or samples.dtype in (np.int16, np.int32)
    if not known or wave.ndim != 2 or not 0 < wave.shape[1] <= MOST_CHANNELS:
        shape = f"{samples.dtype}{list(samples.shape)}"
        raise DataError(f"{name}: samples {shape}: expected float, int16 or int32, [n] or [n, channels]")
    if not len(wave):
        raise DataError(f"{name}: the audio is empty")
    wave = wave[: int(np.ceil(longest(model.audio) * rate)) + 1]  # as of a file: a sample more than is read
    if samples.dtype.kind == "i":
        wave = wave / np.float32(-np.iinfo(samples.dtype).min)
    return clip_of(name, checked_mono(wave.astype(np.float32), name), int(rate), model.audio)


READERS = {TEXT: _read_text, IMAGE: _read_image, AUDIO: _read_clip}

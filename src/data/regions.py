"""Reads precomputed features from files: region features of a detector, audio features of another network.

Letters: ``n`` regions or frames, ``D`` width of a feature.

    a1.npz    features [n, 2048], boxes [n, 4], classes [n], scores [n], width, height
    a1.npy    [n, 1024], audio features a frame; in an .npz: features

The names that the usual bottom-up-attention extractors give to the arrays are understood as well.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw

from src.config import ImageEncoderConfig
from src.data.decoding import MOST_BYTES, check_file, decoding
from src.data.errors import DataError

# names in files, the project's own first
NAMES = {
    "features": ("features", "feature", "feats", "feat", "x"),
    "boxes": ("boxes", "bbox", "bboxes", "norm_bb"),
    "classes": ("classes", "objects", "objects_id", "cls", "cls_prob", "soft_labels"),
    "scores": ("scores", "conf", "objects_conf"),
    "width": ("width", "image_w", "image_width", "img_w"),
    "height": ("height", "image_h", "image_height", "img_h"),
    "count": ("num_boxes", "num_bbox"),
}
LONGEST_HEADER = 10_000  # bytes, as numpy has it


@dataclass(frozen=True)
class Regions:
    """What a detector found in an image, the most confident first."""

    features: np.ndarray  # float16 [n, D]
    boxes: np.ndarray  # float32 [n, 4]: x1, y1, x2, y2 in pixels
    classes: np.ndarray  # int32 [n]; −1: unknown
    scores: np.ndarray  # float32 [n]; 0 where the file has none
    width: int  # of the image in pixels
    height: int

    def __len__(self) -> int:
        return len(self.boxes)

    def box_vectors(self) -> np.ndarray:
        """float32 [n, 7]: x1, y1, x2, y2, width, height, area, as shares of the image's."""
        corners = np.clip(self.boxes / np.array([self.width, self.height] * 2, np.float32), 0, 1)
        sides = corners[:, 2:] - corners[:, :2]
        return np.concatenate([corners, sides, sides.prod(1, keepdims=True)], 1).astype(np.float32)


def load_regions(path: Path, dim: int) -> Regions:
    """Reads an .npz of regions; classes and scores are optional, and with boxes in [0, 1] also width and height.

    Args:
        path: the file.
        dim: D, the width that features must have.

    Raises:
        DataError: the file is missing or damaged, or one of its arrays cannot be used; the message names both.
    """
    arrays = _read(path, "regions")
    if not isinstance(arrays, Mapping):
        raise DataError(f"{path}: a single array: regions are an .npz with features and boxes")
    found = {name: _pick(arrays, keys) for name, keys in NAMES.items()}
    count = _count(path, found["count"])
    features = half(_matrix(path, "features", found["features"], dim)[:count], path, "features")
    boxes = _boxes(path, found["boxes"], count, len(features))
    width, height = _size(path, found, boxes)
    classes = _classes(path, found["classes"], count, len(features))
    scores = _vector(path, "scores", found["scores"], count, len(features), np.float32, 0)
    if boxes.max() <= 1 and width > 1:
        boxes = boxes * np.array([width, height] * 2, np.float32)  # shares of the image
    order = np.argsort(-scores, kind="stable")
    return Regions(features[order], boxes[order], classes[order], scores[order], width, height)


def load_features(path: Path, dim: int) -> np.ndarray:
    """Reads audio features, float16 [n, D], from an .npy or the array ``features`` of an .npz."""
    arrays = _read(path, "features")
    features = _pick(arrays, NAMES["features"]) if isinstance(arrays, Mapping) else arrays
    return half(_matrix(path, "features", features, dim), path, "features")


def half(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Converts features to float16, the type in which they are stored."""
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name} contains values that are not finite")
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise DataError(
            f"{path}: {name} contains {np.abs(values).max():.3g}, beyond half precision: scale the features"
        )
    return values.astype(np.float16)


def fill_regions(
    batch: dict[str, np.ndarray], row: int, regions: Regions, config: ImageEncoderConfig, name: str
) -> None:
    """Writes the most confident regions of an image into a row; ``name`` is the image's in error messages."""
    if regions.features.shape[1] != config.region_dim:
        found, key = regions.features.shape[1], "model.image.region_dim"
        raise DataError(f"{name}: features of {found} numbers, {key} is {config.region_dim}: change the config")
    if regions.classes.max() >= config.region_classes:
        found, key = regions.classes.max(), "model.image.region_classes"
        raise DataError(f"{name}: a region is of class {found}, {key} is {config.region_classes}: change the config")
    count = min(len(regions), config.regions)
    batch["regions"][row, :count] = regions.features[:count]
    batch["region_boxes"][row, :count] = regions.box_vectors()[:count]
    batch["region_mask"][row, :count] = 1
    batch["region_classes"][row] = -1
    batch["region_classes"][row, :count] = regions.classes[:count]


def _read(path: Path, kind: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy, or all arrays of an .npz that need no unpickling."""
    check_file(path, f"file of {kind}")
    with decoding(f"{path}: not a readable .npy or .npz"), path.open("rb") as file:
        if file.read(2) != b"PK":
            return _read_array(file, path.stat().st_size)
        known = {f"{key}.npy": key for keys in NAMES.values() for key in keys}
        arrays, room = {}, MOST_BYTES
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename in known:
                    with archive.open(entry) as member:
                        array = _read_array(member, min(entry.file_size, room))
                    arrays[known[entry.filename]] = array
                    room -= array.nbytes
        return arrays


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """An .npy; what its header promises is checked before there is memory for it.

    Args:
        file: at any place.
        size: bytes that it may have, header included.
    """
    file.seek(0)
    major, _ = np.lib.format.read_magic(file)
    header = int.from_bytes(file.read(2 if major == 1 else 4), "little")
    if header > LONGEST_HEADER:
        raise ValueError(f"a header of {header} bytes")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read(file)
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > min(size, MOST_BYTES) or min(shape, default=0) < 0:
        raise ValueError(f"an array of {wanted} bytes, of which {min(size, MOST_BYTES)} can be read")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _pick(arrays: Mapping[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _count(path: Path, value: np.ndarray | None) -> int | None:
    """How many rows of the arrays are regions, if the file says so; the rest is padding."""
    if value is None:
        return None
    if value.size != 1 or value.dtype.kind not in "iu" or value.item() < 1:
        raise DataError(f"{path}: num_boxes is not a positive whole number")
    return int(value.item())


def _matrix(path: Path, name: str, values: np.ndarray | None, columns: int) -> np.ndarray:
    if values is None:
        raise DataError(f"{path}: no array {name} (nor {', '.join(NAMES[name][1:])})")
    if not np.issubdtype(values.dtype, np.floating) or values.ndim != 2 or values.shape[1] != columns:
        raise DataError(f"{path}: {name} is {values.dtype}{list(values.shape)}, not float [n, {columns}]")
    if not len(values):
        raise DataError(f"{path}: {name} has no row")
    return values


def _boxes(path: Path, values: np.ndarray | None, count: int | None, rows: int) -> np.ndarray:
    """float32 [n, 4]; further columns (sides, area) follow from the four."""
    if values is None:
        raise DataError(f"{path}: no array boxes (nor {', '.join(NAMES['boxes'][1:])})")
    if values.ndim != 2 or values.shape[1] < 4 or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: boxes is {values.dtype}{list(values.shape)}, not numbers [n, 4]")
    boxes = values[:count, :4].astype(np.float32)
    if len(boxes) != rows:
        raise DataError(f"{path}: there are {rows} features but {len(boxes)} boxes")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(f"{path}: boxes are not x1, y1, x2, y2 with x1 ≤ x2 and y1 ≤ y2")
    return boxes


def _size(path: Path, found: Mapping[str, np.ndarray | None], boxes: np.ndarray) -> tuple[int, int]:
    """Width and height of the image; 1 × 1 if the boxes are shares of it."""
    if found["width"] is None or found["height"] is None:
        if boxes.max() <= 1:
            return 1, 1
        raise DataError(
            f"{path}: boxes are in pixels but there is no width and height (or image_w and image_h): add them"
        )
    sides = []
    for name in ("width", "height"):
        value = found[name]
        if value.size != 1 or value.dtype.kind not in "iuf" or not value.item() >= 1:
            raise DataError(f"{path}: {name} is not a positive number")
        sides.append(round(value.item()))
    return sides[0], sides[1]


def _classes(path: Path, values: np.ndarray | None, count: int | None, rows: int) -> np.ndarray:
    """int32 [n], −1 if unknown; from a table of probabilities the most likely one."""
    if values is not None and values.ndim == 2 and values.dtype.kind == "f" and values.shape[1]:
        values = values.argmax(1)
    classes = _vector(path, "classes", values, count, rows, np.int32, -1)
    if (classes < -1).any():
        raise DataError(f"{path}: classes holds {classes.min()}: a class is not negative, −1 is unknown")
    return classes


def _vector(
    path: Path, name: str, values: np.ndarray | None, count: int | None, rows: int, dtype: type, missing: int
) -> np.ndarray:
    if values is None:
        return np.full(rows, missing, dtype)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} is {values.dtype}{list(values.shape)}, not finite numbers [n]")
    if len(values[:count]) != rows:
        raise DataError(f"{path}: there are {rows} features but {len(values[:count])} {name}")
    return values[:count].astype(dtype)


def sketch(regions: Regions, size: int) -> np.ndarray:
    """The outlines of an image's regions, uint8 [S, S, 3]: shown in place of an image that is not available."""
    canvas = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(canvas)
    for x1, y1, x2, y2 in (regions.box_vectors()[:, :4] * (size - 1)).tolist():
        pen.rectangle((x1, y1, x2, y2), outline="#3566b8")
    return np.asarray(canvas)

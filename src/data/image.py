"""Image files of any mode and size to the square RGB arrays that networks read. All of their pixels are made here.

A file is opened upright, with transparency on white (:func:`open_rgb`), and brought into the square as
``model.image.resize`` says (:func:`to_square`):

    crop      the square in its middle, the longer side's ends are not read
    pad       the whole image in its own shape, in the middle between two grey bars
    squash    the whole image, its longer side compressed

Resampling is bicubic and antialiased, also where an image is smaller than the square.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.config import Resize
from src.data.decoding import decoding
from src.data.errors import DataError

MOST_PIXELS = 89_478_485  # of an image that is decoded: Pillow's own bound against decompression bombs
# Colour of the bars: the encoders read x / 127.5 − 1, so that it is as good as 0 to them. LLaVA 1.5 (Liu et al. 2023)
# likewise pads with the mean colour that its encoder subtracts.
BAR = (128, 128, 128)
ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # by the orientation, to be shown upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow multiplies a PNG's grey levels by to make them 8-bit ones, by the depth as its decoder names it.
GREY_STEPS = {"1": 255, "L;2": 85, "L;4": 17}

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Placement:
    """Which part of an image stands where in a network's square."""

    part: Box  # in pixels of the image
    target: tuple[int, int, int, int]  # where it stands, in pixels of the square: left, top, right, bottom
    side: int  # S, of the square in pixels

    def cut(self, image: Image.Image) -> Image.Image:
        """The part, in the size in which it stands in the square."""
        left, top, right, bottom = self.target
        size = right - left, bottom - top
        if image.size == size and self.part == (0, 0, *size):
            return image
        return image.resize(size, Image.Resampling.BICUBIC, box=self.part)

    def frame(self, content: Image.Image) -> np.ndarray:
        """The square uint8 [S, S, 3] with what :meth:`cut` gave where it stands, and bars beside it."""
        if content.size == (self.side, self.side):
            return np.asarray(content)
        square = Image.new("RGB", (self.side, self.side), BAR)
        square.paste(content, self.target[:2])
        return np.asarray(square)

    def source(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Coordinates in the image of coordinates in the square, x (axis 0) or y (axis 1); on a bar outside of it."""
        first, last = self.part[axis], self.part[axis + 2]
        near, far = self.target[axis], self.target[axis + 2]
        return first + (values - near) * ((last - first) / (far - near))


def place(part: Box, side: int, resize: Resize) -> Placement:
    """Where a part of an image stands in a square of ``side`` pixels: all over it, or with pad in its own shape."""
    width, height = part[2] - part[0], part[3] - part[1]
    wide = high = side
    if resize == "pad":
        wide = max(1, round(side * min(1.0, width / height)))  # no image is too narrow to be seen
        high = max(1, round(side * min(1.0, height / width)))
    left, top = (side - wide) // 2, (side - high) // 2
    return Placement(part, (left, top, left + wide, top + high), side)


def read_part(width: int, height: int, resize: Resize) -> Box:
    """The part of an image that is read: with crop the largest square in its middle, otherwise all of it."""
    if resize != "crop":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def to_square(image: Image.Image, side: int, resize: Resize) -> np.ndarray:
    """An upright RGB image as a network reads it, uint8 [S, S, 3], S being ``side``."""
    placed = place(read_part(*image.size, resize), side, resize)
    return placed.frame(placed.cut(image))


def decode_image(data: bytes, side: int, resize: Resize, name: str) -> np.ndarray:
    """An encoded image as a network reads it, uint8 [S, S, 3].

    Args:
        data: a file of any format that Pillow reads.
        side: S, model.image.size or the image tokenizer's.
        resize: model.image.resize.
        name: of the image in error messages.

    Raises:
        DataError: the file cannot be decoded, or has too many pixels.
    """
    return to_square(open_rgb(data, name, side), side, resize)


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [h, w], [h, w, 3] or [h, w, 4] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def open_rgb(data: bytes, name: str, size: int = 0) -> Image.Image:
    """A fully decoded, upright RGB image: transparency on white, 16 bits cut to 8, EXIF rotation applied.

    ``size`` lets a JPEG be decoded at a smaller scale, at least twice that size.
    """
    with decoding(f"{name}: not a readable image"):
        try:
            image = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            raise DataError(f"{name}: not a readable image (no known image format)") from None
        _check_pixels(image, name)
        if size:
            image.draft(None, (2 * size, 2 * size))
        return _upright(image)


def rgb_of(image: Image.Image, name: str) -> Image.Image:
    """As :func:`open_rgb`, of an image that Pillow has opened already."""
    with decoding(f"{name}: not a readable image"):
        _check_pixels(image, name)
        return _upright(image)


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MOST_PIXELS:
        size_text = f"{image.width} × {image.height} pixels"
        raise DataError(f"{name}: {size_text} are too many, at most {MOST_PIXELS} are read")


def _upright(image: Image.Image) -> Image.Image:
    _scale_transparent(image)
    image.load()
    turn = TURNS.get(_orientation(image))
    return _to_rgb(image if turn is None else image.transpose(turn))


def _scale_transparent(image: Image.Image) -> None:
    """A PNG's one transparent colour in the 8 bits that its pixels will have, not in the file's depth.

    Pillow leaves it as it stands in the file. Once an image is loaded its depth is not known any more.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or not image.tile or clear is None:
        return
    depth = image.tile[0].args
    if depth in GREY_STEPS:
        image.info["transparency"] = clear * GREY_STEPS[depth]
    elif depth == "RGB;16B":  # of which Pillow keeps the upper bytes
        image.info["transparency"] = tuple(value >> 8 for value in clear)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow from remarks on odd tags and large images on stderr; for one thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    # Pillow's exif_transpose would write all tags again, and fails on those that are not as they should be.
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as decoders do, EXIF readers raise anything; such an image is shown as it is stored
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        grey = _to_bytes(values, image.mode)
        if isinstance(clear := image.info.get("transparency"), int):  # a PNG's one transparent grey
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Deep grey values to uint8. I;16 defines its range; for I and F the smallest usual one that fits is assumed."""
    values = np.nan_to_num(values.astype(np.float64))
    top = 65535 if mode.startswith("I;16") else next((t for t in (1, 255) if values.max() <= t), 65535)
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)

"""Image files of any mode and size to square RGB arrays."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from src.data.decoding import decoding
from src.data.errors import DataError

MOST_PIXELS = 89_478_485  # of an image that is decoded: Pillow's own bound against decompression bombs
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

Box = tuple[float, float, float, float]  # left, top, right, bottom


def decode_image(data: bytes, size: int, name: str) -> np.ndarray:
    """An encoded image as uint8 [S, S, 3]: the shorter side resized to S (bicubic, antialiased), the centre kept.

    Args:
        data: a file of any format that Pillow reads.
        size: S.
        name: of the image in error messages.
    """
    return crop_square(open_rgb(data, name, size), size)


def crop_square(image: Image.Image, size: int) -> np.ndarray:
    """An image's centred square as uint8 [S, S, 3]."""
    return np.asarray(resize(image, size, centre(*image.size)))


def centre(width: int, height: int) -> Box:
    """The largest square in the middle of an image."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resize(image: Image.Image, size: int, box: Box) -> Image.Image:
    """A part of an image as a square of ``size`` pixels a side, bicubic and antialiased."""
    if image.size == (size, size) and box == (0, 0, size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


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
    image.load()
    turn = TURNS.get(_orientation(image))
    return _to_rgb(image if turn is None else image.transpose(turn))


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
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode)).convert("RGB")
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

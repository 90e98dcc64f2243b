"""Images of any mode and size."""

import io

import numpy as np
import pytest
from PIL import Image

from src.data.errors import DataError
from src.data.image import decode_image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_same_size_is_untouched() -> None:
    image = pixels(64, 64)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})):
        assert np.array_equal(decode_image(encode(Image.fromarray(image), kind, **options), 64, "crop", "p"), image)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (300, 200), (10, 10), (640, 480)])
def test_any_size_gives_the_centre(shape: tuple[int, int]) -> None:
    height, width = shape
    side = min(shape)
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = (200, 100, 50)
    found = decode_image(encode(Image.fromarray(image)), 32, "crop", "p")
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    assert np.abs(found[2:-2, 2:-2].astype(int) - (200, 100, 50)).max() <= 1


def test_a_line_of_pixels_is_an_image() -> None:
    assert decode_image(encode(Image.fromarray(pixels(1, 5))), 32, "crop", "p").shape == (32, 32, 3)


def test_shrinking_is_antialiased() -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    found = decode_image(encode(Image.fromarray(np.stack([board] * 3, 2).astype(np.uint8))), 32, "crop", "p")
    assert np.abs(found.astype(int) - 127).max() <= 3


def test_modes() -> None:
    grey = np.full((8, 8), 100, np.uint8)
    half = np.full((8, 8, 4), (255, 0, 0, 0), np.uint8)  # red, but wholly transparent: white
    palette = Image.fromarray(np.full((8, 8, 3), (0, 128, 0), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([255, 0, 0])
    cases = [
        (encode(Image.fromarray(grey)), (100, 100, 100)),
        (encode(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        (encode(Image.fromarray(half)), (255, 255, 255)),
        (encode(Image.merge("LA", (Image.fromarray(grey), Image.new("L", (8, 8), 0)))), (255, 255, 255)),
        (encode(palette), (0, 128, 0)),
        (encode(clear, transparency=0), (255, 255, 255)),
        (encode(Image.new("RGB", (8, 8), (255, 0, 0)), transparency=(255, 0, 0)), (255, 255, 255)),
        (encode(Image.fromarray(np.full((8, 8), 32896, np.uint16))), (128, 128, 128)),
        (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        (encode(Image.new("F", (8, 8), 0.5), "TIFF"), (128, 128, 128)),
        (encode(Image.new("I", (8, 8), 200), "TIFF"), (200, 200, 200)),
        (encode(Image.new("YCbCr", (8, 8), (128, 128, 128)), "JPEG"), (128, 128, 128)),
        (encode(Image.new("P", (8, 8), 0), "GIF"), (0, 0, 0)),
    ]
    for number, (data, colour) in enumerate(cases):
        found = decode_image(data, 8, "crop", "p")
        assert found.shape == (8, 8, 3), number
        assert np.abs(found.astype(int) - colour).max() <= 3, (number, found[0, 0], colour)


def test_exif_rotation() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the top becomes the right
    found = decode_image(encode(Image.fromarray(image), "JPEG", quality=100, exif=exif), 16, "crop", "p")
    assert found[:, 12:].min() > 240 and found[:, :4].max() < 15


def test_a_large_jpeg_is_decoded_smaller_but_alike() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    image = np.repeat(np.kron(blocks, np.ones((32, 32), np.uint8))[:, :, None], 3, axis=2)
    jpeg = decode_image(encode(Image.fromarray(image), "JPEG", quality=95), 96, "crop", "p").astype(int)
    assert np.abs(jpeg - decode_image(encode(Image.fromarray(image)), 96, "crop", "p")).mean() < 3


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged TIFF tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_broken_images_are_named(kind: str) -> None:
    whole = encode(Image.fromarray(pixels(64, 64)), kind)
    for data in (whole[: len(whole) // 2], b"", b"no image", whole[:20]):
        with pytest.raises(DataError, match="^shelf, record 'x': not a readable image") as caught:
            decode_image(data, 32, "crop", "shelf, record 'x'")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_noise_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = bytearray(encode(Image.fromarray(pixels(16, 16)), kind))
        for _ in range(60):
            spoiled = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                spoiled[place] = rng.integers(256)
            try:
                assert decode_image(bytes(spoiled), 8, "crop", "p").shape == (8, 8, 3)
            except DataError:
                continue

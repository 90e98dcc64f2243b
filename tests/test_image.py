"""Images of any mode and size."""

import io
import struct
import zlib
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.config import Resize
from src.data.errors import DataError
from src.data.image import BAR, decode_image, place, read_part, rgb_of

MODES = get_args(Resize)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("resize", MODES)
def test_same_size_is_untouched(resize: Resize) -> None:
    image = pixels(64, 64)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})):
        assert np.array_equal(decode_image(encode(Image.fromarray(image), kind, **options), 64, resize, "p"), image)


@pytest.mark.parametrize(
    "shape", [(96, 192), (192, 96), (67, 100), (100, 67), (640, 480), (480, 640), (20, 40), (8, 6), (7, 7), (64, 16)]
)
def test_every_way_into_the_square_is_pillows(shape: tuple[int, int]) -> None:
    """Landscape, portrait, larger and smaller than the square, against Pillow's own functions."""
    image, side = Image.fromarray(pixels(*shape)), 64
    bicubic = Image.Resampling.BICUBIC
    wanted = {
        "crop": ImageOps.fit(image, (side, side), bicubic),
        "pad": ImageOps.pad(image, (side, side), bicubic, BAR),
        "squash": image.resize((side, side), bicubic),
    }
    assert wanted.keys() == set(MODES)
    for resize, expected in wanted.items():
        assert np.array_equal(decode_image(encode(image), side, resize, "p"), np.asarray(expected)), resize


@pytest.mark.parametrize(
    ("width", "height", "target"),
    [
        (200, 100, (0, 16, 64, 48)),
        (100, 200, (16, 0, 48, 64)),
        (10, 5, (0, 16, 64, 48)),
        (100, 67, (0, 10, 64, 53)),  # 42.9 rows
        (100, 99, (0, 0, 64, 63)),  # the bar of an odd pixel is below
        (5000, 1, (0, 31, 64, 32)),  # at least a pixel of it is seen
        (1, 5000, (31, 0, 32, 64)),
        (1, 1, (0, 0, 64, 64)),
    ],
)
def test_bars_stand_on_both_sides(width: int, height: int, target: tuple[int, ...]) -> None:
    placed = place(read_part(width, height, "pad"), 64, "pad")
    assert placed.target == target and placed.part == (0, 0, width, height)
    image = Image.new("RGB", (width, height), (200, 20, 90))
    expected = np.full((64, 64, 3), BAR, np.uint8)
    left, top, right, bottom = target
    expected[top:bottom, left:right] = (200, 20, 90)
    assert np.array_equal(decode_image(encode(image), 64, "pad", "p"), expected)


@pytest.mark.parametrize("turn", [False, True])
def test_an_image_of_one_row_keeps_what_the_way_keeps(turn: bool) -> None:
    """1 × 5000, red in its first half and blue in the other, with a green middle of ten pixels."""
    row = np.zeros((1, 5000, 3), np.uint8)
    row[:, :2500, 0] = row[:, 2500:, 2] = 255
    row[:, 2495:2505] = (0, 255, 0)

    def read(resize: Resize) -> np.ndarray:
        found = decode_image(encode(Image.fromarray(row.transpose(1, 0, 2) if turn else row)), 64, resize, "p")
        return found.transpose(1, 0, 2) if turn else found

    assert (read("crop") == (0, 255, 0)).all()
    squashed, padded = read("squash"), read("pad")
    assert (squashed == squashed[:1]).all() and np.array_equal(padded[31], squashed[0])
    assert np.delete(padded, 31, 0).tolist() == np.full((63, 64, 3), BAR).tolist()
    assert squashed[0, 5].tolist() == [255, 0, 0] and squashed[0, 60].tolist() == [0, 0, 255]


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
        (encode(Image.new("I", (8, 8), 255), "TIFF"), (255, 255, 255)),
        (encode(Image.new("I", (8, 8), 256), "TIFF"), (1, 1, 1)),
        (encode(Image.new("YCbCr", (8, 8), (128, 128, 128)), "JPEG"), (128, 128, 128)),
        (encode(Image.new("P", (8, 8), 0), "GIF"), (0, 0, 0)),
    ]
    for number, (data, colour) in enumerate(cases):
        found = decode_image(data, 8, "crop", "p")
        assert found.shape == (8, 8, 3), number
        assert np.abs(found.astype(int) - colour).max() <= 3, (number, found[0, 0], colour)


def raw_png(
    colour_type: int, pixels: list[tuple[int, ...]], transparent: tuple[int, ...] = (), depth: int = 16
) -> bytes:
    """A PNG of one row of values of any depth, few of which Pillow writes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", len(pixels), 1, depth, colour_type, 0, 0, 0)
    bits = "".join(f"{value:0{depth}b}" for pixel in pixels for value in pixel)
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))][: 1 + bool(transparent)]
    chunks = [chunk(*part) for part in (*parts, (b"IDAT", zlib.compress(row)), (b"IEND", b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_transparency_is_on_white() -> None:
    """Each case a row of pixels and what they must be: opacity · colour + (1 − opacity) · 255."""
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    palette.putdata([0, 1, 2])
    rgba = Image.fromarray(np.array([[(255, 0, 0, 128), (0, 0, 0, 0), (0, 0, 0, 64)]], np.uint8))
    grey = Image.fromarray(np.array([[(0, 64), (100, 255), (77, 0)]], np.uint8))
    deep = Image.fromarray(np.array([[0, 514, 65535]], np.uint16))
    on_white = [(255, 127, 127), (255, 255, 255), (191, 191, 191)]
    cases = {
        "RGBA": (encode(rgba), on_white),
        "RGBA in WebP": (encode(rgba, "WEBP", lossless=True, exact=True), on_white),
        "RGBA in TIFF": (encode(rgba, "TIFF"), on_white),
        "LA": (encode(grey), [(191,) * 3, (100,) * 3, (255,) * 3]),
        "palette, opacities": (
            encode(palette, transparency=bytes([0, 128, 255])),
            [(255,) * 3, (127, 127, 255), (9,) * 3],
        ),
        "palette, a colour": (encode(palette, transparency=1), [(255, 0, 0), (255,) * 3, (9,) * 3]),
        "palette in GIF": (encode(palette, "GIF", transparency=1), [(255, 0, 0), (255,) * 3, (9,) * 3]),
        "16-bit grey": (encode(deep), [(0,) * 3, (2,) * 3, (255,) * 3]),
        "16-bit grey, one clear": (encode(deep, transparency=514), [(0,) * 3, (255,) * 3, (255,) * 3]),
        "16-bit grey and opacity": (raw_png(4, [(0, 16448), (25700, 65535)]), [(191,) * 3, (100,) * 3]),
        "16-bit RGBA": (raw_png(6, [(65535, 0, 0, 32896), (0, 0, 0, 0)]), on_white[:2]),
        "16-bit RGB, one clear": (raw_png(2, [(65535, 0, 0), (257, 0, 0)], (257, 0, 0)), [(255, 0, 0), (255,) * 3]),
        "16-bit RGB, a clear mixture": (
            raw_png(2, [(0x1234, 0x8000, 0x0102), (0x1234, 0x8000, 0x0202)], (0x1234, 0x8000, 0x0102)),
            [(255,) * 3, (18, 128, 2)],
        ),
        "16-bit RGB, clear in its lower byte": (
            raw_png(2, [(0xFF00, 0, 0), (0, 0, 0xFF00)], (0x00FF, 0, 0)),
            [(255, 0, 0), (0, 0, 255)],
        ),
        "8-bit RGB, one clear": (raw_png(2, [(5, 0, 0), (85, 0, 0)], (5, 0, 0), 8), [(255,) * 3, (85, 0, 0)]),
        "8-bit grey, one clear": (raw_png(0, [(5,), (85,)], (5,), 8), [(255,) * 3, (85,) * 3]),
        "4-bit grey, one clear": (raw_png(0, [(5,), (0,), (15,)], (5,), 4), [(255,) * 3, (0,) * 3, (255,) * 3]),
        "4-bit grey, another clear": (raw_png(0, [(5,), (0,), (14,)], (14,), 4), [(85,) * 3, (0,) * 3, (255,) * 3]),
        "2-bit grey, one clear": (raw_png(0, [(0,), (1,), (2,)], (1,), 2), [(0,) * 3, (255,) * 3, (170,) * 3]),
        "1-bit grey, black clear": (raw_png(0, [(0,), (1,)], (0,), 1), [(255,) * 3] * 2),
        "1-bit grey, white clear": (raw_png(0, [(0,), (1,)], (1,), 1), [(0,) * 3, (255,) * 3]),
    }
    for name, (data, wanted) in cases.items():
        # a square has a pixel for each of the row: nothing is mixed
        found = decode_image(data, len(wanted), "squash", name)
        assert np.abs(found.astype(int) - np.array(wanted)[None]).max() <= 1, (name, found[0].tolist())
        padded = decode_image(data, len(wanted), "pad", name)
        assert np.array_equal(padded[(len(wanted) - 1) // 2], found[0]), name
        assert (padded[-1] == BAR).all(), "bars are not the white of transparency"
        held = Image.open(io.BytesIO(data))  # in memory, and given once more after it was loaded
        assert [np.asarray(rgb_of(held, name)).tolist() for _ in range(2)] == [found[:1].tolist()] * 2, name


def test_what_is_clear_does_not_shine_through_where_it_is_resized() -> None:
    """Colours below an opacity of 0 are whatever the file's writer left there."""
    image = np.full((64, 64, 4), (255, 255, 255, 0), np.uint8)
    image[:, ::2, :3] = 0
    for resize in MODES:
        assert (decode_image(encode(Image.fromarray(image)), 16, resize, "p") == 255).all()


def test_exif_rotation() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the top becomes the right
    found = decode_image(encode(Image.fromarray(image), "JPEG", quality=100, exif=exif), 16, "crop", "p")
    assert found[:, 12:].min() > 240 and found[:, :4].max() < 15


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_upright_image_is_brought_into_the_square(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(pixels(24, 40))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(stored, exif=exif))))
    for resize in MODES:
        turned = decode_image(encode(stored, exif=exif), 16, resize, "p")
        assert np.array_equal(turned, decode_image(encode(upright), 16, resize, "p")), resize
    bars = (decode_image(encode(stored, exif=exif), 40, "pad", "p") == BAR).all(2)
    assert bars.all(0).sum() == (16 if turn > 4 else 0) and bars.all(1).sum() == (0 if turn > 4 else 16)


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
            for spot in rng.integers(0, len(whole), 4):
                spoiled[spot] = rng.integers(256)
            try:
                assert decode_image(bytes(spoiled), 8, "crop", "p").shape == (8, 8, 3)
            except DataError:
                continue

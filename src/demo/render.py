"""Renders a scene: sprites on a coloured background; everything that the caption does not say is jittered."""

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from src.demo.world import ASSETS, BIG, COLOURS, LAYOUTS, NORMAL, SMALL, Item, Scene, all_things

CELL = 48  # pixels of a cell of the sprite sheet; the largest object of a scene is smaller
COLUMNS = 10  # cells a row
SIDE = 64  # pixels of a scene
PIXELS = {SMALL: 15, NORMAL: 22, BIG: 31}  # the longer side of an object
ALONE_PIXELS = {SMALL: 16, NORMAL: 25, BIG: 42}  # of the only object of an image
JITTER = 5  # how far an object may be from the middle of its box


@cache
def _sheet() -> Image.Image:
    return Image.open(ASSETS / "sprites.png").convert("RGBA")


@lru_cache(maxsize=4096)
def sprite(cell: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """An object whose longer side is ``pixels``: float32 [h, w, 3] times its opacity, and 1 − opacity [h, w, 1]."""
    row, column = divmod(cell, COLUMNS)
    art = _sheet().crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    art = art.crop(art.getbbox())
    size = [max(1, round(side * pixels / max(art.size))) for side in art.size]
    values = np.asarray(art.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    opacity = values[..., 3:] / 255
    return values[..., :3] * opacity, 1 - opacity


def boxes(places: tuple[str, ...], item: Item) -> list[tuple[float, float, float, float]]:
    """The boxes of an item's objects, (left, top, width, height) each, side by side without overlap."""
    share, at = SIDE / len(places), places.index(item.place) * SIDE / len(places)
    step = SIDE / item.count
    if places in (LAYOUTS["above-below"], LAYOUTS["single"]):
        return [(i * step, at, step, share) for i in range(item.count)]
    return [(at, i * step, share, step) for i in range(item.count)]


def render(scene: Scene) -> np.ndarray:
    """The image of a scene, uint8 [64, 64, 3]; the same for the same scene."""
    rng = np.random.default_rng(scene.seed)
    ground = np.clip(np.array(COLOURS[scene.facts.colour]) + rng.integers(-12, 13, 3), 0, 255)
    image = np.full((SIDE, SIDE, 3), ground, np.float32)
    places = tuple(item.place for item in scene.facts.items)
    for item in scene.facts.items:
        alone = len(places) == 1 and item.count == 1
        base = (ALONE_PIXELS if alone else PIXELS)[item.size] * rng.uniform(0.94, 1.06)
        light = rng.uniform(0.88, 1.0)
        for box in boxes(places, item):
            _paste(image, item.name, box, base * rng.uniform(0.98, 1.02), light, rng)
    return image.round().astype(np.uint8)


def _paste(image: np.ndarray, name: str, box: tuple, size: float, light: float, rng: np.random.Generator) -> None:
    left, top, width, height = box
    pixels = min(round(size), int(min(width, height)) - 1)
    colour, through = sprite(all_things()[name].cell, pixels)
    rows, columns = colour.shape[:2]
    y = _jittered(top, height, rows, rng)
    x = _jittered(left, width, columns, rng)
    part = image[y : y + rows, x : x + columns]
    part *= through
    part += light * colour


def _jittered(start: float, room: float, length: int, rng: np.random.Generator) -> int:
    slack = (room - length) / 2
    return round(start + slack + rng.uniform(-1, 1) * min(slack, JITTER))


def render_png(scene: Scene) -> bytes:
    """The image of a scene as a PNG file."""
    buffer = io.BytesIO()
    # level 1 takes a fifth of the time and a few per cent more space
    Image.fromarray(render(scene)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

"""The demo's worlds: which emoji, backgrounds and arrangements a scene may have, and which pairs training never sees.

A scene holds one to three kinds of object on a coloured background. :class:`Facts` is all that its caption says.
"""

import csv
import hashlib
import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np

from src.data.errors import DataError
from src.files import ROOT

ASSETS = ROOT / "assets" / "emoji"
HELD_OUT_SHARE = 0.12  # of the unordered pairs of objects; half of them for dev, half for test
PATIENCE = 500  # draws in a row without new facts after which a split counts as used up
SPLITS = ("train", "dev", "test")
BIG, SMALL, NORMAL = "大", "小", ""

LAYOUTS = {  # places in the order in which a caption names them
    "single": ("中",),
    "left-right": ("左", "右"),
    "above-below": ("上", "下"),
    "row": ("左", "中", "右"),
}
COLOURS = {
    "红": (205, 74, 70),
    "黄": (238, 204, 96),
    "绿": (92, 164, 98),
    "蓝": (84, 132, 206),
    "白": (243, 242, 238),
    "黑": (24, 24, 28),
    "紫": (142, 98, 184),
    "灰": (146, 148, 152),
}
# Far apart in looks and in audio, so that a ten-minute run can tell them apart.
QUICK_NAMES = (
    *("猫", "狗", "青蛙", "企鹅", "鲸鱼", "螃蟹", "蝴蝶", "斑马", "玫瑰", "向日葵"),
    *("松树", "蘑菇", "苹果", "香蕉", "西瓜", "葡萄", "胡萝卜", "汽车", "自行车", "帆船"),
    *("火箭", "房子", "月亮", "彩虹", "足球", "雨伞", "钥匙", "雪人"),
)


@dataclass(frozen=True)
class Thing:
    """A kind of object: its emoji, Chinese name, measure word and cell of the sprite sheet."""

    emoji: str
    name: str
    measure: str
    cell: int


@dataclass(frozen=True)
class Item:
    """One place of a scene: ``count`` objects ``name``, of size 大, 小 or unstated."""

    place: str
    count: int
    size: str
    name: str


@dataclass(frozen=True)
class Facts:
    """All that a caption says: the background and, in the order of the layout's places, the items."""

    colour: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Scene:
    """Facts with the wording of the caption and the seed of everything the caption does not say."""

    facts: Facts
    template: int
    seed: int


@dataclass(frozen=True)
class World:
    """What scenes are drawn from; the tables give relative frequencies."""

    name: str
    names: tuple[str, ...]
    colours: tuple[str, ...]
    layouts: dict[str, float]
    counts: dict[int, float]
    sizes: dict[str, float]
    templates: int  # how many of the wordings, from the shortest on


@cache
def all_things() -> dict[str, Thing]:
    """Every object of the sprite sheet, by name."""
    with open(ASSETS / "objects.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["name"]: Thing(row["emoji"], row["name"], row["measure"], int(row["cell"])) for row in rows}


@cache
def get_world(name: str) -> World:
    """The world called ``name``: ``demo``, or ``demo_full``, which contains it."""
    sizes = {NORMAL: 0.5, BIG: 0.25, SMALL: 0.25}
    if name == "demo":
        layouts = {"single": 0.15, "left-right": 0.425, "above-below": 0.425}
        return World(name, QUICK_NAMES, tuple(COLOURS)[:6], layouts, {1: 0.5, 2: 0.4, 3: 0.1}, sizes, 3)
    if name == "demo_full":
        layouts = {"single": 0.1, "left-right": 0.35, "above-below": 0.35, "row": 0.2}
        return World(name, tuple(all_things()), tuple(COLOURS), layouts, {1: 0.45, 2: 0.35, 3: 0.2}, sizes, 6)
    raise DataError(f"world {name!r} is unknown: use demo or demo_full")


def objects(world: str) -> tuple[Thing, ...]:
    """The objects of a world."""
    return tuple(all_things()[name] for name in get_world(world).names)


def pair_split(first: str, second: str) -> str:
    """The split that owns a pair of objects: the same in every world and for every seed."""
    digest = hashlib.blake2b("|".join(sorted((first, second))).encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    if draw >= HELD_OUT_SHARE:
        return "train"
    return "dev" if draw < HELD_OUT_SHARE / 2 else "test"


@cache
def pairs(world: str, split: str) -> tuple[tuple[str, str], ...]:
    """The unordered pairs of objects that may stand together in a split."""
    every = itertools.combinations(get_world(world).names, 2)
    return tuple(pair for pair in every if pair_split(*pair) == split)


def held_out_pairs(world: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """The pairs that training never sees together, by the split that tests them."""
    return {split: pairs(world, split) for split in ("dev", "test")}


def sample_scenes(world: str, split: str, count: int, seed: int) -> list[Scene]:
    """``count`` scenes of a split, the same for the same seed.

    Training scenes hold no held-out pair. In dev and test scenes neighbours are held-out pairs of that split, and no
    two scenes of a split state the same facts, so that every caption has one right image.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    scenes: list[Scene] = []
    seen: set[Facts] = set()
    repeats = 0
    while len(scenes) < count:
        scene = _sample_scene(get_world(world), split, rng)
        if split == "train" or scene.facts not in seen:
            seen.add(scene.facts)
            scenes.append(scene)
            repeats = 0
        else:
            repeats += 1
        if repeats == PATIENCE:
            raise DataError(f"world {world!r} has too few held-out scenes for {count} of {split}: ask for fewer")
    return scenes


def _pick(rng: np.random.Generator, table: dict):
    """A key of ``table``, by its relative frequency."""
    keys, weights = list(table), np.cumsum(list(table.values()))
    return keys[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]


def _sample_scene(world: World, split: str, rng: np.random.Generator) -> Scene:
    # a lone object is no held-out pair
    layouts = {name: share for name, share in world.layouts.items() if split == "train" or name != "single"}
    layout = _pick(rng, layouts)
    items = []
    for place, name in zip(LAYOUTS[layout], _sample_names(world, split, len(LAYOUTS[layout]), rng), strict=True):
        number = _pick(rng, world.counts)
        # big ones would not fit in threes
        roomy = number < 3 and layout != "row"
        sizes = world.sizes if roomy else {size: share for size, share in world.sizes.items() if size != BIG}
        items.append(Item(place, number, _pick(rng, sizes), name))
    colour = world.colours[rng.integers(len(world.colours))]
    # longer wordings of three items pass the length of the text encoder
    wordings = min(world.templates, 3) if layout == "row" else world.templates
    return Scene(Facts(colour, tuple(items)), int(rng.integers(wordings)), int(rng.integers(2**31)))


def _sample_names(world: World, split: str, number: int, rng: np.random.Generator) -> list[str]:
    """Names of ``number`` different objects whose neighbours are pairs of ``split`` and that no other split tests."""
    if number == 1:
        return [world.names[rng.integers(len(world.names))]]
    allowed = pairs(world.name, split)
    while True:
        names = list(allowed[rng.integers(len(allowed))])
        rng.shuffle(names)
        if number == 2:
            return names
        third = world.names[rng.integers(len(world.names))]
        beside, apart = pair_split(names[1], third), pair_split(names[0], third)
        if third not in names and beside == split and apart in ("train", split):
            return [*names, third]

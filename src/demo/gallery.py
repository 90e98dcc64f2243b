"""Makes the example gallery, ``assets/gallery``: scenes with captions, some spoken, to try a checkpoint with."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from src.demo import speech
from src.demo.captions import parse, write_caption
from src.demo.render import render
from src.demo.world import LAYOUTS, Scene, sample_scenes
from src.files import write_bytes

# a scene and others that differ from it in one thing, then what the held-out scenes of two kinds of object do not show
CHOSEN = (
    "红底，左边一只猫，右边两个苹果",
    "红底，左边两个苹果，右边一只猫",
    "红底，左边一只狗，右边两个苹果",
    "蓝底，左边一只猫，右边两个苹果",
    "红底，左边一只猫，右边一把大雨伞",
    "黄底，上面一枚火箭，下面三个雪人",
    "绿底，左边两只小青蛙，右边一朵向日葵",
    "白底，上面一道彩虹，下面两座房子",
    "紫底，左边一艘帆船，中间一个月亮，右边一只企鹅",
    "黑底，中间一块大西瓜",
    "灰底，左边三把钥匙，右边一辆自行车",
    "蓝底，上面两只蝴蝶，下面一条鲸鱼",
)
CHOSEN_SEED = 100  # of the first one's rendering; the next has the next
HELD_OUT = 48
WORLD, SPLIT, SAMPLED, SEED = "demo_full", "test", 1000, 1  # those the bundled checkpoint was tested with
QUERY, QUERY_VOICE = "speech.wav", speech.Voice("cmn", 310, 50)  # the first scene's caption
VOICES = tuple(speech.Voice(name, 300, 50) for name in speech.VOICES if name != QUERY_VOICE.name)
COMPRESSION = 0.8  # how far the .ogg files are compressed, 0 to 1
CAPTIONS = "captions.tsv"  # a .txt would be a text of the gallery


def scenes() -> list[Scene]:
    """The scenes of the gallery in their order, no two with the same facts: first those that are chosen."""
    found = []
    for number, caption in enumerate(CHOSEN):
        facts = parse(caption, WORLD)
        if facts is None or caption != write_caption(Scene(facts, 0, 0)):
            raise ValueError(f"{caption}: no caption of the first wording")
        found.append(Scene(facts, 0, CHOSEN_SEED + number))
    return found + _held_out({item.name for scene in found for item in scene.facts.items})


def _held_out(shown: set[str]) -> list[Scene]:
    """Scenes of every arrangement in turn, each the one with the most objects that were not shown before."""
    offered = {places: [] for places in LAYOUTS.values() if len(places) > 1}
    for scene in sample_scenes(WORLD, SPLIT, SAMPLED, SEED):
        offered[tuple(item.place for item in scene.facts.items)].append(scene)
    found, shown = [], set(shown)
    for alike in islice(cycle(offered.values()), HELD_OUT):
        best = max(alike, key=lambda scene: len({item.name for item in scene.facts.items} - shown))
        alike.remove(best)
        shown |= {item.name for item in best.facts.items}
        found.append(best)
    return found


def write_gallery(folder: Path) -> None:
    """Writes the images, ``captions.tsv``, the spoken query and a clip of each other voice.

    A clip has the name of the image whose caption it speaks. The bytes of .ogg files differ from call to call, by a
    serial number; what they hold does not.
    """
    every = scenes()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02}" for number in range(1, len(every) + 1)]
    for name, scene in zip(names, every, strict=True):
        Image.fromarray(render(scene)).save(folder / f"{name}.png", optimize=True)
    captions = list(map(write_caption, every))
    lines = [f"{name}.png\t{caption}\n" for name, caption in zip(names, captions, strict=True)]
    write_bytes(folder / CAPTIONS, "".join(["file\tcaption\n", *lines]).encode())
    if not speech.available():
        print(speech.HINT)
        return
    (query,), rate = speech.record(captions[:1], QUERY_VOICE)
    soundfile.write(folder / QUERY, (query * 32768).astype(np.int16), rate)
    first = len(CHOSEN)
    for voice, name, caption in zip(VOICES, names[first:], captions[first:], strict=False):
        (clip,), rate = speech.record([caption], voice)
        soundfile.write(folder / f"{name}.ogg", clip, rate, format="OGG", compression_level=COMPRESSION)

"""Questions about the demo's scenes and their answers: how many, what, which colour, where."""

import numpy as np

from src.data.record import Question
from src.demo.captions import NUMERALS, PLACES
from src.demo.captions import vocabulary as caption_vocabulary
from src.demo.world import COLOURS, Item, Scene, all_things

KINDS = ("count", "object", "colour", "place")
WORDINGS = {
    "count": "{place}有几{measure}{name}？",
    "object": "{place}是什么？",
    "colour": "背景是什么颜色？",
    "place": "{name}在哪边？",
}
PURPOSE = 1  # of a scene's second random stream; the first is the image's


def ask(scene: Scene, count: int) -> list[tuple[str, Question]]:
    """``count`` questions of different kinds about a scene, as 左边有几只猫？ with 两只; the same for the same scene.

    Args:
        count: 1 to 4; every kind is equally likely.
    """
    rng = np.random.default_rng([scene.seed, PURPOSE])
    found = []
    for kind in rng.permutation(KINDS)[:count].tolist():
        item = scene.facts.items[rng.integers(len(scene.facts.items))]
        found.append((_word(kind, item), Question(kind, (_answer(kind, item, scene.facts.colour),))))
    return found


def _word(kind: str, item: Item) -> str:
    measure = all_things()[item.name].measure
    return WORDINGS[kind].format(place=PLACES[item.place], measure=measure, name=item.name)


def _answer(kind: str, item: Item, colour: str) -> str:
    return {
        "count": NUMERALS[item.count] + all_things()[item.name].measure,
        "object": item.name,
        "colour": f"{colour}色",
        "place": PLACES[item.place],
    }[kind]


def vocabulary() -> list[str]:
    """The tokens of ``config/vocab/demo_vqa.txt``: those of the captions, then the other characters of questions."""
    known = caption_vocabulary()
    words = "".join(wording.format(place="", measure="", name="") for wording in WORDINGS.values())
    return [*known, *sorted(set(words).difference(known))]


def answers() -> list[str]:
    """The lines of ``config/vqa/demo_answers.txt``: every answer of the world of 86 objects."""
    return [*map(str, NUMERALS), *(f"{colour}色" for colour in COLOURS), *PLACES.values(), *all_things()]

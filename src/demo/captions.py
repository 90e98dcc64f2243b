"""The grammar of the demo's captions: facts to captions, and captions back to facts."""

import re
from dataclasses import dataclass
from functools import cache

from src.demo.world import BIG, COLOURS, LAYOUTS, NORMAL, SMALL, Facts, Item, Scene, all_things, get_world

NUMERALS = {1: "一", 2: "两", 3: "三"}
PLACES = {"左": "左边", "右": "右边", "上": "上面", "下": "下面", "中": "中间"}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FACT_KINDS = ("objects", "counts", "sizes", "places", "colours")
_PUNCTUATION = re.compile(r"[\s，。,.：:、！!]+")


@dataclass(frozen=True)
class Template:
    """A wording: ``part`` once for each item, with commas between; every wording states all facts."""

    before: str
    part: str
    after: str


TEMPLATES = (
    Template("{colour}底，", "{place}{thing}", ""),
    Template("", "{thing}在{place}", "，{colour}底"),
    Template("", "{place}{thing}", "，{colour}底"),
    Template("{colour}色背景上，", "{place}有{thing}", ""),
    Template("背景是{colour}色，", "{thing}在{place}", ""),
    Template("", "{place}是{thing}", "，背景是{colour}色"),
)


def write_caption(scene: Scene) -> str:
    """The caption of a scene, such as 红底，左边一只大猫，右边两个苹果."""
    template, facts = TEMPLATES[scene.template], scene.facts
    parts = [template.part.format(place=PLACES[item.place], thing=_say(item)) for item in facts.items]
    return (template.before + "，".join(parts) + template.after).format(colour=facts.colour)


def _say(item: Item) -> str:
    return NUMERALS[item.count] + all_things()[item.name].measure + item.size + item.name


def parse(caption: str, world: str = "demo_full") -> Facts | None:
    """The facts that a caption states, or None if it is no caption of the world. Punctuation does not matter."""
    text = _PUNCTUATION.sub("", caption)
    for places, pattern in _patterns(world):
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            numbers = {numeral: number for number, numeral in NUMERALS.items()}
            items = tuple(
                Item(place, numbers[found[f"count{i}"]], found[f"size{i}"], found[f"name{i}"])
                for i, place in enumerate(places)
            )
            return Facts(found["colour"], items)
    return None


@cache
def _patterns(world: str) -> tuple[tuple[tuple[str, ...], re.Pattern], ...]:
    """The places of each layout with the regular expression of each wording."""
    spec = get_world(world)
    names = "|".join(sorted(spec.names, key=len, reverse=True))
    # any measure word is accepted: it is grammar, not a fact
    measures = "|".join({all_things()[name].measure for name in spec.names})
    colour = f"(?P<colour>{'|'.join(spec.colours)})"
    patterns = []
    for layout in spec.layouts:
        for template in TEMPLATES[: spec.templates]:
            parts = "".join(
                template.part.format(
                    place=PLACES[place],
                    thing=f"(?P<count{i}>[{''.join(NUMERALS.values())}])(?:{measures})"
                    f"(?P<size{i}>[{BIG}{SMALL}]?)(?P<name{i}>{names})",
                )
                for i, place in enumerate(LAYOUTS[layout])
            )
            ends = [_PUNCTUATION.sub("", end).format(colour=colour) for end in (template.before, template.after)]
            patterns.append((LAYOUTS[layout], re.compile(ends[0] + parts + ends[1])))
    return tuple(patterns)


def facts_right(pred: Facts | None, ref: Facts) -> dict[str, bool]:
    """Which kinds of facts of ``ref`` a prediction states; all of them exactly where the two are equal.

    Counts and sizes are compared place by place. Places are right if the arrangement is the same and the objects that
    both name are at the same places, so that a wrong object does not make its count and its place wrong as well.
    """
    if pred is None:
        return dict.fromkeys(FACT_KINDS, False)
    where_pred = {item.name: item.place for item in pred.items}
    where_ref = {item.name: item.place for item in ref.items}
    same_places = [item.place for item in pred.items] == [item.place for item in ref.items]
    return {
        "objects": sorted(item.name for item in pred.items) == sorted(item.name for item in ref.items),
        "counts": [(item.place, item.count) for item in pred.items] == [(i.place, i.count) for i in ref.items],
        "sizes": [(item.place, item.size) for item in pred.items] == [(i.place, i.size) for i in ref.items],
        "places": same_places and all(where_ref[name] == where_pred[name] for name in where_ref.keys() & where_pred),
        "colours": pred.colour == ref.colour,
    }


def vocabulary() -> list[str]:
    """The tokens of ``config/vocab/demo.txt``: the special ones, then every character of all possible captions."""
    wordings = "".join(template.before + template.part + template.after for template in TEMPLATES)
    wordings = re.sub(r"\{\w+\}", "", wordings) + "，"
    words = [wordings, *COLOURS, *PLACES.values(), *NUMERALS.values(), BIG, SMALL, NORMAL]
    words += [thing.name + thing.measure for thing in all_things().values()]
    return [*SPECIAL_TOKENS, *sorted(set("".join(words)))]

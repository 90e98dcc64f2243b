"""Words that can be chosen, each with where the model looks: radio buttons and a style sheet, without a script."""

import itertools
from html import escape

import numpy as np

from src.data.regions import Regions
from src.data.schema import AUDIO
from src.inference.media import Medium
from src.web.cards import Words, data_uri, notes, picture
from src.web.service import Matched, Shown, pixels

DARKEST = 0.78  # how much of a place is hidden that the model does not look at
SIDE = 64  # pixels of a map of boxes
_numbers = itertools.count()  # of answers: two in one page must not share names


def matched(words: Words, shown: Shown, result: Matched) -> str:
    """A text's words above the image or clip in which the model looks for them."""
    found = result.found.words()
    mine = f"opt-match-{next(_numbers)}"
    chosen = max(range(len(found)), key=lambda at: found[at][2].max())
    buttons, labels, maps, rules = [], [], [], []
    for at, (word, likely, places) in enumerate(found):
        name = f"{mine}-{at}"
        state = " checked" if at == chosen else ""
        buttons.append(f'<input type="radio" name="{mine}" id="{name}"{state}>')
        labels.append(
            f'<label for="{name}" style="--p: {likely:.3f}">{escape(word)}<small>{likely:.0%}</small></label>'
        )
        maps.append(f'<img class="{name}" alt="" src="{data_uri(shade(result.medium, places))}">')
        rules.append(
            f"#{name}:checked ~ .opt-stage .{name} {{ opacity: 1 }}"
            f"#{name}:checked ~ .opt-words [for={name}] {{ outline-color: var(--color-accent) }}"
            f"#{name}:focus-visible ~ .opt-words [for={name}] {{ outline-style: dashed }}"
        )
    stage = picture(pixels(shown, result.medium), result.medium.name) + "".join(maps)
    kind = "opt-stage opt-wide" if result.medium.modality == AUDIO else "opt-stage"
    return (
        f'{notes(words, result.notes)}<style>{"".join(rules)}</style><div class="opt-match">{"".join(buttons)}'
        f'<div class="opt-words">{"".join(labels)}</div><div class="{kind}">{stage}</div></div>'
        f'<p class="opt-small">{words["words"]}</p>'
    )


def shade(medium: Medium, places: np.ndarray) -> np.ndarray:
    """What darkens all that the model does not look at for a word, uint8 [rows, columns, 4]."""
    if isinstance(medium.content, Regions):
        places = spread(medium.content, places)
    light = np.atleast_2d(places)
    light = light / max(float(light.max()), 1e-9)
    black = np.zeros((*light.shape, 4), np.uint8)
    black[..., 3] = (255 * DARKEST * (1 - light)).round()
    return black


def spread(regions: Regions, values: np.ndarray) -> np.ndarray:
    """A value for each region [n] as a map [SIDE, SIDE]: the largest of the boxes that hold a place."""
    found = np.zeros((SIDE, SIDE))
    for value, box in zip(values, regions.box_vectors()[:, :4] * SIDE, strict=True):
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.ceil(box[2:]).astype(int)
        found[top:bottom, left:right] = np.maximum(found[top:bottom, left:right], value)
    return found

"""A blank page measured in inches from its top left corner, with a Chinese font: what the sheets are drawn on."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FONT = Path(__file__).resolve().parents[2] / "assets/fonts/NotoSansSC-Regular-subset.otf"
DPI = 150
INK, GREY, LINE, PANEL = "#1f2430", "#7a8190", "#d9dce2", "#f3f4f7"
LEADING = 1.3  # distance of two lines of text in font sizes
NEVER_FIRST = set("，。、；：？！）」』”,.;:?!)")  # no line starts with one of these


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; matplotlib's own settings are left as they were."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports that it builds its cache, and where
    import matplotlib
    from matplotlib import font_manager

    if all(font.fname != str(FONT) for font in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(FONT)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # a character that the font lacks is shown as a box; of some scripts matplotlib warns a second time
        warnings.filterwarnings("ignore", "Glyph |Matplotlib currently does not support ")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": font_manager.FontProperties(fname=str(FONT)).get_name(),
                "font.size": 9,
                "figure.dpi": DPI,
                "text.color": INK,
                "text.parse_math": False,  # a caption may hold dollar signs
                "axes.edgecolor": LINE,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#eceef2",
                "xtick.color": LINE,
                "ytick.color": LINE,
                "xtick.labelcolor": GREY,
                "ytick.labelcolor": GREY,
            }
        )
        yield


def printable(text: str) -> str:
    """A text that can be drawn: the name of a file need not be UTF-8."""
    return text.encode(errors="replace").decode()


def new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches, outside of pyplot: nothing is shown and no window system is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | Path) -> None:
    """Writes the figure as PNG; missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")


class Page:
    """Draws text, panels and images; places and sizes are inches, ``y`` grows downwards."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = new_figure(width, height)

    def text(self, x: float, y: float, text: str, size: float, colour: str = INK) -> None:
        """Text of one or more lines; ``y`` is the top of the first."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            printable(text),
            fontsize=size,
            color=colour,
            va="top",
            linespacing=LEADING,
        )

    def panel(self, x: float, y: float, width: float, height: float, face: str, edge: str, line: float) -> None:
        """A rectangle with round corners; its line, in points, lies outside of it."""
        from matplotlib.patches import FancyBboxPatch

        points_to_inches = line / 72
        patch = FancyBboxPatch(
            (x - points_to_inches / 2, self.height - y - height - points_to_inches / 2),
            width + points_to_inches,
            height + points_to_inches,
            boxstyle="round,pad=0,rounding_size=0.04",
            facecolor=face,
            edgecolor=edge,
            linewidth=line,
            transform=self.figure.dpi_scale_trans,
        )
        self.figure.add_artist(patch)

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """An image uint8 [h, w, 3] enlarged smoothly to whole pixels of the page, then drawn without resampling."""
        from PIL import Image

        size = (round(width * DPI), round(height * DPI))
        enlarged = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        self.figure.figimage(enlarged, round(x * DPI), round((self.height - y - height) * DPI), zorder=2)


def wrap(text: str, width: float, size: float, most: int) -> list[str]:
    """Breaks text into at most ``most`` lines of ``width`` inches in a font of ``size`` points.

    Latin words stay whole where they fit, Chinese breaks anywhere but before a closing mark; a text that is too long
    ends in an ellipsis. Without more lines than needed, they end with a mark where they can, and are even in length.
    """
    room = width * 72 / size  # in ems
    lines = _break(text, room)
    if len(lines) > most:
        while _ems(lines[most - 1] + "…") > room:
            lines[most - 1] = lines[most - 1][:-1]
        return [*lines[: most - 1], lines[most - 1] + "…"]
    attempts = [_break(text, narrower) for narrower in np.arange(room, room / 2, -0.5)]
    return max((attempt for attempt in attempts if len(attempt) == len(lines)), key=_evenness)


def text_height(lines: int, size: float) -> float:
    """Inches that lines of text take."""
    return lines * size * LEADING / 72


def _break(text: str, room: float) -> list[str]:
    lines, line = [], ""
    for piece in _pieces(text):
        if line and _ems(line + piece.rstrip()) > room and piece not in NEVER_FIRST:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    return [*lines, line.rstrip()] if line else lines


def _evenness(lines: list[str]) -> tuple[int, float]:
    """Lines that end with a mark, then shortness of the longest line: the more the better."""
    return sum(line[-1] in NEVER_FIRST for line in lines[:-1]), -max(map(_ems, lines), default=0)


def _pieces(text: str) -> Iterator[str]:
    """What must not be broken: a Latin word with the space behind it (if short), a part of a file name, or one other
    character."""
    word = ""
    for character in text:
        if character.isascii() and not character.isspace() and len(word) < 12:
            word += character
            if character in "/_-":
                yield word
                word = ""
            continue
        if character.isspace():
            yield word + " "
            word = ""
            continue
        if word:
            yield word
        word = character if character.isascii() else ""
        if not word:
            yield character
    if word:
        yield word


def _ems(text: str) -> float:
    return sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.56 for character in text)

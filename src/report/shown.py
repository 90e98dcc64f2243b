"""Examples and confusion matrices of a report, as its evaluations wrote them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.data.decoding import read_bytes
from src.data.errors import DataError
from src.data.image import open_rgb
from src.data.schema import MATCH_CASES
from src.report.comparison import scroll
from src.report.glyphs import FIRST
from src.report.html import Content, Markup, data_uri, tag
from src.report.plots import NUMBERED
from src.report.runs import Evaluation, Run

MOST_BYTES = 3 << 20  # of images and audio: the page is one file to send around
OPENED = 6  # sheets; of more only the first of each evaluation is open
WIDTH = 1100  # pixels of a figure file
AS_MATRICES = {"matching.png", "classes.png"}  # figure files of what is a table here
NOTE = (
    "Examples stand evenly apart over the split: they are not the best. Audio that was stored as log-mels has been "
    "reconstructed from them and sounds rougher than it did."
)


def examples_section(runs: Sequence[Run]) -> Markup | None:
    """The sheets of each evaluation; of one by an earlier version, which wrote none, its figure files."""
    room, parts = Room(MOST_BYTES), []
    shown = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    many = sum(len(evaluation.examples) for _, evaluation in shown) > OPENED
    for run, evaluation in shown:
        sheets = [sheet for sheet in evaluation.examples if isinstance(sheet, dict)]
        found = [_sheet(sheet, room, opened=not many or not at) for at, sheet in enumerate(sheets)]
        found = [part for part in found if part is not None] if sheets else _figures(evaluation.folder, room)
        if found:
            parts += [tag("h3", run.name, tag("span", f"split {evaluation.label}", class_="of")), *found]
    if not parts:
        return None
    if room.refused:
        left = f"Left out beyond {MOST_BYTES >> 20} MB: {room.refused} sheets. Report fewer runs to see them."
        parts.append(tag("p", left, class_="problems"))
    return Markup(tag("p", NOTE, class_="note") + "".join(parts))


class Room:
    """How much of the page's size is left for media.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.left, self.refused = most, 0

    def take(self, size: int) -> bool:
        """Whether so much still fits; then it is taken."""
        if size > self.left:
            self.refused += 1
            return False
        self.left -= size
        return True


def matrices_section(runs: Sequence[Run]) -> Markup | None:
    """What was answered to each truth: matching, and zero-shot classes."""
    parts = []
    for run in runs:
        for evaluation in run.evaluations:
            for heading, names, counts in _matrices(evaluation):
                of = tag("span", f"{run.name}, split {evaluation.label}", class_="of")
                parts += [tag("h3", heading, of), scroll(_matrix(names, counts))]
    if not parts:
        return None
    note = "Rows are the truth, columns the answer; shares of each row, the right answers on the diagonal."
    return Markup(tag("p", note, class_="note") + "".join(parts))


def _sheet(sheet: dict[str, Any], room: Room, opened: bool) -> Markup | None:
    """A sheet's rows; None if there is no room for it."""
    given = sheet.get("rows")
    rows = [row for row in given if isinstance(row, list)] if isinstance(given, list) else []
    rows = [[card for card in row if isinstance(card, dict)] for row in rows]
    if not rows or not room.take(sum(map(len, (uri for row in rows for card in row for uri in _media(card))))):
        return None
    note = tag("p", sheet["note"], class_="note") if sheet.get("note") else None
    lines = [tag("div", map(_card, row), class_="row", tabindex=0) for row in rows]
    kind = "grid-of" if len(rows) == 1 else "rows-of"
    return tag("details", tag("summary", sheet.get("title")), note, lines, class_=f"sheet {kind}", open=opened)


def _media(card: dict[str, Any]) -> list[str]:
    """The data URIs of a card: nothing is loaded from anywhere else."""
    images = card.get("images")
    return [*_uris(images if isinstance(images, list) else [], "image"), *_uris([card.get("audio")], "audio")]


def _uris(values: Sequence[Any], kind: str) -> list[str]:
    return [value for value in values if isinstance(value, str) and value.startswith(f"data:{kind}/")]


def _card(card: dict[str, Any]) -> Markup:
    head, text, detail, right = (card.get(key) for key in ("head", "text", "detail", "right"))
    uris = _media(card)
    images = [tag("img", src=uri, alt=text or head or "") for uri in _uris(uris, "image")]
    audio = [tag("audio", src=uri, controls=True, preload="metadata") for uri in _uris(uris, "audio")]
    judged = "right" if right is True else "wrong" if right is False else ""
    mark = tag("span", "✓ " if right else "✗ ", class_="mark") if judged else None
    content: Content = tag("p", mark, text, class_="text" if images else "text said", lang=_language(text))
    kinds = ["example", "query" if head == "query" else "", judged]
    return tag(
        "div",
        tag("p", head, class_="head") if head and head != "query" else None,
        images,
        audio,
        content if text else mark,
        tag("p", detail, class_="detail", lang=_language(detail)) if detail else None,
        class_=" ".join(filter(None, kinds)),
    )


def _language(text: Any) -> str | None:
    """Chinese, where there is any: which of the forms of a Han character is shown depends on it."""
    return "zh" if any(ord(character) >= FIRST for character in str(text)) else None


def _figures(folder: Path, room: Room) -> list[Markup]:
    """An evaluation's figure files at a smaller size."""
    found = []
    for path in sorted(folder.glob("figures/*.png")):
        uri = "" if path.name in AS_MATRICES else _reduced(path)
        if uri and room.take(len(uri)):
            picture = tag("img", src=uri, alt=path.stem, class_="figure")
            found.append(tag("details", tag("summary", path.stem.replace("_", " ")), picture, open=True))
    return found


def _reduced(path: Path) -> str:
    """A figure as a data URI; empty if it cannot be read."""
    try:
        image = open_rgb(read_bytes(path, "figure"), str(path))
    except DataError:
        return ""
    image.thumbnail((WIDTH, 4 * WIDTH))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=75)
    return data_uri("image/webp", file.getvalue())


def _matrices(evaluation: Evaluation) -> list[tuple[str, list[str], list[list[int]]]]:
    """Heading, names and counts [truth][answer] of those that are whole."""
    zero_shot = evaluation.section("zero_shot")
    recall = zero_shot.get("recall")  # of the classes of which something was read: earlier versions tell no others
    labels = zero_shot.get("labels") or (sorted(recall) if isinstance(recall, dict) else [])
    found = [
        ("Which of text, image and audio belong together", list(MATCH_CASES), evaluation.section("masked")),
        ("Zero-shot classes", labels, zero_shot),
    ]
    return [
        (heading, names, measured["confusion"])
        for heading, names, measured in found
        if _is_square(measured.get("confusion"), len(names))
    ]


def _is_square(counts: Any, side: int) -> bool:
    if not isinstance(counts, list) or not counts or len(counts) != side:
        return False
    return all(isinstance(row, list) and len(row) == side and all(isinstance(n, int) for n in row) for row in counts)


def _matrix(names: list[str], counts: list[list[int]]) -> Markup:
    few = len(names) <= NUMBERED
    head = tag("tr", tag("th", "truth, answer →"), [tag("th", name, scope="col") for name in names])
    body = []
    for name, row in zip(names, counts, strict=True):
        cells = []
        for answer, count in zip(names, row, strict=True):
            part = count / max(1, sum(row))
            told = f"{name} answered as {answer}: {count} of {sum(row)}"
            style = f"background:rgba(var(--heat),{0.85 * part:.2f})"
            dark = "full" if part > 0.6 else None
            cells.append(tag("td", f"{part:.2f}" if few else None, style=style, title=told, class_=dark))
        body.append(tag("tr", tag("th", f"{name} ({sum(row)})", scope="row"), cells))
    return tag("table", tag("thead", head), tag("tbody", body), class_="matrix" if few else "matrix many")

"""The report of runs: one HTML file that needs nothing else and sends nothing."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from src.files import write_text
from src.report.comparison import environment_section, metrics_section, settings_section
from src.report.curves import curves_section
from src.report.glyphs import font_face
from src.report.html import Markup, tag
from src.report.measures import Measure, headlines
from src.report.page import printable
from src.report.runs import Run, read_runs
from src.report.shown import examples_section, matrices_section
from src.report.warned import findings, warnings_section
from src.report.words import sentences, share, title

HERE = Path(__file__).resolve().parent
SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Run]], Markup | None]], ...] = (
    ("summary", "Summary", lambda runs: tag("div", map(_card, range(len(runs)), runs), class_="cards")),
    ("warnings", "Warnings", warnings_section),
    ("curves", "Curves", curves_section),
    ("metrics", "Metrics", metrics_section),
    ("examples", "Examples", examples_section),
    ("matrices", "Confusion", matrices_section),
    ("configuration", "Configuration", settings_section),
    ("environment", "Environment", environment_section),
)


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Writes the report of run folders; returns where.

    Raises:
        ReportError: a path holds no run.
        OSError: the file cannot be written.
    """
    write_text(output, page(read_runs(paths)))
    return output


def page(runs: Sequence[Run]) -> str:
    """The whole document."""
    script = (HERE / "report.js").read_text(encoding="utf-8")
    parts = [(name, heading, section(runs)) for name, heading, section in SECTIONS]
    parts = [part for part in parts if part[2] is not None]
    links = [tag("a", heading, href=f"#{name}") for name, heading, _ in parts]
    body = tag("body", _header(runs), tag("nav", tag("div", links)), tag("main", map(_section, parts)))
    head = _head(title(list(runs)), script, font_face(printable(body)))
    html = tag("html", head, body, tag("script", Markup(script)), lang="en")
    return printable(f"<!doctype html>\n{html}\n")


def _head(heading: str, script: str, fonts: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # nothing is loaded from anywhere, and no script runs but this page's own
    policy = "default-src 'none'; img-src data:; media-src data:; font-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{digest}'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Report: {heading}"),
        tag("style", Markup(fonts + (HERE / "report.css").read_text(encoding="utf-8"))),
    )


def _header(runs: Sequence[Run]) -> Markup:
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    return tag("header", tag("h1", title(list(runs))), tag("p", f"{count}. OPT, an omni-perception pre-trainer."))


def _section(part: tuple[str, str, Markup]) -> Markup:
    name, heading, content = part
    return tag("section", tag("h2", heading), content, id=name)


def _card(place: int, run: Run) -> Markup:
    """A run in words, its main metrics as bars with a mark at chance, and what of it is missing."""
    swatch = tag("span", class_=f"swatch b{place % 6}")
    bars = [_bar(row, label) for label, row in _main(run)]
    problems = tag("div", [tag("p", problem) for problem in run.problems], class_="problems") if run.problems else None
    text = [tag("p", sentence) for sentence in sentences(run)]
    count = len(findings(run)) if run.config else 0
    if count:
        text.append(tag("p", tag("a", f"{count} warning{'s' if count > 1 else ''}", href="#warnings"), class_="weak"))
    return tag("article", tag("h3", swatch, run.name), text, tag("div", bars, class_="bars"), problems, class_="card")


def _main(run: Run) -> list[tuple[str, Measure]]:
    """What was measured, and the numbers by which it is judged."""
    several = len(run.evaluations) > 1
    return [
        (f"{row.section}{f', split {evaluation.label}' if several else ''}", row)
        for evaluation in run.evaluations
        for row in headlines(evaluation.rows)
    ]


def _bar(row: Measure, section: str) -> Markup:
    chance = "" if row.chance is None else f", chance {share(row.chance)}"
    scale = None
    if 0 <= row.value <= 1 and row.chance is not None and 0 <= row.chance <= 1:
        mark = tag("s", style=f"left:calc({100 * row.chance:.1f}% - 1px)")
        scale = tag("i", tag("u", style=f"width:{100 * row.value:.1f}%"), mark)
    return tag("div", tag("b", share(row.value)), row.name, tag("small", f"{section}{chance}"), scale, class_="bar")

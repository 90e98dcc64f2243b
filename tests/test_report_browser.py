"""A report in a real browser: from disk, without the network, with curves that answer the pointer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.report.document import write_report
from src.report.examples import RATE, Card, ExampleBook
from tests.browser import MISSING, Visit, browser_page, running_browser
from tests.test_run_report import EVIL, make_run

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the page is not opened: no {', '.join(MISSING)} here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs with examples: their address."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name, f"seed={seed}", steps=12) for seed, name in enumerate(("one", "two"))]
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    book = ExampleBook()
    found = [Card("红底，左边一只猫", (image,), right=True), Card(EVIL, (image,), detail=EVIL, right=False)]
    book.add(EVIL, [[Card("左边两个月亮", (image,), lambda: wave, "query"), *found]], EVIL)
    book.save(runs[0] / "eval-test" / "examples.json")
    return write_report(runs, folder / "report.html").as_uri()


@pytest.fixture
def visit(browser: Any, report: str) -> Iterator[Visit]:
    with browser_page(browser, report) as found:
        yield found
    assert not found.outside and not found.complaints


def panel(visit: Visit, title: str) -> Any:
    heading = visit.page.locator("figcaption", has_text=re.compile(f"^{title}$"))
    return visit.page.locator("figure.panel").filter(has=heading)


def path(visit: Visit, title: str, kind: str = "mean", run: int = 0) -> str:
    return panel(visit, title).locator(f"path.{kind}").nth(run).get_attribute("d")


def point(visit: Visit, title: str, share: float) -> None:
    """Moves the pointer over a plot, to a share of the width that its curves have: 50 and 12 pixels are margins."""
    chart = panel(visit, title).locator("svg")
    width = chart.bounding_box()["width"]
    chart.hover(position={"x": 50 + (width - 62) * share, "y": 60})


def test_it_opens_from_disk_and_draws_every_curve(visit: Visit) -> None:
    assert visit.page.title() == "Report: one, two"
    for title in ("total", "mlm", "matching", "learning rate", "samples a second"):
        assert panel(visit, title).locator("path.mean").count() == 2
    assert path(visit, "mlm", "raw").count("L") == 11


def test_the_pointer_shows_the_values_of_its_step(visit: Visit) -> None:
    point(visit, "mlm", 4 / 12)
    tip = panel(visit, "mlm").locator(".tip")
    said = tip.inner_text()
    assert "step 4" in said and "one" in said and "two" in said
    assert said.count("0.75") == 2  # 3 / 4, of both runs
    inside = panel(visit, "mlm").bounding_box()
    shown = tip.bounding_box()
    assert inside["x"] <= shown["x"] and shown["x"] + shown["width"] <= inside["x"] + inside["width"]
    visit.page.mouse.move(5, 5)
    assert tip.count() == 0


def test_arrow_keys_move_from_step_to_step(visit: Visit) -> None:
    chart = panel(visit, "mlm").locator("svg")
    chart.focus()
    chart.press("ArrowLeft")
    assert "step 12" in panel(visit, "mlm").locator(".tip").inner_text()
    chart.press("ArrowLeft")
    assert "step 11" in panel(visit, "mlm").locator(".tip").inner_text()


def smooth(visit: Visit, weight: float) -> None:
    visit.page.locator("#smooth").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", weight
    )


def test_smoothing_changes_what_was_measured_and_not_what_was_set(visit: Visit) -> None:
    rate, measured = path(visit, "learning rate"), path(visit, "mlm", "raw")
    smooth(visit, 0)
    assert path(visit, "mlm") == measured
    smooth(visit, 0.9)
    assert path(visit, "mlm") != measured and path(visit, "mlm", "raw") == measured
    assert path(visit, "learning rate") == rate
    # the mean of the first two values: weights 0.9 and 1, which a start from zero would make far less
    expected = (0.9 * 3.0 + 1.5) / 1.9
    point(visit, "mlm", 2 / 12)
    assert f"mean {expected:.4g}" in panel(visit, "mlm").locator(".tip").inner_text()


def test_the_mean_of_a_thinned_curve_is_that_of_what_was_logged(browser: Any, tmp_path: Path) -> None:
    """Every tenth of 10,000 values is a peak, which a stretch's extremes show five times as often as it is."""
    run = make_run(tmp_path / "long", steps=10_000)
    lines = [json.dumps({"step": step, "loss/mlm": 1.0 if step % 10 else 10.0}) for step in range(1, 10_001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    mean = 0.0
    for value in (1.0 if step % 10 else 10.0 for step in range(1, 10_001)):
        mean = 0.98 * mean + 0.02 * value
    with browser_page(browser, write_report([run], tmp_path / "report.html").as_uri()) as found:
        smooth(found, 0.98)
        point(found, "mlm", 1.0)
        said = panel(found, "mlm").locator(".tip").inner_text()
    assert abs(float(re.search(r"mean ([\d.]+)", said)[1]) - mean) < 0.15, said


def test_a_logarithmic_scale_is_for_losses(visit: Visit) -> None:
    loss, rate = path(visit, "mlm"), path(visit, "learning rate")
    visit.page.locator("#log").check()
    assert path(visit, "mlm") != loss and path(visit, "learning rate") == rate


def test_a_run_can_be_hidden(visit: Visit) -> None:
    button = visit.page.locator("button[data-run='0']")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert panel(visit, "mlm").locator("path.mean").count() == 1
    button.click()
    assert panel(visit, "mlm").locator("path.mean").count() == 2


def test_audio_plays_and_chinese_has_glyphs(visit: Visit) -> None:
    seconds = visit.page.locator("audio").first.evaluate(
        """async (audio) => {
            audio.muted = true;
            const known = new Promise((done) => { audio.onloadedmetadata = audio.onerror = done; });
            if (!(audio.duration > 0)) await known;
            await audio.play();
            return audio.duration;
        }"""
    )
    assert seconds == pytest.approx(2, abs=0.2)  # MP3 has whole frames, and silence before the first
    assert visit.page.evaluate("document.fonts.ready.then(() => [...document.fonts].map((font) => font.status))") == [
        "loaded"
    ]
    assert visit.page.locator(".example img").first.evaluate("image => image.naturalWidth") == 64


LUMINANCE = """(selector) => {
    const colour = getComputedStyle(document.querySelector(selector))[%r].match(/[\\d.]+/g).map((text) => text / 255);
    const [r, g, b] = colour.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""


@pytest.mark.parametrize("width", [1280, 400])
def test_both_schemes_are_legible_on_wide_and_narrow_screens(browser: Any, report: str, width: int) -> None:
    papers = []
    for scheme in ("light", "dark"):
        with browser_page(browser, report, width, scheme) as visit:
            paper = visit.page.evaluate(LUMINANCE % "backgroundColor", "body")
            papers.append(paper)
            for selector in ("body", ".note", "nav a", "td small.same"):  # WCAG 2.2: 4.5 for text
                ink = visit.page.evaluate(LUMINANCE % "color", selector)
                assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, (scheme, selector)
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width  # wide tables scroll inside
        assert not visit.outside and not visit.complaints
    assert papers[0] > 0.8 and papers[1] < 0.05

"""The page in a real browser: what a visitor types, uploads and sees, and that nothing comes from elsewhere.

WEB_SCREENSHOTS names a folder that keeps what the browser showed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from src.files import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BACKGROUND = ("background-networking", "component-update", "sync")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += [f"--disable-{service}" for service in BACKGROUND]
GALLERY = ROOT / "assets" / "gallery"
QUERY = "红底，左边一只猫，右边两个苹果"  # of 01.png and speech.wav
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the page is not tested: no {', '.join(MISSING)} here")


class Server:
    """``tools/web.py`` in a process of its own, on any free port."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / "tools" / "web.py"), "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+)/", line)
        if not found:
            self.process.kill()
            pytest.fail(f"the page is not served: {line}{self.process.communicate()[1][-3000:]}")
        self.url = found[1]

    def stop(self, sent: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what it said."""
        self.process.send_signal(sent)
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    code, said = server.stop()
    assert code == 0 and said.endswith("stopped\n") and "Traceback" not in said, said


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server: Server, browser, tmp_path: Path) -> Iterator:
    """Opens the page; what it asks of other machines is blocked, and fails the test."""
    outside: list[str] = []
    contexts = []

    def block(route) -> None:
        if route.request.url.startswith((server.url, "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def open_page(path: str = "/zh/", width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, locale="zh-CN")
        context.set_default_timeout(20_000)
        contexts.append(context)
        context.route("**/*", block)
        page = context.new_page()
        page.goto(server.url + path)
        page.wait_for_selector("#search-text textarea")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside


def keep(page, name: str, tmp_path: Path) -> None:
    """A screenshot of the whole page."""
    folder = Path(os.environ.get("WEB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def cards(page, tab: str) -> list[str]:
    """Names of what an answer shows, the best first."""
    page.wait_for_selector(f"#{tab}-answer .opt-card")
    return page.eval_on_selector_all(f"#{tab}-answer .opt-card", "cards => cards.map(card => card.dataset.name)")


def test_a_text_finds_the_image_and_the_speech(visit, tmp_path: Path) -> None:
    page = visit("/?lang=zh")
    assert page.url.endswith("/zh/")
    page.fill("#search-text textarea", QUERY)
    page.press("#search-text textarea", "Enter")
    names = cards(page, "search")
    assert names[0] == "01.png" and names[-1] == "speech.wav" and len(names) == 8 + 1
    glyphs = page.evaluate("document.fonts.check('16px \"OPT CJK\"', '文')")
    assert glyphs and page.locator("#search-answer audio").count() == 1
    keep(page, "search", tmp_path)


def test_an_image_and_speech_find_what_belongs_to_them(visit) -> None:
    page = visit("/en/")
    page.get_by_role("tab", name="Image", exact=True).click()
    page.set_input_files("#search-image input[type=file]", GALLERY / "05.png")
    assert cards(page, "search")[0] == "05.png"
    page.get_by_role("tab", name="Speech", exact=True).click()
    page.set_input_files("#search-speech input[type=file]", GALLERY / "speech.wav")
    page.wait_for_selector("#search-answer .opt-card:first-child[data-name='01.png']")

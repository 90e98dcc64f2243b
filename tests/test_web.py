"""The page in a real browser: what a visitor types, uploads and sees, and that nothing comes from elsewhere.

WEB_SCREENSHOTS names a folder that keeps what the browser showed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from src.files import ROOT
from tests.browser import MISSING, Visit, browser_page, running_browser

GALLERY = ROOT / "assets" / "gallery"
QUERY = "红底，左边一只猫，右边两个苹果"  # of 01.png and speech.wav
LACKING = ([] if find_spec("gradio") else ["gradio"]) + MISSING

pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"the page is not tested: no {', '.join(LACKING)} here")


class Server:
    """``tools/web.py`` in a process of its own, on any free port."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        command = [sys.executable, str(ROOT / "tools" / "web.py"), "--port", "0", *arguments]
        environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        line = self.process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+)/", line)
        if not found:
            self.process.kill()
            pytest.fail(f"the page is not served: {line}{self.process.communicate()[1][-3000:]}")
        self.url = found[1]

    def stop(self, sent: int) -> tuple[int, str]:
        """Exit code and what it said."""
        self.process.send_signal(sent)
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint with a text decoder that was not trained."""
    folder = tmp_path_factory.mktemp("web") / "other"
    shutil.copytree(ROOT / "pretrained" / "opt_demo", folder)
    weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name, values in weights.items():
        if name.startswith("text_decoder.") and values.ndim > 1:
            weights[name] = rng.normal(0, values.std(), values.shape).astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    (folder / "outliers.safetensors").unlink()  # it was measured for the trained weights
    return folder


@pytest.fixture(scope="module")
def server(other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What visitors upload is gone when it ends, and it ends quietly."""
    temporary = tmp_path_factory.mktemp("uploads")
    server = Server("--compare", str(other), temporary=temporary)
    yield server
    code, said = server.stop(signal.SIGTERM)
    assert code == 0 and said.endswith("stopped\n") and "Traceback" not in said, said
    assert not list(temporary.glob("opt-web-*"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as found:
        yield found


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; what it asks of other machines is blocked, and fails the test."""
    visits: list[Visit] = []
    with ExitStack() as opened:

        def open_page(language: str, width: int = 1280, scheme: str = "light") -> Any:
            locale = {"zh": "zh-CN", "en": "en-GB"}[language]
            options = {"here": (server.url, "data:", "blob:"), "timeout": 180_000, "locale": locale}
            address = f"{server.url}/?lang={language}"
            visits.append(opened.enter_context(browser_page(browser, address, width, scheme, **options)))
            page = visits[-1].page
            page.wait_for_selector("#search-text textarea")
            assert page.url.endswith(f"/{language}/")
            return page

        yield open_page
    assert not any(visit.outside for visit in visits)


def keep(page, name: str, tmp_path: Path) -> None:
    """A screenshot of the whole page."""
    folder = Path(os.environ.get("WEB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def upload(page, where: str, file: Path) -> None:
    """Waits until the server has it."""
    page.set_input_files(f"#{where} input[type=file]", file)
    page.wait_for_selector(f"#{where} :is(img, audio)", state="attached")
    page.wait_for_load_state("networkidle")


def shown(page, tab: str, number: int = 1) -> list[str]:
    """Names of what an answer shows, the best first."""
    page.wait_for_selector(f"#{tab}-answer .opt-card:nth-child({number})")
    return page.eval_on_selector_all(f"#{tab}-answer .opt-card", "cards => cards.map(card => card.dataset.name)")


def fits(page) -> bool:
    """Nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_text_finds_the_image_and_the_speech(visit, tmp_path: Path) -> None:
    page = visit("zh")
    page.fill("#search-text textarea", QUERY)
    page.press("#search-text textarea", "Enter")
    page.wait_for_selector("#search-answer .opt-rank")
    names = shown(page, "search")
    assert names[0] == "01.png" and "speech.wav" in names[8:]
    assert page.evaluate("document.fonts.check('16px \"OPT CJK\"', '文')")
    assert page.locator("#search-answer audio").count() == len(names) - 8 and fits(page)
    keep(page, "search", tmp_path)
    page.fill("#search-text textarea", "  ")
    page.click("#search-button")
    assert page.wait_for_selector("#search-answer .opt-error").inner_text() == "错误 请先输入文本。"


def test_an_image_and_speech_find_what_belongs_to_them(visit, tmp_path: Path) -> None:
    page = visit("en")
    open_tab(page, "Image")
    page.set_input_files("#search-image input[type=file]", GALLERY / "05.png")
    page.wait_for_selector("#search-answer .opt-card:first-child[data-name='05.png'] .opt-rank")
    open_tab(page, "Speech")
    page.set_input_files("#search-speech input[type=file]", GALLERY / "speech.wav")
    page.wait_for_selector("#search-answer .opt-card:first-child[data-name='01.png'] .opt-rank")
    (tmp_path / "broken.png").write_bytes(b"no image")
    open_tab(page, "Image")
    page.click("#search-image button[aria-label='Remove Image']")
    page.set_input_files("#search-image input[type=file]", tmp_path / "broken.png")
    said = page.wait_for_selector("#search-answer .opt-error").inner_text()
    assert said.startswith("Error broken.png: not a readable image")


def test_a_narrow_dark_page_describes_and_generates(visit, tmp_path: Path) -> None:
    page = visit("zh", width=400, scheme="dark")
    assert fits(page)
    open_tab(page, "描述")
    upload(page, "describe-image", GALLERY / "01.png")
    upload(page, "describe-speech", GALLERY / "speech.wav")
    page.click("#describe-button")
    page.wait_for_selector("#describe-answer .opt-told:nth-child(2)")
    said = page.locator("#describe-answer .opt-told p").all_inner_texts()
    assert said == ["红色背景上，左边有一只猫，右边有两个苹果", QUERY] and fits(page)
    keep(page, "describe-narrow-dark", tmp_path)
    open_tab(page, "问答")
    assert "这个模型没有此功能。" in page.locator("#tab-ask, [role=tabpanel]").locator(".opt-note").first.inner_text()
    open_tab(page, "生成")
    page.fill("#generate-text textarea", QUERY)
    page.fill("#generate-samples input[type=number]", "2")
    page.click("#generate-button")
    page.wait_for_selector("#generate-answer .opt-card:nth-child(2)")
    assert page.locator("#generate-answer a[download='generated-2.png']").count() == 1 and fits(page)


def test_words_show_what_they_are_about(visit, tmp_path: Path) -> None:
    page = visit("en")
    open_tab(page, "Match")
    page.fill("#match-text textarea", "红色背景上，左边有一只猫，右边有两个苹果")
    page.click("#match-button")
    assert "Give either an image or an audio clip." in page.wait_for_selector("#match-answer .opt-error").inner_text()
    upload(page, "match-image", GALLERY / "01.png")
    page.click("#match-button")
    page.wait_for_selector("#match-answer .opt-words")
    lit = "[...document.querySelectorAll('.opt-stage img + img')].map(image => getComputedStyle(image).opacity)"
    labels = page.locator("#match-answer label")
    for word in ("苹果", "猫"):
        labels.filter(has_text=word).click()
        at = labels.all_inner_texts().index(f"{word}\n100%")
        page.wait_for_function(f"{lit}.every((opacity, number) => opacity == (number == {at}))")
    keep(page, "match", tmp_path)


def test_two_models_side_by_side_and_two_visitors_at_once(visit, tmp_path: Path) -> None:
    pages = [visit("en", scheme="dark"), visit("zh")]
    for page, name in zip(pages, ("Compare", "对比"), strict=True):
        open_tab(page, name)
        page.fill("#compare-text textarea", QUERY)
    for page in pages:
        page.click("#compare-button", no_wait_after=True)
    for page in pages:
        page.wait_for_selector("#compare-answer section:nth-child(2) .opt-card")
        names = (
            "sections => sections.map(part => [...part.querySelectorAll('.opt-card')].map(card => card.dataset.name))"
        )
        trained, untrained = page.eval_on_selector_all("#compare-answer section", names)
        assert trained[0] == "01.png" and len(trained) == len(untrained) and trained != untrained
    keep(pages[0], "compare-dark", tmp_path)


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """Also before it is ready."""
    command = [sys.executable, str(ROOT / "tools" / "web.py"), "--port", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not list(tmp_path.glob("opt-web-*")):  # its folder of uploads
        assert process.poll() is None
    time.sleep(0.5)  # it loads the model
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and said.endswith("stopped\n") and "Traceback" not in said, said
    assert not list(tmp_path.glob("opt-web-*"))

"""A real browser for tests of pages: nothing reaches another machine, and what its console says is kept."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BACKGROUND = ("background-networking", "component-update", "sync")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += [f"--disable-{service}" for service in BACKGROUND]
HERE = ("file:", "data:", "blob:", "about:", "http://127.0.0.1:")  # addresses on this machine
TIMEOUT = 20_000  # milliseconds that a test waits for something to appear

# what a machine lacks for these tests
MISSING = ([] if find_spec("playwright") else ["playwright"]) + ([] if CHROMIUM else ["chromium"])


@dataclass
class Visit:
    """An open page.

    Attributes:
        page: Playwright's.
        outside: what it asked of other machines; it was not sent.
        complaints: errors and warnings of its console, scripts that failed, dialogs that opened.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def running_browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browser_page(
    browser: Any,
    url: str,
    width: int = 1280,
    scheme: str = "light",
    here: tuple[str, ...] = HERE,
    timeout: int = TIMEOUT,
    **options: Any,
) -> Iterator[Visit]:
    """Opens a page in a profile of its own.

    Args:
        browser: of :func:`running_browser`.
        scheme: light or dark.
        here: how addresses begin that it may load.
        timeout: milliseconds that a test waits for something to appear.
        options: others of Playwright's ``new_context``.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    context.set_default_timeout(timeout)
    visit = Visit(context.new_page())

    def block(route: Any) -> None:
        if route.request.url.startswith(here):
            route.continue_()
        else:
            visit.outside.append(route.request.url)
            route.abort()

    def refuse(dialog: Any) -> None:
        visit.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            visit.complaints.append(message.text)

    context.route("**/*", block)
    visit.page.on("console", note)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("dialog", refuse)
    try:
        visit.page.goto(url)
        yield visit
    finally:
        context.close()

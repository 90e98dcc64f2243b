"""Serves the page: on this machine alone unless told otherwise, with nothing from elsewhere."""

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from src.errors import UserError
from src.files import ROOT
from src.web.worker import Worker

FONT = ROOT / "assets" / "fonts" / "NotoSansSC-Regular-subset.otf"
STYLE = Path(__file__).with_name("style.css")
MOST_UPLOAD = 20 << 20  # bytes of a file
BACKLOG = 128  # calls that may wait
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REQUIREMENTS = "requirements-web.txt"
POLICY = (  # of what a browser may load and run: only what comes from here
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class WebError(UserError):
    """The page cannot be served."""


def check_packages() -> None:
    """Raises WebError where the page's own requirements are not installed."""
    if find_spec("gradio") is None:
        raise WebError(f"gradio is not installed: pip install -r {REQUIREMENTS}")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; 0 is any free port.

    Who calls before the models are loaded waits, and a second page on the port is told before it loads any.

    Raises:
        WebError: the port is in use, or host or port are none of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise WebError(f"--host {host} --port {port}: ports are 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise WebError(f"port {port} of {host} is in use: choose another with --port, or 0 for any") from None
        raise WebError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches the address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warn_of(host: str) -> None:
    """Says on stderr who may use a page that is not of this machine alone."""
    if not is_loopback(host):
        said = f"--host {host}: whoever reaches this machine may use the page; there is no password and no encryption"
        print(f"warning: {said}", file=sys.stderr)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends what runs inside as Ctrl-C does: quietly, and with everything cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uploads() -> Iterator[Path]:
    """A folder of what visitors upload, which goes with the page."""
    with tempfile.TemporaryDirectory(prefix="opt-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no telemetry
        yield Path(folder)


def load_service(worker: Worker, *given):
    """As :func:`src.web.service.open_service`, in the worker's thread, where also MindSpore is imported.

    A signal then meets the main thread, which waits, and not an import that would be left half done.
    """

    def load():
        from src.web.service import open_service  # imports MindSpore, for which mistakes need not wait

        return open_service(worker, *given)

    return worker.call(load)


def make_app(service, hosts: Sequence[str] = LOOPBACK):
    """The page in every language as an ASGI application.

    Args:
        service: a :class:`src.web.service.Service`.
        hosts: names that browsers may call it by: another site's page cannot pretend to be this one.
    """
    import gradio as gr
    from fastapi import FastAPI, Request
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import FileResponse, RedirectResponse, Response

    from src.web.page import build
    from src.web.texts import LANGUAGES, language_of

    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.get("/")
    def home(request: Request, lang: str | None = None) -> RedirectResponse:
        return RedirectResponse(f"/{language_of(lang, request.headers.get('accept-language', ''))}/")

    @app.get("/font.otf")
    def font() -> FileResponse:
        return FileResponse(FONT, media_type="font/otf", headers={"cache-control": "max-age=86400"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask for one; there is none

    for language in LANGUAGES:
        gr.mount_gradio_app(
            app,
            build(service, language),
            f"/{language}",
            footer_links=[],
            run_history=False,
            max_file_size=MOST_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=theme(),
            css_paths=[STYLE],
        )
    return _with_headers(app)


def theme():
    """Fonts of the visitor's machine; for Chinese the repository's own where it has none."""
    import gradio as gr

    mono = ("ui-monospace", "monospace")
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=("OPT CJK", "system-ui", "sans-serif"), font_mono=mono
    )


def _with_headers(app):
    """The application, whose answers forbid the browser to load anything from elsewhere."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def wrapped(scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


def serve(service, bound: socket.socket) -> None:
    """Serves the page until a signal ends it."""
    import uvicorn

    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    app = make_app(service, (*LOOPBACK, host, f"[{host}]") if is_loopback(host) else "*")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, lifespan="on")
    print(f"http://{shown}:{port}/  (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[bound])

"""HTML that cannot be broken by what it shows: text is escaped where an element is made."""

import base64
from collections.abc import Iterable
from html import escape
from typing import Any

VOID = {"br", "img", "input", "meta"}  # elements without content

Content = Any  # Markup, text, a number, None (nothing), or an iterable of these


class Markup(str):
    """HTML as it stands; any other text is escaped."""


def tag(name: str, /, *content: Content, **attributes: Any) -> Markup:
    """An element. ``class_`` is class and ``data_value`` is data-value; False and None leave an attribute out."""
    pairs = [_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False]
    start = f"<{name}{''.join(pairs)}>"
    return Markup(start if name in VOID else f"{start}{join(content)}</{name}>")


def join(content: Content) -> Markup:
    """The content one after the other, text escaped."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str) or not isinstance(content, Iterable):
        return Markup(escape(str(content)))
    return Markup("".join(map(join, content)))


def data_uri(kind: str, content: bytes) -> str:
    """A file inside the page, ``kind`` such as image/png: it is loaded from nowhere."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'

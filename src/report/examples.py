"""What an evaluation shows, as data: sheets of examples with their images and audio, in one file beside its metrics.

    examples.json   {"sheets": [{"title", "note", "rows": [[card, …], …]}, …]}
    card            {"head", "images": [data URI, …], "audio": data URI, "text", "detail", "right"}, what it has of them

Media are small: images of at most 160 pixels as WebP, audio as MP3, which every browser plays.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.files import write_json
from src.report.html import data_uri

SIDE = 160  # pixels of an image at most
RATE = 16000  # Hz of audio: one that MP3 has
QUALITY = 0.6  # of MP3's variable rate, from 0 (largest) to 1; speech of 3 s takes about 12 kB


@dataclass(frozen=True)
class Card:
    """An example, or a part of one.

    Attributes:
        text: what it says: a caption, a transcript.
        images: uint8 [h, w, 3].
        audio: makes float32 [n] at RATE, when it is written.
        head: above it, such as "query".
        detail: below it, such as a reference.
        right: whether it is; None where that is no question.
    """

    text: str = ""
    images: Sequence[np.ndarray] = ()
    audio: Callable[[], np.ndarray] | None = None
    head: str = ""
    detail: str = ""
    right: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As examples.json has it."""
        found: dict[str, Any] = {"head": self.head, "text": self.text, "detail": self.detail}
        found["images"] = list(map(image_uri, self.images))
        found["audio"] = "" if self.audio is None else audio_uri(self.audio())
        found = {key: value for key, value in found.items() if value}
        return found if self.right is None else found | {"right": self.right}


@dataclass(frozen=True)
class Sheet:
    """Rows of cards; one row of many is a grid."""

    title: str
    note: str
    rows: Sequence[Sequence[Card]]


@dataclass
class ExampleBook:
    """Collects the sheets of an evaluation; their media are made when they are saved, if they are."""

    sheets: list[Sheet] = field(default_factory=list)

    def add(self, title: str, rows: Sequence[Sequence[Card]], note: str = "") -> None:
        self.sheets.append(Sheet(title, note, rows))

    def save(self, path: Path) -> None:
        plain = [
            {"title": sheet.title, "note": sheet.note, "rows": [[card.plain() for card in row] for row in sheet.rows]}
            for sheet in self.sheets
        ]
        write_json(path, {"sheets": plain})


def image_uri(pixels: np.ndarray) -> str:
    """An image uint8 [h, w, 3], reduced if it is large."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _uri("image/webp", lambda file: image.save(file, "WEBP", quality=80, method=4))


def audio_uri(wave: np.ndarray) -> str:
    """A wave float32 [n] at RATE; empty where this machine has no libsndfile that writes MP3 (1.1 or later)."""
    try:
        import soundfile
    except (ImportError, OSError):  # an evaluation does not fail for want of it
        return ""
    if "MP3" not in soundfile.available_formats():
        return ""
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": QUALITY}
    return _uri("audio/mpeg", lambda file: soundfile.write(file, wave, RATE, **options))


def _uri(kind: str, write: Any) -> str:
    file = io.BytesIO()
    write(file)
    return data_uri(kind, file.getvalue())

"""Answers as HTML. Whatever comes from visitors, files or models is escaped; images stand in the page itself."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from src.data.image import encode_png
from src.data.schema import AUDIO, IMAGE, TEXT
from src.inference.media import Medium
from src.inference.results import Generated, Hit
from src.report import html
from src.web.service import Found, Made, Shown, Told, pixels

Words = Mapping[str, str]  # of src.web.texts

KINDS = {IMAGE: "images", AUDIO: "clips", TEXT: "texts"}
SPECTRUM = "magma"
MOST_AUDIO = 2 << 20  # bytes of a clip that can be heard in the page
SOUND = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}


def message(words: Words, kind: str, text: str) -> str:
    """A sentence: ``kind`` is note or error."""
    return f'<p class="opt-{kind}" role="status"><b>{words[kind]}</b> {escape(text)}</p>'


def notes(words: Words, said: Iterable[str]) -> str:
    return "".join(message(words, "note", text) for text in dict.fromkeys(said))


def found(words: Words, shown: Shown, result: Found) -> str:
    """Hits of every modality."""
    parts = [notes(words, result.notes)]
    counts = {kind: len(places) for kind, places in shown.offered.groups().items()}
    for kind, hits in sorted(result.hits.items(), key=lambda row: list(KINDS).index(row[0])):
        title = words[KINDS[kind]].format(count=counts[kind])
        parts += [f"<h3>{title}</h3>", grid(hit_card(words, shown, rank, hit) for rank, hit in enumerate(hits, 1))]
    parts.append(f'<p class="opt-small">{words["scores"]}</p>')
    return "".join(parts)


def hit_card(words: Words, shown: Shown, rank: int, hit: Hit) -> str:
    medium, share = hit.medium, f"{hit.share:.0%}"
    name = "" if medium.modality == TEXT else f"<span>{escape(Path(medium.name).name)}</span>"
    return (
        f'<figure class="opt-card" data-name="{escape(Path(medium.name).name)}">{body(shown, medium)}'
        f'<figcaption><span class="opt-rank">{rank}</span>{name}'
        f'<div class="opt-bar" style="--share: {hit.share:.4f}"></div>'
        f"<small>{words['share']} {share} · {words['cosine']} {hit.cosine:.2f}</small></figcaption></figure>"
    )


def told(labels: Sequence[str], result: Told, words: Words) -> str:
    """Generated texts, each under its label."""
    rows = zip(labels, result.texts, strict=True)
    lines = "".join(f'<div class="opt-told"><small>{label}</small><p>{escape(text)}</p></div>' for label, text in rows)
    return notes(words, result.notes) + lines


def made(words: Words, result: Made) -> str:
    """Generated images, the best first if they were scored, each with what saves it."""
    return notes(words, result.notes) + grid(_samples(words, result.generated))


def _samples(words: Words, generated: Generated) -> Iterable[str]:
    for rank, (image, score) in enumerate(zip(generated.images, generated.known_scores, strict=True), 1):
        file = f"generated-{rank}.png"
        said = f"<small>{words['score']} {score:.3f}</small>" if score is not None else ""
        yield (
            f'<figure class="opt-card">{picture(image, file)}<figcaption><span class="opt-rank">{rank}</span>'
            f'<a download="{file}" href="{data_uri(image)}">{words["save"]}</a>{said}</figcaption></figure>'
        )


def offered(words: Words, shown: Shown) -> str:
    """What the gallery holds, before a visitor asks."""
    counts = {kind: len(places) for kind, places in shown.offered.groups().items()}
    said = " · ".join(words[name].format(count=counts[kind]) for kind, name in KINDS.items() if kind in counts)
    first = (
        f'<figure class="opt-card">{body(shown, medium)}'
        f"<figcaption><span>{escape(Path(medium.name).name)}</span></figcaption></figure>"
        for medium in shown.first
    )
    return f"<h3>{words['gallery']} · {said}</h3>{grid(first)}"


def body(shown: Shown, medium: Medium) -> str:
    """A text, an image, or an audio clip of the gallery that can be heard."""
    if medium.modality == TEXT:
        return f"<blockquote>{escape(medium.content)}</blockquote>"
    seen = picture(pixels(shown, medium), Path(medium.name).name)
    return seen + player(Path(medium.name)) if medium.modality == AUDIO else seen


def pair(columns: Iterable[tuple[str, str]]) -> str:
    """Answers of several models side by side, each under its name."""
    parts = "".join(f"<section><h2>{escape(name)}</h2>{answer}</section>" for name, answer in columns)
    return f'<div class="opt-pair">{parts}</div>'


def grid(cards: Iterable[str]) -> str:
    return f'<div class="opt-grid">{"".join(cards)}</div>'


def picture(image: np.ndarray | None, name: str) -> str:
    """An image uint8 [S, S, 3], or a spectrogram [M, N]."""
    if image is None:
        return f"<blockquote>{escape(name)}</blockquote>"
    kind = "opt-sound" if image.ndim == 2 else "opt-image"
    return f'<img class="{kind}" alt="{escape(name)}" src="{data_uri(image)}">'


def data_uri(image: np.ndarray) -> str:
    """A PNG in the page itself: no file of a gallery is served."""
    if image.ndim == 2:  # low frequencies at the bottom
        levels = (image.T - image.min()) / max(float(np.ptp(image)), 1e-9)
        image = (colormaps[SPECTRUM](levels)[::-1, :, :3] * 255).astype(np.uint8)
    return html.data_uri("image/png", encode_png(image))


def player(file: Path) -> str:
    """What plays a clip of the gallery, if browsers can and it is not large."""
    try:
        content = file.read_bytes() if file.stat().st_size <= MOST_AUDIO else b""
    except OSError:  # it has gone since the gallery was encoded
        content = b""
    if not content or file.suffix.lower() not in SOUND:
        return ""
    return f'<audio controls src="{html.data_uri(SOUND[file.suffix.lower()], content)}"></audio>'

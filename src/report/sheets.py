"""Sheets to look at: what was retrieved, captioned, generated and reconstructed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.report.page import GREY, INK, LINE, PANEL, Page, save, style, text_height, wrap

# Okabe and Ito 2008; a mark says the same without colour
RIGHT, WRONG = "#009E73", "#D55E00"
RIGHT_MARK, WRONG_MARK = "✓", "×"
HEAD = 10.5  # points of what stands above columns
AUDIO_COLOURS = (PANEL, "#c3d0ea", "#3566b8", INK)  # from silence to the loudest
MARGIN = 0.45
SHOWN_HITS = 5
CAPTION, REFERENCE, SCORE, LABEL = 10.5, 9.0, 10.0, 9.0  # points of what stands below and in images

# text, image [S, S, 3] or log-mel [M, N]; the latter two with or without a caption
Query = str | np.ndarray | tuple[np.ndarray, str]
Hit = tuple[str, np.ndarray | None, float, bool]  # label, image, score, relevant


def retrieval_sheet(out_png: str | Path, title: str, rows: Sequence[tuple[Query, Sequence[Hit]]]) -> None:
    """Each row a query at the left and its best five hits, the relevant ones framed green.

    Args: rows: (query, hits) with images uint8 [S, S, 3] and log-mels uint8 [M, N]; a hit without image is its label.
    """
    if not rows:
        raise ValueError("retrieval sheet: no queries to draw")
    query_width, hit_width, gap, head = 2.7, 1.5, 0.22, 1.15
    lefts = [MARGIN + query_width + 0.45 + place * (hit_width + gap) for place in range(SHOWN_HITS)]
    heights = [_row_height(hits) for _, hits in rows]
    with style():
        page = Page(lefts[-1] + hit_width + MARGIN, head + sum(heights) + MARGIN - 0.3)
        page.text(MARGIN, 0.32, title, 16)
        known = any(hit[3] for _, hits in rows for hit in hits)  # of a user's files nobody knows what is relevant
        page.text(
            MARGIN,
            0.82,
            f"query; relevant hits: green, {RIGHT_MARK}" if known else "query; hits with shares",
            HEAD,
            GREY,
        )
        for place, left in enumerate(lefts[: max(len(hits) for _, hits in rows)]):
            page.text(left, 0.82, str(place + 1), HEAD, GREY)
        top = head
        for (query, hits), height in zip(rows, heights, strict=True):
            _draw_query(page, MARGIN, top, query_width, _hit_height(hits), query)
            for left, hit in zip(lefts, hits, strict=False):
                _draw_hit(page, left, top, hit_width, _hit_height(hits), hit)
            top += height
        save(page.figure, out_png)


def caption_sheet(out_png: str | Path, title: str, items: Sequence[tuple[np.ndarray, str, str, bool]]) -> None:
    """A grid of images with the caption written for each, marked as right or wrong, and the reference in grey.

    Args: items: (image uint8 [S, S, 3], prediction, reference, right).
    """
    if not items:
        raise ValueError("caption sheet: no captions to draw")
    lines = -(-len(items) // 6)
    columns = -(-len(items) // lines)
    side, gap, head = 1.6, 0.28, 0.95
    below = 0.12 + text_height(3, CAPTION) + 0.04 + text_height(3, REFERENCE)
    width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
    with style():
        page = Page(width, head + lines * (side + below + 0.12) + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        page.text(MARGIN, 0.66, f"{RIGHT_MARK} green: right; {WRONG_MARK} orange: not; grey: a reference", HEAD, GREY)
        for at, (image, prediction, reference, right) in enumerate(items):
            left = MARGIN + at % columns * (side + gap)
            top = head + at // columns * (side + below + 0.12)
            colour = RIGHT if right else WRONG
            page.panel(left, top, side, side, "white", colour, 2)
            page.image(left, top, side, side, image)
            text = wrap(f"{RIGHT_MARK if right else WRONG_MARK} {prediction or '–'}", side, CAPTION, 3)
            page.text(left, top + side + 0.12, "\n".join(text), CAPTION, colour)
            under = top + side + 0.16 + text_height(len(text), CAPTION)
            page.text(left, under, "\n".join(wrap(reference, side, REFERENCE, 3)), REFERENCE, GREY)
        save(page.figure, out_png)


def generation_sheet(
    out_png: str | Path, title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray | None]]]
) -> None:
    """Each row a caption at the left and, under their names, the images uint8 [S, S, 3] that go with it."""
    side, gap, head, wide = 1.4, 0.25, 1.1, 2.7
    with style():
        width = 2 * MARGIN + wide + len(names) * (side + gap)
        page = Page(width, head + len(rows) * (side + gap) + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        for place, name in enumerate(names):
            page.text(MARGIN + wide + place * (side + gap), 0.8, name, HEAD, GREY)
        for at, (caption, images) in enumerate(rows):
            top = head + at * (side + gap)
            page.text(MARGIN, top + 0.1, "\n".join(wrap(caption, wide - 0.3, 11, 5)), 11)
            for place, image in enumerate(images):
                if image is not None:
                    page.image(MARGIN + wide + place * (side + gap), top, side, side, image)
        save(page.figure, out_png)


def album_sheet(out_png: str | Path, title: str, items: Sequence[tuple[np.ndarray, str]]) -> None:
    """Images uint8 [S, S, 3] in rows of eight, each above its text."""
    if not items:
        raise ValueError("album sheet: no images to draw")
    columns, side, gap, head = min(8, len(items)), 1.4, 0.22, 0.95
    height = side + 0.14 + text_height(3, LABEL) + 0.12
    width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
    with style():
        page = Page(width, head + -(-len(items) // columns) * height + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        for at, (image, text) in enumerate(items):
            left, top = MARGIN + at % columns * (side + gap), head + at // columns * height
            page.image(left, top, side, side, image)
            page.text(left, top + side + 0.1, "\n".join(wrap(text, side, LABEL, 3)), LABEL)
        save(page.figure, out_png)


def reconstruction_sheet(out_png: str | Path, title: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Images in rows, each row above what is decoded from its codes.

    Args: pairs: (original, reconstruction), both uint8 [S, S, 3].
    """
    if not pairs:
        raise ValueError("reconstruction sheet: no images to draw")
    columns = min(8, len(pairs))
    side, gap, head = 1.2, 0.1, 0.95
    pair = 2 * side + gap + 0.3
    with style():
        width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
        page = Page(width, head + -(-len(pairs) // columns) * pair + 0.15)
        page.text(MARGIN, 0.32, title, 16)
        page.text(MARGIN, 0.66, "above: the image; below: what is decoded from its codes", HEAD, GREY)
        for at, images in enumerate(pairs):
            left, top = MARGIN + at % columns * (side + gap), head + at // columns * pair
            for place, image in enumerate(images):
                page.image(left, top + place * (side + gap), side, side, image)
        save(page.figure, out_png)


def spectrogram_image(clip: np.ndarray) -> np.ndarray:
    """A log-mel uint8 [M, N] as an image [N, M, 3]: time to the right, pitch upwards, padding cut off."""
    from matplotlib.colors import LinearSegmentedColormap

    spoken = np.flatnonzero(clip.any(axis=1))
    clip = clip[: spoken[-1] + 1] if len(spoken) else clip
    return LinearSegmentedColormap.from_list("audio", AUDIO_COLOURS)(clip.T[::-1], bytes=True)[..., :3]


def _hit_height(hits: Sequence[Hit]) -> float:
    """Inches of a hit's frame: a square for images, a card for text."""
    return 1.5 if any(hit[1] is not None for hit in hits[:SHOWN_HITS]) else 1.2


def _row_height(hits: Sequence[Hit]) -> float:
    images = any(hit[1] is not None for hit in hits[:SHOWN_HITS])
    below = text_height(1, SCORE) + (0.02 + text_height(3, LABEL) if images else 0)
    return _hit_height(hits) + 0.2 + max(below, text_height(2, LABEL)) + 0.22


def _draw_query(page: Page, left: float, top: float, width: float, height: float, query: Query) -> None:
    media, caption = (None, query) if isinstance(query, str) else query if isinstance(query, tuple) else (query, "")
    if media is None:
        page.panel(left, top, width, height, PANEL, PANEL, 0)
        lines = wrap(caption, width - 0.4, 12, 5)
        page.text(left + 0.2, top + (height - text_height(len(lines), 12)) / 2, "\n".join(lines), 12)
        return
    if media.ndim == 2:
        page.image(left, top, width, height, spectrogram_image(media))
    else:
        page.panel(left, top, height, height, "white", LINE, 1)
        page.image(left, top, height, height, media)
    page.text(left, top + height + 0.1, "\n".join(wrap(caption, width, LABEL, 2)), LABEL)


def _draw_hit(page: Page, left: float, top: float, width: float, height: float, hit: Hit) -> None:
    label, image, score, relevant = hit
    page.panel(left, top, width, height, "white", RIGHT if relevant else LINE, 2.5 if relevant else 1)
    mark = f"  {RIGHT_MARK}" if relevant else ""
    page.text(left, top + height + 0.1, f"{score:.2f}{mark}", SCORE, RIGHT if relevant else GREY)
    if image is None:
        page.text(left + 0.12, top + 0.12, "\n".join(wrap(label, width - 0.24, CAPTION, 4)), CAPTION)
        return
    page.image(left, top, width, height, image)
    page.text(left, top + height + 0.12 + text_height(1, SCORE), "\n".join(wrap(label, width, LABEL, 3)), LABEL, INK)

"""Figures of a run: loss curves, and sheets that show what was retrieved and what was written under pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.evaluation.page import GREY, INK, LINE, PANEL, Page, new_figure, save, style, text_height, wrap

RIGHT, WRONG = "#23924f", "#c8452f"
RUN_COLOURS = ("#3566b8", "#d9733a", "#23924f", "#8a5fb5", "#b8953a", "#3a9fb8")
SOUND_COLOURS = (PANEL, "#c3d0ea", "#3566b8", INK)  # from silence to the loudest
MARGIN = 0.45
SHOWN_HITS = 5

Query = str | np.ndarray | tuple[np.ndarray, str]  # text, a picture [S, S, 3] or a sound [M, N]; with its caption
Hit = tuple[str, np.ndarray | None, float, bool]  # label, picture, score, relevant


def loss_curves(metrics: str | Path | Sequence[str | Path], out_png: str | Path) -> None:
    """One panel for each loss, one colour for each run (named by its folder): the values and their running mean.

    Args: metrics: files of lines with "step", "loss" and "loss/<name>". Where a step was repeated after a run was
    resumed, the later line counts.
    """
    paths = [Path(path) for path in ([metrics] if isinstance(metrics, str | Path) else metrics)]
    runs = {name: _read_losses(path) for name, path in zip(_run_names(paths), paths, strict=True)}
    panels = sorted({loss for losses in runs.values() for loss in losses}, key=lambda loss: (loss != "loss", loss))
    panels = panels[1:] if len(panels) == 2 else panels  # the total of one loss says nothing new
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with style():
        figure = new_figure(3.6 * columns + 0.8, 2.6 * lines + 0.5)
        for at, loss in enumerate(panels):
            axis = figure.add_subplot(lines, columns, at + 1)
            axis.set_title(_loss_name(loss), loc="left", fontsize=11, pad=10)
            for (_, losses), colour in zip(runs.items(), _colours(len(runs)), strict=True):
                if loss in losses:
                    _curve(axis, *losses[loss], colour)
            axis.set_ylim(bottom=min(0, axis.dataLim.y0))
            axis.set_xlim(0, axis.dataLim.x1 * 1.14)  # room for the number at the end
            if at >= len(panels) - columns:
                axis.set_xlabel("step", color=GREY)
        _legend(figure, list(runs))
        figure.tight_layout(pad=1.4, w_pad=2.5, h_pad=2.0, rect=(0, 0, 1, 1 - 0.4 / figure.get_figheight()))
        save(figure, out_png)


def retrieval_sheet(out_png: str | Path, title: str, rows: Sequence[tuple[Query, Sequence[Hit]]]) -> None:
    """Each row a query at the left and its best five hits, the relevant ones framed green.

    Args: rows: (query, hits) with pictures uint8 [S, S, 3] and sounds uint8 [M, N]; a hit without picture is its label.
    """
    if not rows:
        raise ValueError("retrieval sheet: no queries to draw")
    query_width, hit_width, gap, head = 2.7, 1.5, 0.22, 1.15
    lefts = [MARGIN + query_width + 0.45 + place * (hit_width + gap) for place in range(SHOWN_HITS)]
    heights = [_row_height(hits) for _, hits in rows]
    with style():
        page = Page(lefts[-1] + hit_width + MARGIN, head + sum(heights) + MARGIN - 0.3)
        page.text(MARGIN, 0.32, title, 16)
        page.text(MARGIN, 0.86, "query", 8.5, GREY)
        for place, left in enumerate(lefts):
            page.text(left, 0.86, str(place + 1), 8.5, GREY)
        top = head
        for (query, hits), height in zip(rows, heights, strict=True):
            _draw_query(page, MARGIN, top, query_width, _hit_height(hits), query)
            for left, hit in zip(lefts, hits, strict=False):
                _draw_hit(page, left, top, hit_width, _hit_height(hits), hit)
            top += height
        save(page.figure, out_png)


def caption_sheet(out_png: str | Path, title: str, items: Sequence[tuple[np.ndarray, str, str, bool]]) -> None:
    """A grid of pictures with the caption written for each, green if right and red if wrong, and the reference in grey.

    Args: items: (picture uint8 [S, S, 3], prediction, reference, right).
    """
    if not items:
        raise ValueError("caption sheet: no captions to draw")
    lines = -(-len(items) // 6)
    columns = -(-len(items) // lines)
    side, gap, head = 1.6, 0.28, 0.95
    below = 0.12 + text_height(3, 9.5) + 0.04 + text_height(3, 7.5)
    width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
    with style():
        page = Page(width, head + lines * (side + below + 0.12) + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        for at, (picture, prediction, reference, right) in enumerate(items):
            left = MARGIN + at % columns * (side + gap)
            top = head + at // columns * (side + below + 0.12)
            colour = RIGHT if right else WRONG
            page.panel(left, top, side, side, "white", colour, 2)
            page.picture(left, top, side, side, picture)
            text = wrap(prediction, side, 9.5, 3) or ["–"]
            page.text(left, top + side + 0.12, "\n".join(text), 9.5, colour)
            under = top + side + 0.16 + text_height(len(text), 9.5)
            page.text(left, under, "\n".join(wrap(reference, side, 7.5, 3)), 7.5, GREY)
        save(page.figure, out_png)


def drawing_sheet(
    out_png: str | Path, title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray | None]]]
) -> None:
    """Each row a caption at the left and, under their names, the pictures uint8 [S, S, 3] that go with it."""
    side, gap, head, wide = 1.4, 0.25, 1.1, 2.7
    with style():
        width = 2 * MARGIN + wide + len(names) * (side + gap)
        page = Page(width, head + len(rows) * (side + gap) + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        for place, name in enumerate(names):
            page.text(MARGIN + wide + place * (side + gap), 0.84, name, 8.5, GREY)
        for at, (caption, pictures) in enumerate(rows):
            top = head + at * (side + gap)
            page.text(MARGIN, top + 0.1, "\n".join(wrap(caption, wide - 0.3, 11, 5)), 11)
            for place, picture in enumerate(pictures):
                if picture is not None:
                    page.picture(MARGIN + wide + place * (side + gap), top, side, side, picture)
        save(page.figure, out_png)


def album_sheet(out_png: str | Path, title: str, items: Sequence[tuple[np.ndarray, str]]) -> None:
    """Pictures uint8 [S, S, 3] in rows of eight, each above its text."""
    if not items:
        raise ValueError("album sheet: no pictures to draw")
    columns, side, gap, head = min(8, len(items)), 1.4, 0.22, 0.95
    height = side + 0.14 + text_height(3, 8) + 0.12
    width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
    with style():
        page = Page(width, head + -(-len(items) // columns) * height + 0.2)
        page.text(MARGIN, 0.32, title, 16)
        for at, (picture, text) in enumerate(items):
            left, top = MARGIN + at % columns * (side + gap), head + at // columns * height
            page.picture(left, top, side, side, picture)
            page.text(left, top + side + 0.1, "\n".join(wrap(text, side, 8, 3)), 8)
        save(page.figure, out_png)


def confusion_matrix(out_png: str | Path, title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """A square of shares: a row for each truth, a column for each answer, the right answers on the diagonal.

    Args: counts: [truth][answer].
    """
    table = np.asarray(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    with style():
        figure = new_figure(6.4, 5.4)
        axis = figure.add_subplot()
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)  # its lines would cross the numbers
        axis.set_title(title, loc="left", fontsize=11, pad=10)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), [f"{name} ({int(n)})" for name, n in zip(names, table.sum(1), strict=True)])
        axis.set_xlabel("answer", color=GREY)
        axis.set_ylabel("truth", color=GREY)
        for (row, column), share in np.ndenumerate(shares):
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.6 else INK)
        figure.tight_layout(pad=1.4)
        save(figure, out_png)


def reconstruction_sheet(out_png: str | Path, title: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Pictures in rows, each row above what was drawn from its codes.

    Args: pairs: (original, reconstruction), both uint8 [S, S, 3].
    """
    if not pairs:
        raise ValueError("reconstruction sheet: no pictures to draw")
    columns = min(8, len(pairs))
    side, gap, head = 1.2, 0.1, 0.95
    pair = 2 * side + gap + 0.3
    with style():
        width = max(2 * MARGIN + columns * (side + gap) - gap, 5.0)
        page = Page(width, head + -(-len(pairs) // columns) * pair + 0.15)
        page.text(MARGIN, 0.32, title, 16)
        for at, pictures in enumerate(pairs):
            left, top = MARGIN + at % columns * (side + gap), head + at // columns * pair
            for place, picture in enumerate(pictures):
                page.picture(left, top + place * (side + gap), side, side, picture)
        save(page.figure, out_png)


def _read_losses(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each loss in a metrics file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such metrics file")
    values: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when a run was killed
        for key, value in entry.items():
            if (key == "loss" or key.startswith("loss/")) and "step" in entry:
                values.setdefault(key, {})[entry["step"]] = value
    if not values:
        raise ValueError(f"{path}: no line holds a step and a loss")
    return {
        key: (np.array(sorted(series)), np.array([series[step] for step in sorted(series)]))
        for key, series in values.items()
    }


def _curve(axis: Any, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    """The values pale, their centred running mean bold, and the last mean as a number at its end."""
    from matplotlib.patheffects import withStroke

    reach = max(1, len(values) // 40)
    smooth = [values[max(0, at - reach) : at + reach + 1].mean() for at in range(len(values))]
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth, color=colour, linewidth=1.8, solid_capstyle="round")
    axis.annotate(
        f"{smooth[-1]:.3g}",
        (steps[-1], smooth[-1]),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _run_names(paths: Sequence[Path]) -> list[str]:
    """The folder of each run, or the whole path where folders of one name meet."""
    names = [path.resolve().parent.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _loss_name(key: str) -> str:
    return "total" if key == "loss" else key.removeprefix("loss/").replace("_", " ")


def _colours(count: int) -> list[str]:
    return [RUN_COLOURS[at % len(RUN_COLOURS)] for at in range(count)]


def _legend(figure: Any, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in _colours(len(names))]
    figure.legend(handles, names, loc="upper left", ncols=len(names), frameon=False, fontsize=10)


def _hit_height(hits: Sequence[Hit]) -> float:
    """Inches of a hit's frame: a square for pictures, a card for text."""
    return 1.5 if any(hit[1] is not None for hit in hits[:SHOWN_HITS]) else 1.2


def _row_height(hits: Sequence[Hit]) -> float:
    pictures = any(hit[1] is not None for hit in hits[:SHOWN_HITS])
    return _hit_height(hits) + (0.3 + text_height(3, 8) if pictures else 0.2 + text_height(1, 8)) + 0.22


def _draw_query(page: Page, left: float, top: float, width: float, height: float, query: Query) -> None:
    media, caption = (None, query) if isinstance(query, str) else query if isinstance(query, tuple) else (query, "")
    if media is None:
        page.panel(left, top, width, height, PANEL, PANEL, 0)
        lines = wrap(caption, width - 0.4, 12, 5)
        page.text(left + 0.2, top + (height - text_height(len(lines), 12)) / 2, "\n".join(lines), 12)
        return
    if media.ndim == 2:
        page.picture(left, top, width, height, _spectrogram(media))
    else:
        page.panel(left, top, height, height, "white", LINE, 1)
        page.picture(left, top, height, height, media)
    page.text(left, top + height + 0.1, "\n".join(wrap(caption, width, 8.5, 3)), 8.5)


def _draw_hit(page: Page, left: float, top: float, width: float, height: float, hit: Hit) -> None:
    label, picture, score, relevant = hit
    page.panel(left, top, width, height, "white", RIGHT if relevant else LINE, 2.5 if relevant else 1)
    page.text(left, top + height + 0.1, f"{score:.2f}", 8, RIGHT if relevant else GREY)
    if picture is None:
        page.text(left + 0.12, top + 0.12, "\n".join(wrap(label, width - 0.24, 9.5, 5)), 9.5)
        return
    page.picture(left, top, width, height, picture)
    page.text(left, top + height + 0.12 + text_height(1, 8), "\n".join(wrap(label, width, 8, 2)), 8, INK)


def _spectrogram(sound: np.ndarray) -> np.ndarray:
    """A log-mel uint8 [M, N] as a picture [N, M, 3]: time to the right, pitch upwards, padding cut off."""
    from matplotlib.colors import LinearSegmentedColormap

    spoken = np.flatnonzero(sound.any(axis=1))
    sound = sound[: spoken[-1] + 1] if len(spoken) else sound
    return LinearSegmentedColormap.from_list("sound", SOUND_COLOURS)(sound.T[::-1], bytes=True)[..., :3]

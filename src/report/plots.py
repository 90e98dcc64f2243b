"""Plots of a run: loss curves, a confusion matrix, and values of several systems side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.report.page import GREY, INK, new_figure, printable, save, style

NUMBERED = 16  # classes of a confusion matrix whose shares are written, and not only shown by colour
# Okabe and Ito 2008: told apart with every kind of colour vision; each has a marker of its own as well
SAFE = (("#0072B2", "o"), ("#D55E00", "s"), ("#56B4E9", "^"), ("#E69F00", "D"), ("#555555", "X"))
RUN_COLOURS = ("#3566b8", "#d9733a", "#23924f", "#8a5fb5", "#b8953a", "#3a9fb8")


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


def confusion_matrix(out_png: str | Path, title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """A square of shares: a row for each truth, a column for each answer, the right answers on the diagonal.

    Args: counts: [truth][answer].
    """
    table = np.asarray(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(24.0, max(5.4, 0.32 * len(names)))
    with style():
        figure = new_figure(side + 1, side)
        axis = figure.add_subplot()
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)  # its lines would cross the numbers
        axis.set_title(title, loc="left", fontsize=11, pad=10)
        names = [printable(name) for name in names]
        few = len(names) <= NUMBERED
        turned = {"rotation": 30, "ha": "right"} if few else {"rotation": 90, "fontsize": 7}
        axis.set_xticks(range(len(names)), names, **turned)
        rows = [f"{name} ({int(n)})" for name, n in zip(names, table.sum(1), strict=True)]
        axis.set_yticks(range(len(names)), rows, **({} if few else {"fontsize": 7}))
        axis.set_xlabel("answer", color=GREY)
        axis.set_ylabel("truth", color=GREY)
        for (row, column), share in np.ndenumerate(shares) if few else ():
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.6 else INK)
        figure.tight_layout(pad=1.4)
        save(figure, out_png)


@dataclass(frozen=True)
class Series:
    """Values of one system, one in each row of a plot."""

    name: str
    values: Sequence[float]


def dot_plot(
    out_png: str | Path, title: str, rows: Sequence[str], series: Sequence[Series], axis_name: str, chance: float
) -> None:
    """A line for each row, a marker on it for each system, and a dashed line at chance; values are shares of 1."""
    with style():
        figure = new_figure(7.6, 1.7 + 0.36 * len(rows))
        axis = figure.add_subplot()
        axis.set_title(title, loc="left", fontsize=11, pad=10)
        places = np.arange(len(rows))
        line = axis.axvline(chance, color=GREY, linestyle="--", linewidth=1)
        drawn = [
            axis.scatter(one.values, places, s=38, color=colour, marker=marker, zorder=3)
            for one, (colour, marker) in zip(series, SAFE * (1 + len(series) // len(SAFE)), strict=False)
        ]
        axis.set_yticks(places, [printable(name) for name in rows])
        axis.invert_yaxis()
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(axis_name, color=GREY)
        names = [*(one.name for one in series), f"chance ({chance:.2f})"]
        figure.legend([*drawn, line], names, loc="lower center", ncols=3, frameon=False)
        figure.tight_layout(pad=1.4, rect=(0, 0.62 / figure.get_figheight(), 1, 1))
        save(figure, out_png)


def _read_losses(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each loss in a metrics file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such metrics file")
    values: dict[str, dict[int, float]] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # it was being written when a run was killed, or is damaged
            continue
        if not isinstance(entry, dict):
            continue
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
    found = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return list(map(printable, found))


def _loss_name(key: str) -> str:
    return "total" if key == "loss" else key.removeprefix("loss/").replace("_", " ")


def _colours(count: int) -> list[str]:
    return [RUN_COLOURS[at % len(RUN_COLOURS)] for at in range(count)]


def _legend(figure: Any, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in _colours(len(names))]
    figure.legend(handles, names, loc="upper left", ncols=len(names), frameon=False, fontsize=10)

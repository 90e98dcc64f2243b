"""Plots of a run: loss curves, a confusion matrix, and values of several systems side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.report.log_lines import read_lines
from src.report.page import GREY, INK, new_figure, printable, save, style

CURVES_TITLE = "Losses: what was logged (pale), its running mean and where that ends (bold)"
NUMBERED = 16  # classes of a confusion matrix whose shares are written, and not only shown by colour
# Okabe and Ito 2008: told apart with every kind of colour vision; each has a marker of its own as well
SAFE = (("#0072B2", "o"), ("#D55E00", "s"), ("#56B4E9", "^"), ("#E69F00", "D"), ("#555555", "X"))
# the same palette; lines that differ in dashes, too, are told apart in grey
RUN_STYLES = (
    ("#0072B2", "solid"),
    ("#D55E00", (0, (5, 1.5))),
    ("#009E73", (0, (1.5, 1))),
    ("#CC79A7", (0, (6, 1.5, 1.5, 1.5))),
    ("#E69F00", (0, (3, 1.5))),
    ("#56B4E9", (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5))),
)
NUMBER_HEIGHT = 12  # points that a number at the end of a curve takes
WIDE = 30  # times the smallest last value: runs that end further apart share a panel on a logarithmic axis


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
        figure = new_figure(max(6.0, 3.6 * columns + 0.8), 2.6 * lines + 0.8)
        for at, loss in enumerate(panels):
            axis = figure.add_subplot(lines, columns, at + 1)
            shown = {run: losses[loss] for run, losses in runs.items() if loss in losses}
            logarithmic = _is_wide(list(shown.values()))
            name = _loss_name(loss) + " (log scale)" * logarithmic
            axis.set_title(name, loc="left", fontsize=11, pad=10)
            for one, look in zip(runs, _styles(len(runs)), strict=True):
                if one in shown:
                    _curve(axis, *shown[one], *look)
            if logarithmic:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
            else:
                axis.set_ylim(bottom=min(0, axis.dataLim.y0))
            axis.set_xlim(0, axis.dataLim.x1 * 1.14)  # room for the number at the end
            if at >= len(panels) - columns:
                axis.set_xlabel("step", color=GREY)
            if at % columns == 0:
                axis.set_ylabel("loss", color=GREY)
        height = figure.get_figheight()
        figure.text(0.1 / figure.get_figwidth(), 1 - 0.12 / height, CURVES_TITLE, va="top", fontsize=11)
        _legend(figure, list(runs), 1 - 0.38 / height)
        figure.tight_layout(pad=1.4, w_pad=2.5, h_pad=2.0, rect=(0, 0, 1, 1 - 0.72 / height))
        for axis in figure.axes:
            _part_numbers(axis)
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
        drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)  # its lines would cross the numbers
        axis.set_title(title, loc="left", fontsize=max(11, side), pad=10)
        names = [printable(name) for name in names]
        few = len(names) <= NUMBERED
        size = {} if few else {"fontsize": min(10.0, 58 * side / len(names))}  # what a cell has room for
        turned = {"rotation": 30, "ha": "right"} if few else {"rotation": 90}
        axis.set_xticks(range(len(names)), names, **turned, **size)
        rows = [f"{name} ({int(n)})" for name, n in zip(names, table.sum(1), strict=True)]
        axis.set_yticks(range(len(names)), rows, **size)
        axis.set_xlabel("answer", color=GREY)
        axis.set_ylabel("truth (items)", color=GREY)
        if not few:  # there is no room for numbers
            bar = figure.colorbar(drawn, ax=axis, fraction=0.02, pad=0.02, ticks=(0, 0.5, 1))
            bar.set_label("share of the truth's items", color=GREY)
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
    for _, entry in read_lines(path.read_bytes())[0]:
        for key, value in entry.items():
            if key == "loss" or key.startswith("loss/"):
                values.setdefault(key, {})[entry["step"]] = value
    if not values:
        raise ValueError(f"{path}: no line holds a step and a loss")
    return {
        key: (np.array(sorted(series)), np.array([series[step] for step in sorted(series)]))
        for key, series in values.items()
    }


def _is_wide(shown: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether one of several curves would lie on the axis below another."""
    ends = [values[-1] for _, values in shown]
    positive = all((values > 0).all() for _, values in shown)
    return bool(len(ends) > 1 and positive and max(ends) > WIDE * min(ends))


def _curve(axis: Any, steps: np.ndarray, values: np.ndarray, colour: str, dashes: Any) -> None:
    """The values pale, their centred running mean bold, and the last mean as a number at its end."""
    reach = max(1, len(values) // 40)
    smooth = [values[max(0, at - reach) : at + reach + 1].mean() for at in range(len(values))]
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth, color=colour, linewidth=1.8, linestyle=dashes)
    axis.annotate(
        f"{smooth[-1]:.3g}",
        (steps[-1], smooth[-1]),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        zorder=5,
    )


def _part_numbers(axis: Any) -> None:
    """Moves the numbers at the ends of curves up where one would cover another."""
    ends = {number: axis.transData.transform(number.xy)[1] * 72 / axis.figure.dpi for number in axis.texts}
    free = -np.inf  # in points, above the numbers so far
    for number in sorted(ends, key=ends.__getitem__):
        number.set_position((5, max(0.0, free - ends[number])))
        free = max(ends[number], free) + NUMBER_HEIGHT


def _run_names(paths: Sequence[Path]) -> list[str]:
    """The folder of each run, or the whole path where folders of one name meet."""
    names = [path.resolve().parent.name for path in paths]
    found = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return list(map(printable, found))


def _loss_name(key: str) -> str:
    return "total" if key == "loss" else key.removeprefix("loss/").replace("_", " ")


def _styles(count: int) -> list[tuple[str, Any]]:
    return [RUN_STYLES[at % len(RUN_STYLES)] for at in range(count)]


def _legend(figure: Any, names: list[str], top: float) -> None:
    from matplotlib.lines import Line2D

    looks = _styles(len(names))
    handles = [Line2D([], [], color=colour, linestyle=dashes, linewidth=2.5) for colour, dashes in looks]
    place = {"loc": "upper left", "bbox_to_anchor": (0, top), "ncols": len(names)}
    figure.legend(handles, names, **place, frameon=False, fontsize=10, handlelength=3.2)

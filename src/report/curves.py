"""The curves of a report: what report.js draws."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from src.report.html import Markup, tag
from src.report.runs import Run

# prefix of a logged name, or the name itself → heading of its panels, in their order; "" takes the others
GROUPS = {
    "loss": "Losses",
    "eval/": "Held-out metrics",
    "embeddings/": "Held-out metrics",
    "batch/": "Statistics of batches",
    "lr": "Optimisation and speed",
    "": "Other values",
}
TITLES = {
    "loss": "total",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "logit_scale": "logit scale, of the contrastive loss",
    "samples_per_second": "samples a second",
    "data_wait": "share of time without a batch",
    "best_metric": "metric of the best checkpoint",
}
TOGETHER = {key: "lr" for key in ("grad_norm", "logit_scale", "samples_per_second", "data_wait", "loss_scale")}
TOGETHER["best_metric"] = "eval/"
CHANCE, METRIC = "chance/", "eval/"  # of a held-out metric: what looking at nothing reaches, and itself
POINTS = 2000  # of a curve: more than any screen shows
EXACT = ("lr", "loss_scale")  # set, not measured: smoothing would show what never was


def panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One for each logged metric: key, group, title, a series for each run, whether it is a loss, and whether exact."""
    found: dict[str, dict[str, Any]] = {}
    for place, run in enumerate(runs):
        for key, logged in run.series.items():
            if key.startswith(CHANCE):
                continue
            values = thinned(logged)
            panel = found.setdefault(key, {"key": key, "group": _group(key), "title": _title(key), "series": []})
            panel |= {"loss": _is_loss(key), "exact": key in EXACT}
            panel["series"].append({"run": place, "x": list(values), "y": list(map(_rounded, values.values()))})
            if len(values) < len(logged) and key not in EXACT:
                means, counts = stretch_means(logged, values)
                panel["series"][-1] |= {"means": list(map(_rounded, means)), "counts": counts}
            chance = run.series.get(key.replace(METRIC, CHANCE, 1) if key.startswith(METRIC) else "")
            if chance:
                panel["series"][-1]["chance"] = [_rounded(chance.get(step)) for step in values]
    order = list(GROUPS.values())
    rank = {key: at for at, key in enumerate(found)}
    known = list(TITLES)
    return sorted(
        _without_lone_totals(found).values(),
        key=lambda panel: (
            order.index(panel["group"]),
            known.index(panel["key"]) if panel["key"] in known else len(known),
            rank[panel["key"]],
        ),
    )


def thinned(values: Mapping[int, float | None]) -> dict[int, float | None]:
    """At most POINTS of a curve: of each stretch its lowest and its highest value, so that no peak is lost."""
    if len(values) <= POINTS:
        return dict(values)
    steps, kept = list(values), set()
    for stretch in _stretches(len(steps)):
        known = [(values[steps[at]], steps[at]) for at in stretch.tolist() if values[steps[at]] is not None]
        kept |= {min(known)[1], max(known)[1]} if known else {steps[stretch[0]]}
    return {step: values[step] for step in steps if step in kept or step == steps[-1]}


def stretch_means(values: Mapping[int, float | None], kept: Collection[int]) -> tuple[list[float | None], list[float]]:
    """For each point of a thinned curve the mean of its stretch, and how many values it stands for.

    The smoothed curve is made of these: the lowest and the highest value of a stretch say nothing of its mean.
    """
    steps = list(values)
    means: list[float | None] = []
    counts: list[float] = []
    for stretch in _stretches(len(steps)):
        here = [steps[at] for at in stretch.tolist()]
        known = [values[step] for step in here if values[step] is not None]
        points = sum(step in kept for step in here)
        means += points * [sum(known) / len(known) if known else None]
        counts += points * [round(len(known) / points, 3)]
    return means, counts


def _stretches(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), POINTS // 2)


def curves_section(runs: Sequence[Run]) -> Markup | None:
    """Controls, a place for each panel, and the values as JSON."""
    shown = panels(runs)
    if not shown:
        return None
    smooth = tag("input", type="range", id="smooth", min=0, max=0.98, step=0.02, value=0.6)
    controls = tag(
        "div",
        tag("label", "Smoothing ", smooth, tag("output", "0.60", id="smooth-value")),
        tag("label", tag("input", type="checkbox", id="log"), " losses on a logarithmic scale"),
        tag("span", [_key(place, run.name) for place, run in enumerate(runs)], class_="legend"),
        class_="controls",
    )
    groups = []
    for title in dict.fromkeys(panel["group"] for panel in shown):
        places = [
            tag("figure", tag("figcaption", panel["title"]), data_panel=at, class_="panel")
            for at, panel in enumerate(shown)
            if panel["group"] == title
        ]
        groups += [tag("h3", title), tag("div", places, class_="panels")]
    hint = "Pale: as logged. Bold: exponential mean. Dotted: by chance. Not every run logs every metric."
    if any(len(values) > POINTS for run in runs for values in run.series.values()):
        hint += f" Of a curve of more than {POINTS:,} points each stretch shows its lowest and its highest value."
    noscript = tag("noscript", tag("p", "The curves need JavaScript, which this browser does not run."))
    data = {"runs": [run.name for run in runs], "panels": shown}
    return Markup(
        controls + tag("p", hint, class_="note") + noscript + "".join(groups) + json_script("curve-data", data)
    )


def json_script(name: str, value: Mapping[str, Any]) -> Markup:
    """Data for a script: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", id=name)


def _key(place: int, name: str) -> Markup:
    """A run in the legend; a click hides its curves."""
    swatch = Markup(f'<svg width="26" height="8"><path d="M0 4H26" class="s{place % 6} dash{place // 6 % 3}"/></svg>')
    return tag("button", swatch, name, type="button", data_run=place, aria_pressed="true")


def _group(key: str) -> str:
    start = TOGETHER.get(key, key)
    return next(title for prefix, title in GROUPS.items() if start == prefix or start.startswith(prefix))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _is_loss(key: str) -> bool:
    return key == "loss" or key.startswith("loss/")


def _title(key: str) -> str:
    return TITLES.get(key) or key.partition("/")[2].replace("_", " ") or key.replace("_", " ")


def _without_lone_totals(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of runs with one loss each, the total says nothing new."""
    totals = found.get("loss", {"series": []})["series"]
    parts = [line["run"] for key, panel in found.items() if key.startswith("loss/") for line in panel["series"]]
    if totals and all(parts.count(line["run"]) == 1 for line in totals):
        return {key: panel for key, panel in found.items() if key != "loss"}
    return found

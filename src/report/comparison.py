"""Runs side by side: tables of metrics with their differences, settings that differ, environments."""

from collections.abc import Mapping, Sequence
from typing import Any

from src.report.html import Content, Markup, tag
from src.report.measures import Measure
from src.report.runs import Evaluation, Run, default_settings
from src.report.words import ranks, share

MINUS = "−"


def metrics_section(runs: Sequence[Run]) -> Markup | None:
    """A table for each thing measured: evaluations side by side where they measured the same number of items."""
    columns = [(_column(run, one, runs), one) for run in runs for one in run.evaluations if one.rows]
    if not columns:
        return None
    read: dict[str, set[str]] = {}  # by split and weights: the digests of what was measured under that name
    for _, evaluation in columns:
        read.setdefault(evaluation.measured, set()).add(evaluation.data)
    found = [
        (_heading(evaluation, row, len(read[evaluation.measured]) > 1), name, row)
        for name, evaluation in columns
        for row in evaluation.rows
    ]
    tables = []
    for heading in dict.fromkeys(heading for heading, _, _ in found):
        by_run: dict[str, dict[tuple[str, str], Measure]] = {}
        for other, name, row in found:
            if other == heading:
                by_run.setdefault(name, {})[row.group, row.name] = row
        table = _one(next(iter(by_run.values()))) if len(by_run) == 1 else _several(by_run)
        of = next(iter(by_run)) if len(by_run) == 1 else ""
        title = tag("h3", heading, tag("span", of, class_="of") if of and len(columns) > 1 else None)
        tables.append(tag("div", title, scroll(table), class_="measured"))
    return Markup(tag("p", NOTE, class_="note") + tag("div", tables, class_="measures"))


NOTE = (
    "Chance is what a model reaches that looks at nothing. ◦ marks a metric that is no better. Numbers stand side by "
    "side only where the same samples of the same split and as many items were measured; the signed number is the "
    "difference from the first column, ▲ better, ▼ worse."
)


def scroll(table: Markup) -> Markup:
    """A table that scrolls where the screen is narrower."""
    return tag("div", table, class_="scroll", tabindex=0)


def plain_table(headers: Sequence[Content], rows: Sequence[Sequence[Content]]) -> Markup:
    """The first column names the rows."""
    head = tag("thead", tag("tr", [tag("th", header, scope="col") for header in headers]))
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    return tag("table", head, tag("tbody", body))


def settings_section(runs: Sequence[Run]) -> Markup | None:
    """What differs between the runs, or of a single run from the defaults; and every run's whole configuration."""
    known = [run for run in runs if run.settings]
    if not known:
        return None
    defaults = default_settings()
    if len(known) > 1:
        rows = differing([run.settings for run in known])
        title, headers = "What differs between the runs", ["setting", *(run.name for run in known)]
    else:
        pairs = differing([known[0].settings, {**known[0].settings, **defaults}])
        rows, title, headers = pairs, "What differs from the defaults", ["setting", known[0].name, "default"]
    cells = [[tag("code", key), *(tag("code", _setting(value)) for value in values)] for key, values in rows]
    shown = scroll(plain_table(headers, cells)) if rows else tag("p", "Nothing.", class_="note")
    whole = [
        tag(
            "details",
            tag("summary", f"{run.name}: the whole configuration, {len(run.settings)} settings"),
            tag("pre", tag("code", [_line(key, value, defaults) for key, value in run.settings.items()])),
        )
        for run in known
    ]
    marked = tag("p", "Settings that are not the default are bold.", class_="note")
    return Markup(tag("h3", title) + shown + tag("h3", "Resolved configurations") + marked + "".join(whole))


def differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Key and values of the settings in which not all agree; ``…`` where one has no such key."""
    keys = dict.fromkeys(key for found in settings for key in found)
    rows = [(key, [found.get(key, ...) for found in settings]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def environment_section(runs: Sequence[Run]) -> Markup:
    """Where the runs were made, as far as their folders say."""
    found = [_environment(run) for run in runs]
    rows = [[key, *(one[key] for one in found)] for key in found[0] if any(one[key] for one in found)]
    return scroll(plain_table(["", *(run.name for run in runs)], rows))


def _environment(run: Run) -> dict[str, str]:
    versions = run.evaluations[0].section("versions") if run.evaluations else {}
    data = run.state.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    digests = [str(entry.get("sha256", ""))[:12] for entry in entries]
    return {
        "folder": str(run.folder),
        "device": str(run.settings.get("runtime.device", "")),
        "mode": str(run.settings.get("runtime.mode", "")),
        "precision": str(run.settings.get("runtime.precision", "")),
        "processes": str(ranks(run)) if run.state else "",
        "seed": str(run.settings.get("seed", "")),
        "source code (git)": str(run.manifest.get("git") or ""),
        "latest checkpoint": f"step {run.state['step']}" if "step" in run.state else "",
        "training data (sha256)": ", ".join(digests),
        **{name: str(versions.get(name, "")) for name in ("python", "mindspore", "numpy")},
    }


def _heading(evaluation: Evaluation, row: Measure, telling: bool) -> str:
    """What was measured of which split; ``telling`` splits of one name apart by their samples."""
    data = f", data {evaluation.data[:8] or 'unknown'}" if telling else ""
    return f"{row.section}, split {evaluation.measured}{data}"


def _column(run: Run, evaluation: Evaluation, runs: Sequence[Run]) -> str:
    """The name of the run if there are several, and of the folder if the run has several evaluations of a split."""
    return ", ".join(filter(None, (run.name if len(runs) > 1 else "", evaluation.place))) or run.name


def _one(rows: Mapping[tuple[str, str], Measure]) -> Markup:
    """One evaluation: a line for each group and a column for each metric, or a line for each metric."""
    groups, names = (list(dict.fromkeys(key[place] for key in rows)) for place in (0, 1))
    if "" in groups or len(groups) * len(names) > len(rows):
        head = tag("tr", tag("th"), tag("th", "model", scope="col"), tag("th", "chance", scope="col"))
        body = [
            tag("tr", tag("th", _name(row), scope="row"), _value(row), tag("td", _chance([row])))
            for row in rows.values()
        ]
        return tag("table", tag("thead", head), tag("tbody", body))
    judged = [name for name in names if any(row.chance is not None for row in rows.values() if row.name == name)]
    headers = [header for name in names for header in ([name, f"{name} by chance"] if name in judged else [name])]
    head = tag("tr", tag("th"), [tag("th", header, scope="col") for header in headers])
    body = []
    for group in groups:
        cells = []
        for name in names:
            row = rows[group, name]
            cells += [_value(row), tag("td", _chance([row]))] if name in judged else [_value(row)]
        body.append(tag("tr", tag("th", group, scope="row"), cells))
    return tag("table", tag("thead", head), tag("tbody", body))


def _several(by_run: Mapping[str, Mapping[tuple[str, str], Measure]]) -> Markup:
    """A line for each metric and a column for each run, with the difference from the first."""
    names = list(by_run)
    head = tag("tr", tag("th"), [tag("th", name, scope="col") for name in names], tag("th", "chance", scope="col"))
    body = []
    for key in dict.fromkeys(key for rows in by_run.values() for key in rows):
        rows = [by_run[name].get(key) for name in names]
        there = [row for row in rows if row is not None]
        cells = [tag("td", "–") if row is None else _value(row, None if row is rows[0] else rows[0]) for row in rows]
        body.append(tag("tr", tag("th", _name(there[0]), scope="row"), cells, tag("td", _chance(there))))
    return tag("table", tag("thead", head), tag("tbody", body))


def _name(row: Measure) -> str:
    return f"{row.group}: {row.name}" if row.group else row.name


def _value(row: Measure, first: Measure | None = None) -> Markup:
    """A number with what it differs by from the first run's."""
    mark = tag("span", " ◦", title="no better than chance", class_="weak") if row.at_chance else None
    return tag("td", _text(row, row.value), mark, _difference(row, first), data_value=f"{row.value:.6g}")


def _difference(row: Measure, first: Measure | None) -> Markup | None:
    if first is None:
        return None
    change = row.value - first.value
    kind = ("worse", "same", "better")[1 + _sign(change * row.sign)]
    arrow = {"worse": " ▼", "same": "", "better": " ▲"}[kind]
    sign = {-1: MINUS, 0: "±", 1: "+"}[_sign(change)]
    return tag("small", f"{sign}{_text(row, abs(change))}{arrow}", class_=kind)


def _sign(value: float) -> int:
    return (value > 1e-9) - (value < -1e-9)


def _text(row: Measure, value: float) -> str:
    if row.name == "median rank":
        return f"{value:.1f}"
    return share(value) if abs(value) < 10 else f"{value:.2f}"


def _chance(rows: Sequence[Measure]) -> str:
    """By chance, of each run if these differ: captions are compared with the run's own at other places."""
    known = ["–" if row.chance is None else share(row.chance) for row in rows]
    return known[0] if len(set(known)) == 1 else " / ".join(known)


def _setting(value: Any) -> str:
    """A setting as YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_setting, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if value is ...:
        return "–"
    return "''" if value == "" else str(value)


def _line(key: str, value: Any, defaults: Mapping[str, Any]) -> Markup:
    text = f"{key}: {_setting(value)}"
    return tag("b", text, "\n") if defaults.get(key, ...) != value else tag("span", text, "\n")

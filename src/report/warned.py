"""The warnings of a report: what src/report/diagnosis.py finds in a run's log and in its evaluations."""

from collections.abc import Sequence
from typing import Any

from src.report.diagnosis import Finding, Watch
from src.report.html import Markup, tag
from src.report.runs import Evaluation, Run


def warnings_section(runs: Sequence[Run]) -> Markup:
    """What each run's log and evaluations warn of."""
    parts, well = [], []
    for place, run in enumerate(runs):
        found = findings(run) if run.config else []
        heading = tag("h3", tag("span", class_=f"swatch b{place % 6}"), run.name)
        if not run.config:
            parts += [heading, tag("p", "Not looked for: there is no configuration that can be used.", class_="note")]
        elif found:
            parts += [heading, _listed(found)]
        else:
            well.append(run.name)
    if well:
        parts.append(tag("p", f"No warnings: {', '.join(well)}.", class_="note"))
    return Markup("".join(parts))


def findings(run: Run) -> list[Finding]:
    """In the order in which they began; evaluations come behind the last line of the log. Needs ``run.config``.

    What eval.py measured counts twice: it is of a whole split, where training takes two looks at a part. It is of the
    step of its checkpoint, or where nothing names that of the last one.
    """
    watch = Watch(run.config)
    steps = [run.trained_steps if one.step is None else one.step for one in run.evaluations]
    measured = [line for one, step in zip(run.evaluations, steps, strict=True) for line in 2 * [as_line(one, step)]]
    return [finding for line in [*run.lines, *measured] for finding in watch.add(line)]


def as_line(evaluation: Evaluation, step: int) -> dict[str, Any]:
    """An evaluation as training would have logged it: ``eval/…``, ``chance/…`` and ``embeddings/…``."""
    line: dict[str, Any] = {"step": step}
    for row in evaluation.rows:
        if row.chance is None or not row.sign:
            continue
        turned = row.sign < 0  # an error rate: higher is better in a log
        name = f"{f'{row.group}, ' if row.group else ''}{'1 − ' if turned else ''}{row.name}"
        name += f" ({row.section}, split {evaluation.label})"
        line[f"eval/{name}"] = 1 - row.value if turned else row.value
        line[f"chance/{name}"] = 1 - row.chance if turned else row.chance
    for name, found in evaluation.section("embeddings").items():
        if isinstance(found, dict):  # what is damaged is among the problems already
            line |= {f"embeddings/{name}_{measure}": value for measure, value in found.items()}
    return line


def _listed(found: Sequence[Finding]) -> Markup:
    rows = [
        tag(
            "p",
            tag("b", f"{finding.name.replace('_', ' ')}, step {finding.step:,}: "),
            finding.figure,
            ". ",
            tag("small", finding.advice),
        )
        for finding in found
    ]
    return tag("div", rows, class_="findings")

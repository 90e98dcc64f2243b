"""What goes wrong in a training, read from the lines of its metrics.jsonl while it goes or when it has ended.

A warning has a name, the figure that shows it and what to try. It is given once, and again only after it has passed.
Every threshold was measured on healthy runs, in which it gives no warning, and on runs that were made sick on purpose
(docs/monitoring.md#warnings).
"""

from dataclasses import dataclass

from src.config import Config
from src.report.checks import Check, Line, number
from src.report.held_out_checks import EmbeddingsCollapsed, ObjectiveAtChance, Overfitting
from src.report.step_checks import (
    CodesUnused,
    GradientsClipped,
    GradientsVanishing,
    LogitScaleAtLimit,
    LossDiverging,
    LossFlat,
    LossScaleAtMinimum,
    WaitingForData,
)

NAMED = 3  # subjects that a figure names; others are counted

CHECKS: tuple[type[Check], ...] = (
    LossDiverging,
    LossFlat,
    ObjectiveAtChance,
    EmbeddingsCollapsed,
    LogitScaleAtLimit,
    CodesUnused,
    GradientsClipped,
    GradientsVanishing,
    LossScaleAtMinimum,
    WaitingForData,
    Overfitting,
)


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes:
        name: what it is, a row of the table in docs/monitoring.md.
        step: of the line that shows it.
        figure: a sentence with the number that shows it.
        advice: what to try, one sentence.
    """

    name: str
    step: int
    figure: str
    advice: str


class Watch:
    """Reads the lines of a run in their order; memory does not grow with them.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        self.checks = [kind(config) for kind in CHECKS if kind.applies(config)]
        self.present: set[tuple[str, str]] = set()  # name and subject of what was given and has not passed

    def add(self, line: Line) -> list[Finding]:
        """The warnings that begin with this line; one without a step, of a damaged log, says nothing."""
        found: list[Finding] = []
        if number(line, "step") is None:
            return found
        for check in self.checks:
            new = []
            for subject, figure in check.look(line):
                key = check.name, subject
                if figure and key not in self.present:
                    new.append(figure)
                (self.present.add if figure else self.present.discard)(key)
            if new:
                more = f" (and {len(new) - NAMED} more)" if len(new) > NAMED else ""
                found.append(Finding(check.name, line["step"], "; ".join(new[:NAMED]) + more, check.advice))
        return found

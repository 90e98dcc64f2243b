"""What looks at the lines of a training's log for one kind of trouble each."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from src.config import Config

Line = Mapping[str, Any]  # of metrics.jsonl: of a log step, or of an evaluation
Sign = tuple[str, str]  # what it concerns ("" where there is one thing only), the figure; no figure: it has passed

SMOOTHED = 5  # log lines whose median is "the loss": each has that of one batch


class Check:
    """One kind of warning.

    Args:
        config: the run's.
    """

    name: str
    advice: str

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def applies(cls, config: Config) -> bool:
        return True

    def look(self, line: Line) -> Iterator[Sign]:
        """What the line shows: nothing where it does not say whether the sign is there."""
        raise NotImplementedError

    @property
    def warmup(self) -> int:
        """Steps, during which losses and gradients say little."""
        return self.config.optimizer.warmup(self.config.train.steps)


class InARow(Check):
    """A number beyond a limit in several log lines in a row.

    ``measure`` gives it, ``figure`` says it; it is a sign from ``fires`` on, and has passed below ``passes``.
    """

    LINES = 3
    fires: float
    passes: float

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.row = 0

    def measure(self, line: Line) -> float | None:
        raise NotImplementedError

    def figure(self, line: Line, value: float) -> str:
        raise NotImplementedError

    def look(self, line: Line) -> Iterator[Sign]:
        value = self.measure(line)
        if value is None:
            return
        self.row = self.row + 1 if value >= self.fires else 0
        if self.row >= self.LINES:
            yield "", self.figure(line, value)
        elif value < self.passes:
            yield "", ""


def number(line: Line, key: str) -> float | None:
    """The line's value where it is a finite number: that of a step that overflowed is none."""
    value = line.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def short(value: float) -> str:
    return f"{value:.3g}"

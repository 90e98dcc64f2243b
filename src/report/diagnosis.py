"""What goes wrong in a training, read from the lines of its metrics.jsonl while it goes or when it has ended.

A warning has a name, the figure that shows it and what to try. It is given once, and again only after it has passed.
Every threshold was measured on healthy runs, in which it gives no warning, and on runs that were made sick on purpose
(docs/monitoring.md#warnings).
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from src.config import LOGIT_SCALES, TASKS, Config

Line = Mapping[str, Any]  # of metrics.jsonl: of a log step, or of an evaluation
Sign = tuple[str, str]  # what it concerns ("" where there is one thing only), the figure; no figure: it has passed

SMOOTHED = 5  # log lines whose median is "the loss": each has that of one batch
NAMED = 3  # subjects that a figure names; others are counted


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


class LossDiverging(Check):
    """The loss rises far above its lowest."""

    name = "loss_diverging"
    advice = (
        "Lower optimizer.lr (and optimizer.muon_lr) or lengthen optimizer.warmup_steps, and go on from an "
        "earlier checkpoint."
    )
    FIRES, PASSES = 1.5, 1.2  # times the lowest
    LEAST = 0.05  # of the first loss: less is the noise of a loss that has all but gone

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.recent: deque[float] = deque(maxlen=SMOOTHED)
        self.first = self.lowest = math.nan
        self.lowest_at = 0

    @classmethod
    def applies(cls, config: Config) -> bool:
        return TASKS[config.task].loss_falls

    def look(self, line: Line) -> Iterator[Sign]:
        loss = number(line, "loss")
        if loss is None:
            return
        if math.isnan(self.first):
            self.first = self.lowest = loss
            self.lowest_at = line["step"]
        self.recent.append(loss)
        if len(self.recent) < SMOOTHED:
            return
        now = median(self.recent)
        if now < self.lowest:
            self.lowest, self.lowest_at = now, line["step"]
        if now > self.FIRES * self.lowest and now - self.lowest > self.LEAST * self.first:
            times = f"{now / self.lowest:.1f} times" if self.lowest > 0 else "above"
            yield "", f"the loss is {short(now)}, {times} its lowest of {short(self.lowest)} at step {self.lowest_at}"
        elif now < self.PASSES * self.lowest:
            yield "", ""


class LossFlat(Check):
    """The loss has stopped falling although the learning rate is high."""

    name = "loss_flat"
    advice = (
        "Try another optimizer.lr (3 times and a third), and look at optimizer.freeze and at what the data "
        "feeds; where held-out metrics are as good as they need be, the run can end."
    )
    LOWER = 0.99  # of the loss so far: less is no progress
    LINES, SHARE = 20, 0.2  # log lines without progress: at least so many, and that share of the run
    RATE = 0.5  # of the highest rate: below, a schedule ends and the loss settles

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.recent: deque[float] = deque(maxlen=SMOOTHED)
        self.lowest, self.since, self.lines, self.peak = math.inf, 0, 0, 0.0
        self.patience = max(self.LINES, int(self.SHARE * config.train.steps / config.train.log_every))

    @classmethod
    def applies(cls, config: Config) -> bool:
        return TASKS[config.task].loss_falls

    def look(self, line: Line) -> Iterator[Sign]:
        loss, rate = number(line, "loss"), number(line, "lr")
        if loss is None:
            return
        self.recent.append(loss)
        if rate is not None:
            self.peak = max(self.peak, rate)
        now = median(self.recent)
        if now < self.lowest * self.LOWER:
            self.lowest, self.since, self.lines = now, line["step"], 0
            yield "", ""
        elif line["step"] > self.warmup and rate is not None and rate >= self.RATE * self.peak:
            self.lines += 1
            if self.lines >= self.patience and now < LossDiverging.PASSES * self.lowest:
                fall = max(0.0, 1 - now / self.lowest) if self.lowest > 0 else 0.0
                yield "", f"the loss is {short(now)}: it has fallen by {100 * fall:.1f} % since step {self.since}"


class ObjectiveAtChance(Check):
    """A held-out metric is where a model that looks at nothing would be."""

    name = "objective_at_chance"
    advice = (
        "Check that what belongs together is paired in the data (tools/check_data.py), raise the objective's "
        "weight or its batch_share, and give it more steps."
    )
    FIRES, PASSES = 0.01, 0.03  # of the way from chance to 1
    BEGUN = 0.1  # of the run: before, chance is where every metric is
    ROW = 2  # evaluations

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rows: dict[str, int] = {}

    def look(self, line: Line) -> Iterator[Sign]:
        if line["step"] < self.BEGUN * self.config.train.steps:
            return
        for key in line:
            name = key.removeprefix("chance/")
            value, chance = number(line, f"eval/{name}"), number(line, key)
            if name == key or value is None or chance is None:
                continue
            learned = (value - chance) / max(1 - chance, 1e-9)
            self.rows[name] = self.rows.get(name, 0) + 1 if learned <= self.FIRES else 0
            if self.rows[name] >= self.ROW:
                yield name, f"{name} is {short(value)} where chance is {short(chance)}"
            elif learned > self.PASSES:
                yield name, ""


class EmbeddingsCollapsed(Check):
    """Embeddings of different items lie together, or in few dimensions."""

    name = "embeddings_collapsed"
    advice = (
        "Lower optimizer.lr, check that what belongs together is paired in the data, raise data.batch_size (more "
        "negatives) or objectives.weights.contrastive, and look for inputs that are all alike."
    )
    COSINE, COSINE_PASSES = 0.9, 0.8  # mean over pairs
    RANK, RANK_PASSES = 4.0, 6.0  # effective rank
    ROOM = 0.1  # of the rank that so many items can have: of few it is always small

    def look(self, line: Line) -> Iterator[Sign]:
        for key in line:
            subject = key.removeprefix("embeddings/").removesuffix("_mean_cosine")
            named = (f"embeddings/{subject}_{name}" for name in ("mean_cosine", "effective_rank", "items"))
            cosine, rank, items = (number(line, name) for name in named)
            if subject == key or cosine is None or rank is None or items is None:
                continue
            room = min(items - 1, self.config.model.embed_dim)
            if cosine > self.COSINE or rank < min(self.RANK, self.ROOM * room):
                figure = f"{subject} embeddings have a mean cosine of {cosine:.2f} and an effective rank of {rank:.1f}"
                yield subject, f"{figure} of {room:.0f}"
            elif cosine < self.COSINE_PASSES and rank > min(self.RANK_PASSES, self.ROOM * room):
                yield subject, ""


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


class LogitScaleAtLimit(InARow):
    """The inverse temperature of the contrastive loss has reached its clamp."""

    name = "logit_scale_at_limit"
    advice = (
        "Lower optimizer.lr; at the upper limit look for captions or images that occur often "
        "(data.unique_images), at the lower one check that pairs belong together."
    )
    fires, passes = 0.99, 0.95  # share of the way to a limit, in logarithms

    def measure(self, line: Line) -> float | None:
        scale = number(line, "logit_scale")
        if scale is None:
            return None
        low, high = map(math.log, LOGIT_SCALES)
        way = (math.log(scale) - low) / (high - low)
        return max(way, 1 - way)

    def figure(self, line: Line, value: float) -> str:
        low, high = LOGIT_SCALES
        return f"the logit scale is {line['logit_scale']:.1f}, at the limit of its range from {low:.0f} to {high:.0f}"


class CodesUnused(InARow):
    """The image tokenizer uses few of the codes that a batch has room for."""

    name = "codes_unused"
    advice = (
        "Lower optimizer.lr, raise model.image_tokenizer.revive_below or data.batch_size, or take fewer "
        "model.image_tokenizer.codes."
    )
    fires, passes = 0.9, 0.85  # share that is unused

    def measure(self, line: Line) -> float | None:
        usage = number(line, "batch/usage")
        if usage is None or line["step"] <= self.warmup:
            return None
        return 1 - usage / self.room

    def figure(self, line: Line, value: float) -> str:
        codes = self.config.model.image_tokenizer.codes
        used = line["batch/usage"]
        return f"{used * codes:.0f} of {codes} codes are used in a batch, where {self.room * codes:.0f} could be"

    @property
    def room(self) -> float:
        """The share of the codes that a batch would use if it chose them by chance."""
        tokenizer = self.config.model.image_tokenizer
        return 1 - math.exp(-self.config.data.batch_size * tokenizer.side**2 / tokenizer.codes)


class LossScaleAtMinimum(InARow):
    """The dynamic loss scale of fp16 cannot be halved any more."""

    name = "loss_scale_at_minimum"
    advice = "Use runtime.precision=bf16 where the device has it, or fp32, or lower optimizer.lr."
    LINES = 1
    fires, passes = 0.0, -3.0  # of −log₂: from a scale of 1 on, until one of 8

    def measure(self, line: Line) -> float | None:
        scale = number(line, "loss_scale")
        return None if scale is None else -math.log2(scale)

    def figure(self, line: Line, value: float) -> str:
        return f"the loss scale is {line['loss_scale']:g}, its minimum: the next overflow skips a step"


class WaitingForData(InARow):
    """The loop waits for batches."""

    name = "waiting_for_data"
    advice = (
        "Raise data.workers and data.prefetch, put the shards on a faster disk, or store smaller media "
        "(docs/performance.md)."
    )
    fires, passes = 0.25, 0.15

    def measure(self, line: Line) -> float | None:
        return number(line, "data_wait")

    def figure(self, line: Line, value: float) -> str:
        return f"{100 * value:.0f} % of the time since the last log line went by waiting for data"


class Gradients(Check):
    """The norm of the gradients over the latest log lines."""

    LINES = 10

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.recent: deque[float] = deque(maxlen=self.LINES)

    def look(self, line: Line) -> Iterator[Sign]:
        norm = number(line, "grad_norm")
        if norm is None:
            return
        self.recent.append(norm)
        if len(self.recent) == self.LINES:
            yield from self.judge(median(self.recent), line["step"] > self.warmup)

    def judge(self, norm: float, warm: bool) -> Iterator[Sign]:
        raise NotImplementedError


class GradientsClipped(Gradients):
    """Clipping leaves little of every gradient."""

    name = "gradients_clipped"
    advice = "Lower optimizer.lr, or raise optimizer.clip_norm if the loss falls steadily."
    FIRES, PASSES = 50.0, 25.0  # times clip_norm

    def judge(self, norm: float, warm: bool) -> Iterator[Sign]:
        limit = self.config.optimizer.clip_norm
        if norm > self.FIRES * limit and warm:
            figure = f"the gradients' norm is {short(norm)} (median of {self.LINES} log lines)"
            yield "", f"{figure}, {norm / limit:.0f} times optimizer.clip_norm={limit:g}"
        elif norm < self.PASSES * limit:
            yield "", ""


class GradientsVanishing(Gradients):
    """Next to nothing reaches the weights."""

    name = "gradients_vanishing"
    advice = (
        "Lower optimizer.lr, look at optimizer.freeze and at objectives.weights, and with runtime.precision=fp16 try "
        "bf16 or fp32."
    )
    FIRES, PASSES = 1e-3, 3e-3  # of the largest median so far

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.largest = min(1.0, config.optimizer.clip_norm)  # of a run whose first gradients have vanished already

    def judge(self, norm: float, warm: bool) -> Iterator[Sign]:
        self.largest = max(self.largest, norm)
        if norm < self.FIRES * self.largest:
            yield "", f"the gradients' norm is {norm:.2g} (median of {self.LINES} log lines)"
        elif norm > self.PASSES * self.largest:
            yield "", ""


class Overfitting(Check):
    """The held-out metric falls while the training loss falls."""

    name = "overfitting"
    advice = (
        "End the run (train.patience) and use the best checkpoint; more data, data.augment, dropout or a "
        "higher optimizer.weight_decay put it off."
    )
    ROW = 3  # evaluations whose mean counts
    FIRES, PASSES = 0.1, 0.03  # of the best value
    LOSS = 0.97  # of the loss at the best evaluation

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.losses: deque[float] = deque(maxlen=SMOOTHED)
        self.values: deque[float] = deque(maxlen=self.ROW)
        self.best, self.best_at, self.loss = -math.inf, 0, math.nan

    @classmethod
    def applies(cls, config: Config) -> bool:
        return TASKS[config.task].loss_falls

    def look(self, line: Line) -> Iterator[Sign]:
        loss, value = number(line, "loss"), number(line, "best_metric")
        if loss is not None:
            self.losses.append(loss)
        if value is None or not self.losses:
            return
        now = median(self.losses)
        self.values.append(value)
        if value > self.best:
            self.best, self.best_at, self.loss = value, line["step"], now
        mean, scale = sum(self.values) / len(self.values), abs(self.best)
        below = len(self.values) == self.ROW and max(self.values) < self.best
        if below and self.best - mean > self.FIRES * scale and now < self.LOSS * self.loss:
            figure = (
                f"the held-out metric is {short(mean)} (mean of {self.ROW} evaluations), {short(self.best)} at step"
            )
            yield "", f"{figure} {self.best_at}, while the loss fell from {short(self.loss)} to {short(now)}"
        elif self.best - value <= self.PASSES * scale:
            yield "", ""


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


def number(line: Line, key: str) -> float | None:
    """The line's value where it is a finite number: that of a step that overflowed is none."""
    value = line.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def short(value: float) -> str:
    return f"{value:.3g}"

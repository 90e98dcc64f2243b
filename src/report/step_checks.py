"""What log lines of steps show: losses, gradients, scales, codes, the wait for data."""

import math
from collections import deque
from collections.abc import Iterator
from statistics import median

from src.config import LOGIT_SCALES, TASKS, Config
from src.report.checks import SMOOTHED, Check, InARow, Line, Sign, number, short


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

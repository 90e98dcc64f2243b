"""What evaluations during a training show: metrics at chance, collapsed embeddings, overfitting."""

import math
from collections import deque
from collections.abc import Iterator
from statistics import median

from src.config import TASKS, Config
from src.report.checks import SMOOTHED, Check, Line, Sign, number, short


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
            if name == key or value is None or chance is None or self._untrained(name):
                continue
            learned = (value - chance) / max(1 - chance, 1e-9)
            self.rows[name] = self.rows.get(name, 0) + 1 if learned <= self.FIRES else 0
            if self.rows[name] >= self.ROW:
                yield name, f"{name} is {short(value)} where chance is {short(chance)}"
            elif learned > self.PASSES:
                yield name, ""

    def _untrained(self, name: str) -> bool:
        """Whether the objective that a metric shows has no weight, and no weights were read that may know it."""
        if self.config.task not in ("pretrain", "retrieval") or self.config.train.init_from:
            return False
        weights = self.config.objectives.weights
        if name.startswith("generated_"):
            return not weights.denoise_image
        if name.endswith("_R@1"):
            return not weights.contrastive
        return not weights.denoise_text and name.startswith(("cider_d", "facts_right", "transcription"))


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

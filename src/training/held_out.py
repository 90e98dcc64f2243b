"""The held-out split, as training looks at it between its steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mindspore import nn

from src.config import Config, ConfigError
from src.evaluation.run import Evaluation, glance
from src.inference.engine import Engine
from src.sharing import Crew, working_together
from src.tasks.registry import Task


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        metrics: by name, higher is better.
        beside: ``chance/NAME`` and ``embeddings/NAME`` (:meth:`src.evaluation.run.Evaluation.beside`).
    """

    metrics: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)


class HeldOut:
    """Measures data.eval_split, which is opened at once: what is wrong with it is told before the first step.

    Several ranks divide the work, and all of them find the same.

    Args:
        config: the run.
        model: with the weights of the moment.
        task: says what is measured, and by what a checkpoint is the best one unless train.best_metric does.
        crew: the ranks.

    Raises:
        DataError: there is no such split, or it cannot be read.
    """

    def __init__(self, config: Config, model: nn.Cell, task: Task, crew: Crew) -> None:
        self.config, self.task, self.crew = config, task, crew
        self.evaluation = Evaluation(Engine(config, model), task.evaluators)
        self.evaluation.open(config.data.eval_split)

    def measure(self) -> Measured:
        """What is logged.

        Raises:
            ConfigError: there is no train.best_metric among them.
            Interruption: a rank was asked to stop.
        """
        with working_together(self.crew):
            metrics = self.evaluation.run(self.config.data.eval_split, settings=glance(self.config.eval))
        logged = self.evaluation.logged(metrics)
        metric = self.config.train.best_metric
        if metric and logged and metric not in logged:
            raise ConfigError(f"train.best_metric={metric} is not measured: choose of {', '.join(sorted(logged))}")
        return Measured(logged, self.evaluation.beside(metrics))

    def value(self, logged: Mapping[str, float]) -> float | None:
        """By what a checkpoint is compared with the others; None if the split has nothing of it to measure."""
        metric = self.config.train.best_metric
        return logged.get(metric) if metric else self.task.best_metric(logged)

"""The held-out split, as training looks at it between its steps."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspore import nn

from src.config import Config, ConfigError
from src.data.pipeline import Loader
from src.evaluation.run import Evaluation, glance
from src.inference.engine import Engine
from src.sharing import Crew, working_together
from src.tasks.registry import Task
from src.training.board import EvaluationSheets, Shown


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        metrics: by name, higher is better.
        beside: ``chance/NAME`` and ``embeddings/NAME`` (:meth:`src.evaluation.run.Evaluation.beside`).
        shown: what TensorBoard shows of it.
        not_shown: a line for each sheet that could not be drawn.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    shown: Shown = field(default_factory=Shown)
    not_shown: Sequence[str] = ()


class HeldOut:
    """Measures data.eval_split, which is opened at once: what is wrong with it is told before the first step.

    Several ranks divide the work, and all of them find the same.

    Args:
        config: the run.
        model: with the weights of the moment.
        task: says what is measured, and by what a checkpoint is the best one unless train.best_metric does.
        crew: the ranks.
        shows: whether samples are to be seen: on the rank that writes, if train.log_samples.

    Raises:
        ConfigError: eval leaves nothing to measure.
        DataError: there is no such split, or it cannot be read.
    """

    def __init__(self, config: Config, model: nn.Cell, task: Task, crew: Crew, shows: bool = False) -> None:
        self.config, self.task, self.crew, self.shows = config, task, crew, shows
        self.evaluation = Evaluation(Engine(config, model), task.evaluators)
        self.settings = glance(config.eval)
        self.evaluation.needs(self.settings)
        self.evaluation.open(config.data.eval_split)

    def measure(self) -> Measured:
        """What is logged.

        Raises:
            ConfigError: there is no train.best_metric among them.
            Interruption: a rank was asked to stop.
        """
        folder, sheets = Path(self.config.train.output) / ".sheets", list[EvaluationSheets]()

        def show(loader: Loader | None) -> EvaluationSheets:
            sheets.append(EvaluationSheets(loader, folder))
            return sheets[0]

        shutil.rmtree(folder, ignore_errors=True)  # a kill may have left it
        try:
            with working_together(self.crew):
                shown = show if self.shows else None
                metrics = self.evaluation.run(self.config.data.eval_split, None, self.settings, shown)
            for one in sheets:
                one.finish(metrics)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        logged = self.evaluation.logged(metrics)
        metric = self.config.train.best_metric
        if metric and logged and metric not in logged:
            raise ConfigError(f"train.best_metric={metric} is not measured: choose of {', '.join(sorted(logged))}")
        beside = self.evaluation.beside(metrics)
        return Measured(logged, beside, sheets[0].shown, sheets[0].failed) if sheets else Measured(logged, beside)

    def value(self, logged: Mapping[str, float]) -> float | None:
        """By what a checkpoint is compared with the others; None if the split has nothing of it to measure."""
        metric = self.config.train.best_metric
        return logged.get(metric) if metric else self.task.best_metric(logged, self.config.objectives)

"""The training loop: batches in, a run folder out (config.yaml, metrics.jsonl, tensorboard/, checkpoints/)."""

import time
from pathlib import Path
from typing import Any

from mindspore import nn

from src.checkpoints import checkpoint, files
from src.checkpoints.pretrained import init_encoders
from src.config import Config, ConfigError, to_yaml
from src.data.pipeline import Batch
from src.evaluation.run import Evaluation, glance
from src.files import write_text
from src.inference.engine import Engine
from src.models.build import build_model
from src.models.opt import count_parameters
from src.report.tables import table
from src.tasks import registry
from src.training.layer_rates import unfrozen
from src.training.log import RunLog
from src.training.muon import build_optimizer
from src.training.optimizer import trained_parameters
from src.training.ranks import GatherRows, MeanGradients
from src.training.schedule import learning_rates
from src.training.step import INITIAL_LOSS_SCALE, NonFiniteError, StepResult, TrainingError, TrainStep


class Trainer:
    """Builds everything a run needs and runs it.

    Args:
        config: the run.
        rank, ranks: this process among its peers (:func:`src.runtime.setup`).
        resume: go on from the run folder's latest checkpoint; the losses are those of an uninterrupted run.
    """

    def __init__(self, config: Config, rank: int = 0, ranks: int = 1, resume: bool = False) -> None:
        self.config, self.rank = config, rank
        self.folder = Path(config.train.output)
        self.checkpoints = self.folder / "checkpoints"
        if not resume and (self.checkpoints / "latest").exists():
            raise ConfigError(f"train.output={self.folder} holds a run already: --resume, or take another folder")
        self.task = registry.get(config.task)
        self.loader = self.task.loader(config, config.data.train_split, rank, ranks)
        self.model = build_model(config)
        self.step_number, self.best = 0, float("-inf")
        if not resume:
            self._start()
        self.step = self._build_step(ranks)
        if resume:
            self._resume()
        evaluates = rank == 0 and config.train.eval_every
        self.evaluation = Evaluation(Engine(config, self.model), self.task.evaluators) if evaluates else None

    def _build_step(self, ranks: int) -> TrainStep:
        config = self.config
        gather = GatherRows(self.rank) if ranks > 1 else None
        objectives = self.task.objectives(self.model, config, self.rank, ranks, gather)
        rates = learning_rates(config.optimizer, config.train.steps)
        parameters = unfrozen(trained_parameters(self.model, objectives), config.optimizer.freeze)
        optimizer = build_optimizer(parameters, config.optimizer, rates)
        return TrainStep(
            objectives,
            optimizer,
            config.optimizer.clip_norm,
            # bf16 has the exponents of fp32: its gradients do not vanish
            INITIAL_LOSS_SCALE if config.runtime.precision == "fp16" else None,
            MeanGradients(ranks) if ranks > 1 else None,
        )

    def _start(self) -> None:
        """What the first step finds: encoders that other libraries trained, and over them the parts of a checkpoint."""
        for report in init_encoders(self.model, self.config.model):
            if self.rank == 0:
                print(report, flush=True)
        if not self.config.train.init_from:
            return
        folder = files.locate(self.config.train.init_from)
        new, left = checkpoint.load_parts(self.model, folder)
        if self.rank == 0:
            print(f"weights of {folder}{_listed('; new: ', new)}{_listed('; not used: ', left)}", flush=True)

    def _resume(self) -> None:
        folder = files.locate(self.folder)
        checkpoint.load_weights(self.model, folder)
        path = folder / files.OPTIMIZER
        files.set_parameters(self.step.state(), files.read_tensors(path), path)
        if checkpoint.load_checkpoint_config(folder).runtime.precision != self.config.runtime.precision:
            self.step.reset_scale()
        state = checkpoint.read_state(folder)
        self.step_number, self.best = state["step"], state["best"] if state["best"] is not None else float("-inf")

    def run(self) -> None:
        """Trains to the last step, evaluating and saving on the way.

        Raises:
            TrainingError: a loss is not finite; the last checkpoint is the one before it.
        """
        config, steps = self.config, self.config.train.steps
        batches = self.loader.batches(self.step_number)  # before anything is written: the split may be too small
        if self.rank == 0:
            write_text(self.folder / "config.yaml", to_yaml(config))
            print(parameter_table(self.model), flush=True)
        log = RunLog(self.folder, self.step_number, steps, self.rank == 0)
        try:
            self._loop(batches, log)
        finally:
            batches.close()
            log.close()

    def _loop(self, batches, log: RunLog) -> None:
        train = self.config.train
        marked, marked_step = time.perf_counter(), self.step_number
        while self.step_number < train.steps:
            result = self._advance(next(batches))
            log.advance(result.losses["total"])
            if self.step_number % train.log_every == 0 or self.step_number == train.steps:
                now = time.perf_counter()
                samples = (self.step_number - marked_step) * self.config.data.batch_size
                log.write(self.step_number, _scalars(result, samples / (now - marked)))
                marked, marked_step = now, self.step_number
            improved = bool(train.eval_every) and self.step_number % train.eval_every == 0 and self._evaluate(log)
            if improved or self.step_number % train.save_every == 0 or self.step_number == train.steps:
                self._save(improved)
                marked, marked_step = time.perf_counter(), self.step_number  # the rate is that of training only

    def _advance(self, batch: Batch) -> StepResult:
        try:
            result = self.step(batch)
        except NonFiniteError as error:
            ids = ", ".join(map(str, batch["sample_id"][:8]))
            raise TrainingError(
                f"step {self.step_number + 1}: {error}; nothing was updated; the batch begins with samples {ids}; "
                f"lower optimizer.lr or look at the data, then --resume"
            ) from None
        self.step_number += 1
        return result

    def _evaluate(self, log: RunLog) -> bool:
        """Measures the held-out split; True when the task's metric is the best so far."""
        if self.evaluation is None:
            return False
        self.step.make_gradients.set_train(False)
        metrics = self.evaluation.run(self.config.data.eval_split, settings=glance(self.config.eval))
        self.step.make_gradients.set_train(True)
        logged = self.evaluation.logged(metrics)
        log.write(self.step_number, {f"eval/{name}": value for name, value in logged.items()})
        log.say(f"step {self.step_number}: " + "  ".join(f"{name} {value:.3f}" for name, value in logged.items()))
        value = self.task.best_metric(logged)
        improved, self.best = value > self.best, max(value, self.best)
        return improved

    def _save(self, best: bool) -> None:
        if self.rank == 0:
            state = {"best": self.best if self.best > float("-inf") else None}
            checkpoint.save_checkpoint(
                self.checkpoints,
                self.step_number,
                self.config,
                self.model,
                self.step.state(),
                state,
                self.config.train.keep_checkpoints,
                best,
            )


def _listed(title: str, names: list[str]) -> str:
    return title + ", ".join(names) if names else ""


def parameter_table(model: nn.Cell) -> str:
    """Parameters of every part, to be printed."""
    rows = [(name, f"{count:,}") for name, count in count_parameters(model).items()]
    return table(rows, ("part", "parameters"))


def _scalars(result: StepResult, rate: float) -> dict[str, Any]:
    losses = {"loss" if name == "total" else f"loss/{name}": value for name, value in result.losses.items()}
    metrics = {f"batch/{name}": value for name, value in result.metrics.items()}
    norm = {} if result.skipped else {"grad_norm": result.norm}  # infinite where a step overflowed; its rate is 0
    return losses | metrics | {"lr": result.rate, **norm, "samples_per_second": round(rate, 2)}

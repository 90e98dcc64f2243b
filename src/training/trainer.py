"""The training loop: batches in, a run folder out (config.yaml, metrics.jsonl, tensorboard/, checkpoints/)."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from src.checkpoints import checkpoint, files
from src.checkpoints.pretrained import init_encoders
from src.config import TASKS, Config, ConfigError, to_yaml
from src.data.errors import DataError
from src.data.pipeline import Batch
from src.data.store import read_info
from src.evaluation.run import Evaluation, glance
from src.files import write_text
from src.inference.engine import Engine
from src.models.build import build_model
from src.models.opt import count_parameters
from src.objectives.peers import ALONE, Peers
from src.report.tables import table
from src.tasks import registry
from src.training.accumulation import part_size
from src.training.average import WeightAverage
from src.training.continuation import check_resume, start_from
from src.training.layer_rates import unfrozen
from src.training.log import RunLog
from src.training.muon import Muon, build_optimizer
from src.training.optimizer import AdamW, trained_parameters
from src.training.ranks import MeanOverRanks
from src.training.schedule import learning_rates, warmup_steps
from src.training.shards import ShardedOptimizer
from src.training.step import INITIAL_LOSS_SCALE, NonFiniteError, StepResult, TrainingError, TrainStep
from src.training.unfed import absent_modalities, describe, unfed_objectives, without


class Trainer:
    """Builds everything a run needs and runs it. ``trained`` is its configuration without what the data cannot feed.

    Args:
        config: the run.
        rank, ranks: this process among its peers (:func:`src.runtime.setup`).
        resume: go on from the run folder's latest checkpoint; the losses are those of an uninterrupted run.
        verbose: print the parameters of every part.
    """

    def __init__(
        self, config: Config, rank: int = 0, ranks: int = 1, resume: bool = False, verbose: bool = False
    ) -> None:
        self.config, self.rank, self.ranks, self.verbose = config, rank, ranks, verbose
        # the first samples of the steps since the last look at the device
        self.recent: deque[np.ndarray] = deque(maxlen=config.train.log_every)
        self.folder = Path(config.train.output)
        self.checkpoints = self.folder / "checkpoints"
        if not resume and (self.checkpoints / "latest").exists():
            raise ConfigError(f"train.output={self.folder} holds a run already: --resume, or take another folder")
        start = files.locate(self.folder) if resume else None
        if start:
            check_resume(config, start)
        if not TASKS[config.task].trained:
            raise ConfigError(f"task={config.task} is measured by eval.py, not trained")
        self.task = registry.get(config.task)
        self.loader = self.task.loader(config, config.data.train_split, rank, ranks)
        self.model = build_model(config)
        self.state: dict[str, Any] = {"step": 0, "best": None, "evaluation_due": False}
        if start:
            self.state |= checkpoint.read_state(start)
        else:
            self._start()
        # what a run has left out it leaves out to its end: the optimizer's state has no place for it
        self.trained = without(config, self.state.get("left_out", ()))
        self.step = self._build_step(ranks)
        if start:
            self._resume(start)
        self.evaluates = config.train.eval_every > 0 and self._has_eval_split()  # on all ranks, as they save together
        self.evaluation = self._build_evaluation() if rank == 0 and self.evaluates else None

    @property
    def step_number(self) -> int:
        return self.state["step"]

    def _say(self, text: object) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def _build_step(self, ranks: int) -> TrainStep:
        config = self.config
        # as what is left out: a run has no optimizer's state of what it did not encode from the first
        absent = {"absent": self.state.get("absent", ())} if self.task.weighs else {}
        objectives = self.task.objectives(self.model, self.trained, Peers(self.rank, ranks), **absent)
        part = None
        if config.train.accumulate > 1:
            size = part_size(config)
            smaller = replace(self.trained, data=replace(config.data, batch_size=size))
            part = self.task.objectives(self.model, smaller, ALONE, **absent)
        steps, warmup = config.train.steps, warmup_steps(config.optimizer, config.train.steps)
        if warmup < config.optimizer.warmup_steps:
            wanted = config.optimizer.warmup_steps
            self._say(
                f"warm-up of {warmup} steps, not optimizer.warmup_steps={wanted}: the run has train.steps={steps}"
            )
        rates = learning_rates(config.optimizer, steps)
        parameters = unfrozen(trained_parameters(self.model, objectives), config.optimizer.freeze)
        optimizer = self._build_optimizer(parameters, rates)
        return TrainStep(
            objectives,
            optimizer,
            config.optimizer.clip_norm,
            # bf16 has the exponents of fp32: its gradients do not vanish
            INITIAL_LOSS_SCALE if config.runtime.precision == "fp16" else None,
            MeanOverRanks(ranks) if ranks > 1 else None,
            config.train.max_bad_steps,
            (config.seed, self.rank),
            part,
            WeightAverage(optimizer, config.train.ema_decay) if config.train.ema_decay else None,
        )

    def _build_optimizer(self, parameters: Sequence[Parameter], rates: np.ndarray) -> AdamW | Muon | ShardedOptimizer:
        """Arguments: as of AdamW."""
        config = self.config
        if config.runtime.shard_optimizer and self.ranks > 1:
            return ShardedOptimizer(parameters, config.optimizer, rates, self.rank, self.ranks)
        if config.runtime.shard_optimizer:
            self._say("runtime.shard_optimizer=true changes nothing: the run has one process")
        return build_optimizer(parameters, config.optimizer, rates)

    def _has_eval_split(self) -> bool:
        """Whether the dataset has data.eval_split."""
        data = self.config.data
        folder = data.eval_path or data.mixture[0][0]
        splits = read_info(folder)["splits"]
        if data.eval_split not in splits:
            known = ", ".join(splits)
            self._say(f"nothing is evaluated: {folder} has no split data.eval_split={data.eval_split!r}, but {known}")
        return data.eval_split in splits

    def _build_evaluation(self) -> Evaluation:
        return Evaluation(Engine(self.trained, self.model), self.task.evaluators)

    def _start(self) -> None:
        """What the first step finds: encoders that other libraries trained, and over them the parts of a checkpoint."""
        if self.task.weighs:
            unfed = unfed_objectives(self.config, self.loader.sources.datasets)
            self.state["left_out"] = list(unfed)
            self.state["absent"] = absent_modalities(self.config, self.loader.sources.datasets)
            if unfed:
                self._say(describe(unfed))
        self._cover()
        for report in init_encoders(self.model, self.config.model):
            self._say(report)
        if self.config.train.init_from:
            for line in start_from(self.model, self.config):
                self._say(line)

    def _cover(self) -> None:
        """Says what of the training data the model does not read.

        Raises:
            DataError: too much of a source's text is [UNK]; on every rank, so that none waits for the others.
        """
        for found in self.loader.coverage():
            found.require_known(self.config.data.max_unknown)
            for line in found.notes(self.config.model):
                self._say(line)

    def _resume(self, folder: Path) -> None:
        self.step.number = self.step_number
        checkpoint.load_weights(self.model, folder)
        path = folder / files.OPTIMIZER
        self.step.load_state(files.read_tensors(path), path)
        stored = checkpoint.load_checkpoint_config(folder)
        if stored.runtime.precision != self.config.runtime.precision:
            self.step.reset_scale()
        self._resume_average(folder, stored.train.ema_decay)

    def _resume_average(self, folder: Path, decay: float) -> None:
        """Args: decay: with which the checkpoint was trained; 0: it has no average."""
        average, path = self.step.average, folder / files.EMA
        if average is None:
            if decay:
                self._say(f"train.ema_decay=0: the average of the weights in {path} is not continued")
            return
        if decay:
            arrays = files.read_tensors(path)
            files.check_shapes(files.shapes_of(dict(self.model.parameters_and_names())), arrays, path)
            average.set(arrays)
            return
        average.begin()
        decay = self.config.train.ema_decay
        self._say(f"train.ema_decay={decay}: the average of the weights begins at those of {folder}")

    def run(self) -> None:
        """Trains to the last step, evaluating and saving on the way.

        Raises:
            TrainingError: a loss is not finite; the last checkpoint is the one before it.
        """
        config, steps = self.config, self.config.train.steps
        batches = self.loader.batches(self.step_number)  # before anything is written: the split may be too small
        if self.rank == 0:
            write_text(self.folder / "config.yaml", to_yaml(config))
            if self.verbose:
                print(parameter_table(self.model), flush=True)
        log = RunLog(self.folder, self.step_number, steps, self.rank == 0)
        try:
            self._loop(batches, log)
        finally:
            batches.close()
            log.close()

    def _loop(self, batches, log: RunLog) -> None:
        train = self.config.train
        if self.state["evaluation_due"]:  # the run ended between saving and evaluating
            self._evaluate(log)
        marked, marked_step = time.perf_counter(), self.step_number
        while self.step_number < train.steps:
            self._advance(next(batches))
            log.advance()
            step, last = self.step_number, self.step_number == train.steps
            logs = step % train.log_every == 0 or last
            evaluates = self.evaluates and step % train.eval_every == 0
            saves = evaluates or step % train.save_every == 0 or last
            if not (logs or saves):
                continue  # without a look at the device
            result = self._result()
            if logs:
                now = time.perf_counter()
                samples = (step - marked_step) * self.config.data.batch_size * self.ranks
                log.write(step, _scalars(result, samples / (now - marked)))
                marked, marked_step = now, step
            if saves:
                self._save(evaluates)
                if evaluates:  # what evaluation fails on costs no trained step
                    self._evaluate(log)
                marked, marked_step = time.perf_counter(), self.step_number  # the rate is that of training only

    def _advance(self, batch: Batch) -> None:
        self.step(batch)
        self.recent.append(batch["sample_id"][:8])
        self.state["step"] += 1

    def _result(self) -> StepResult:
        """Of the last step, for which the host waits.

        Raises:
            TrainingError: steps were not finite, as often in a row as train.max_bad_steps says.
        """
        try:
            return self.step.result()
        except NonFiniteError as error:
            ids = ", ".join(map(str, self.recent[-1 - error.ago])) if error.ago < len(self.recent) else "unknown"
            row = f" (the last of {error.row} in a row)" if error.row > 1 else ""
            raise TrainingError(
                f"step {self.step_number - error.ago}{row}: {error}; it updated nothing; its batch begins with samples "
                f"{ids}; lower optimizer.lr or look at the data, then --resume; train.max_bad_steps="
                f"{self.config.train.max_bad_steps + 1} would pass over it"
            ) from None

    def _evaluate(self, log: RunLog) -> None:
        """Measures the held-out split with the weights of the latest checkpoint, and marks the best one."""
        if self.evaluation is None:
            return
        step = self.step_number
        try:
            logged = self._measure()
        except DataError as error:
            logged = {}
            log.say(f"step {step}: not evaluated: {error}")
        if logged:
            log.write(step, {f"eval/{name}": value for name, value in logged.items()})
            log.say(f"step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in logged.items()))
        value, best = self.task.best_metric(logged), self.state["best"]
        improved = value is not None and (best is None or value > best)
        self.state |= {"best": value if improved else best, "evaluation_due": False}
        place = files.locate(self.folder)
        checkpoint.note_evaluation(place, self.state, improved, self.config.train.keep_checkpoints)

    def _measure(self) -> dict[str, float]:
        """The metrics to be logged, by name."""
        self.step.set_train(False)
        try:
            metrics = self.evaluation.run(self.config.data.eval_split, settings=glance(self.trained.eval))
        finally:
            self.step.set_train()
        return self.evaluation.logged(metrics)

    def _save(self, evaluation_due: bool = False) -> None:
        self.state["evaluation_due"] = evaluation_due
        optimizer_state = self.step.whole_state()  # all ranks take part
        if self.rank == 0:
            average = self.step.average
            checkpoint.save_checkpoint(
                self.checkpoints,
                self.step_number,
                self.trained,
                self.model,
                optimizer_state,
                self.state,
                self.config.train.keep_checkpoints,
                None if average is None else average.arrays(),
            )


def parameter_table(model: nn.Cell) -> str:
    """Parameters of every part, to be printed."""
    rows = [(name, f"{count:,}") for name, count in count_parameters(model).items()]
    return table(rows, ("part", "parameters"))


def _scalars(result: StepResult, rate: float) -> dict[str, Any]:
    losses = {"loss" if name == "total" else f"loss/{name}": value for name, value in result.losses.items()}
    metrics = {f"batch/{name}": value for name, value in result.metrics.items()}
    more: dict[str, float] = {} if result.skipped else {"grad_norm": result.norm}  # infinite where a step overflowed
    if result.loss_scale != 1:
        more["loss_scale"] = result.loss_scale
    if result.bad_steps:
        more["bad_steps"] = result.bad_steps
    return losses | metrics | {"lr": result.rate, **more, "samples_per_second": round(rate, 2)}

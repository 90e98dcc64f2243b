"""The training loop: batches in, a run folder out (config.yaml, metrics.jsonl, tensorboard/, checkpoints/)."""

import contextlib
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mindspore import Parameter, nn

from src.checkpoints import checkpoint, files
from src.checkpoints.files import CheckpointError
from src.checkpoints.places import CHECKPOINTS, has_checkpoint, locate
from src.checkpoints.pretrained import init_encoders
from src.cli import CarelessStream
from src.config import TASKS, Config, ConfigError, to_yaml
from src.data.decoding import brief
from src.data.errors import DataError
from src.data.pipeline import Batch, Batches, Place
from src.data.store import read_info
from src.files import write_text
from src.models.build import build_model
from src.models.opt import count_parameters
from src.objectives.peers import ALONE, Peers
from src.report.tables import table
from src.sharing import Crew, Interruption
from src.tasks import registry
from src.training import bad_batches
from src.training.accumulation import part_size
from src.training.average import WeightAverage
from src.training.board import of_batch
from src.training.continuation import (
    check_resume,
    data_identity,
    describe_changes,
    refuse_objectives,
    resume_place,
    start_from,
)
from src.training.held_out import HeldOut, Measured
from src.training.layer_rates import unfrozen
from src.training.lines import held_out_line, step_line
from src.training.log import RunLog
from src.training.muon import Muon, build_optimizer
from src.training.optimizer import AdamW, trained_parameters
from src.training.pace import Pace
from src.training.ranks import MeanOverRanks, any_rank
from src.training.schedule import learning_rates
from src.training.shards import ShardedOptimizer
from src.training.step import INITIAL_LOSS_SCALE, NonFiniteError, StepResult, TrainingError, TrainStep
from src.training.stopping import StopRequest
from src.training.unfed import absent_modalities, describe, unfed_objectives, unfed_parts, without
from src.training.wandb_log import require_wandb

Resume = bool | Literal["auto"]


class Trainer:
    """Builds everything a run needs and runs it. ``trained`` is its configuration without what the data cannot feed.

    Args:
        config: the run.
        rank, ranks: this process among its peers (:func:`src.runtime.setup`).
        resume: go on from the run folder's latest checkpoint; the losses are those of an uninterrupted run. "auto":
            if it holds one, otherwise begin.
        verbose: print the parameters of every part.
    """

    def __init__(
        self, config: Config, rank: int = 0, ranks: int = 1, resume: Resume = False, verbose: bool = False
    ) -> None:
        require_wandb(config)
        self.config, self.rank, self.ranks, self.verbose = config, rank, ranks, verbose
        # the samples of the steps since the last look at the device, and the place in their order before each
        self.recent: deque[tuple[np.ndarray, Place]] = deque(maxlen=config.train.log_every)
        self.folder = Path(config.train.output)
        self.checkpoints = self.folder / CHECKPOINTS
        there = has_checkpoint(self.folder)
        if not resume and there:
            raise ConfigError(f"train.output={self.folder} holds a run already: --resume, or take another folder")
        self.place = locate(self.folder, whole=True) if resume is True or (resume and there) else None
        if self.place:
            check_resume(config, self.place)
        if not TASKS[config.task].trained:
            raise ConfigError(f"task={config.task} is measured by eval.py, not trained")
        self.task = registry.get(config.task)
        self.loader = self.task.loader(config, config.data.train_split, rank, ranks)
        self.model, self.texts = build_model(config), checkpoint.read_texts(config)
        self.state: dict[str, Any] = {"step": 0, "best": None, "since_best": 0, "evaluation_due": False}
        self.state |= {"position": 0, "postponed": []}
        if self.place:
            self.state |= checkpoint.read_state(self.place)
            self.state |= resume_place(self.state, self.place, self.loader)
        else:
            self._start()
        # what a run has left out it leaves out to its end: the optimizer's state has no place for it
        self.trained = without(config, self.state.get("left_out", ()))
        if self.place and (changes := describe_changes(self.trained, self.place, self.state, ranks)):
            self._say(changes)
        self.state |= {"ranks": ranks, "data": data_identity(self.loader)}
        self.step = self._build_step(ranks)
        if "image_codes" in self.step.fields:
            self.loader.open_codes()
        if self.place:
            self._resume(self.place)
        self.stop = StopRequest()
        self.evaluates = config.train.eval_every > 0 and self._has_eval_split()  # on all ranks, as they save together
        crew = Crew(rank, ranks, lambda: self.stop.asked)
        shows = rank == 0 and config.train.log_samples
        self.held_out = HeldOut(self.trained, self.model, self.task, crew, shows) if self.evaluates else None

    @property
    def step_number(self) -> int:
        return self.state["step"]

    def _say(self, text: object) -> None:
        if self.rank == 0:
            print(text, flush=True, file=CarelessStream(sys.stdout))

    def _build_step(self, ranks: int) -> TrainStep:
        config = self.config
        # as what is left out: a run has no optimizer's state of what it did not encode from the first
        absent = self.state.get("absent", ())
        objectives = self.task.build(self.model, self.trained, Peers(self.rank, ranks), absent)
        part = None
        if config.train.accumulate > 1:
            size = part_size(self.trained)
            smaller = replace(self.trained, data=replace(config.data, batch_size=size))
            part = self.task.build(self.model, smaller, ALONE, absent)
        steps, warmup = config.train.steps, config.optimizer.warmup(config.train.steps)
        if warmup < config.optimizer.warmup_steps:
            wanted = config.optimizer.warmup_steps
            self._say(
                f"warm-up of {warmup} steps, not optimizer.warmup_steps={wanted}: the run has train.steps={steps}"
            )
        rates = learning_rates(config.optimizer, steps)
        unfed = unfed_parts(self.state.get("left_out", ()), absent)
        parameters = unfrozen(trained_parameters(self.model, objectives), config.optimizer.freeze, unfed)
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
            config.train.log_every,
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
        folder = data.held_out
        splits = read_info(folder)["splits"]
        if data.eval_split not in splits:
            known = ", ".join(splits)
            self._say(f"nothing is evaluated: {folder} has no split data.eval_split={data.eval_split!r}, but {known}")
        return data.eval_split in splits

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
        try:
            self.step.load_state(files.read_tensors(path), path)
        except CheckpointError:
            refuse_objectives(self.trained, folder)
            raise
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

    def run(self) -> signal.Signals | None:
        """Trains to the last step, evaluating and saving on the way.

        Returns:
            The signal at which it stopped before its end, with all that was done in the latest checkpoint; otherwise
            None.

        Raises:
            TrainingError: a loss is not finite; the last checkpoint is the one before it.
            CheckpointError: what was done at the end could not be saved.
        """
        config, steps = self.config, self.config.train.steps
        # before anything is written: the split may be too small
        batches = self.loader.batches(self.state["position"], self.state["postponed"])
        if self.step_number > steps:
            self._say(f"{self.place} has more steps than train.steps={steps}: nothing is trained")
        elif self.rank == 0:
            write_text(self.folder / "config.yaml", to_yaml(config))
        if self.rank == 0 and self.verbose:
            print(parameter_table(self.model), flush=True)
        if self.rank == 0 and self.step_number == 0:
            bad_batches.forget(self.folder)
        log = RunLog(
            self.folder, self.step_number, steps, self.rank == 0, config, evaluates_again=self.state["evaluation_due"]
        )
        try:
            self._loop(batches, log)
        finally:
            self.stop.close()
            batches.close()
            log.close()
        unfinished = self.step_number < steps or self.state["evaluation_due"]
        return self.stop.kind if unfinished else None

    def _loop(self, batches: Batches, log: RunLog) -> None:
        train, pace = self.config.train, Pace(self.config.data.batch_size * self.ranks, self.step_number)
        # due: the run ended between saving and evaluating
        stops = self._evaluate(log) if self.state["evaluation_due"] else self._is_out_of_patience()
        while self.step_number < train.steps and not stops:
            try:
                batch = self._advance(batches, pace)
            except DataError:  # a mount that is gone, too many bad records
                self._save_what_is_done(log)
                raise
            self.stop.listen()  # before, there is nothing to lose, and a graph to be compiled that hears no signal
            log.advance()
            if self.step_number == 1 and train.log_samples:
                self._show(batch, log)
            self._tell_bad_records(batches.told, log)
            step, last = self.step_number, self.step_number == train.steps
            logs = step % train.log_every == 0 or last
            evaluates = self.evaluates and (step % train.eval_every == 0 or last)
            saves = evaluates or step % train.save_every == 0 or last
            if not (logs or saves or self.stop.asked):
                continue  # without a look at the device
            with pace.looking():
                result = self._result(log)
            stops = self._agree_to_stop(result)
            if logs:
                log.write(step, step_line(result, self._logit_scale(), pace.look(step), batches.bad_records))
            if saves or stops:
                self._save(log, evaluates, needed=last or stops)
                if evaluates and not stops:  # what evaluation fails on costs no trained step
                    stops = self._evaluate(log)
                pace.restart(self.step_number)  # the rate is that of training only

    def _logit_scale(self) -> float | None:
        """Of the contrastive loss; read where the host waits anyway."""
        contrasts = getattr(self.step.gradients.objectives, "contrasts", False)
        return self.model.scale.value() if contrasts else None

    def _show(self, batch: Batch, log: RunLog) -> None:
        """Rows of the first batch as the network reads them; where that fails nothing else does."""
        try:
            log.show(self.step_number, of_batch(batch, self.loader))
        except Exception as error:
            log.say(f"step {self.step_number}: the batch is not shown: {brief(error)}")

    def _advance(self, batches: Batches, pace: Pace) -> Batch:
        before = batches.place
        with pace.waiting():
            batch = next(batches)
        if self.stop.asked:
            self.step.ask_to_stop()
        self.step(batch)
        self.recent.append((batch["sample_id"], before))
        self.state |= {"step": self.step_number + 1, **batches.place}
        return batch

    def _tell_bad_records(self, told: Sequence[str], log: RunLog) -> None:
        """On the rank that met them: each reads its own part of a step."""
        for line in told:
            if self.rank == 0:
                log.say(f"step {self.step_number}: {line}")
            else:
                print(f"rank {self.rank}, step {self.step_number}: {line}", flush=True, file=CarelessStream(sys.stdout))

    def _agree_to_stop(self, result: StepResult) -> bool:
        """Whether the run ends here; ranks say the same, or they would wait for each other for ever.

        A rank that is asked says so with its next step's result, and reads every result from then on. All say it
        first with the same step, after which all end. Those that no signal has reached learn it at a log line.
        """
        if self.ranks == 1:
            return self.stop.asked
        self.stop.asked |= result.stopping > 0
        return round(result.stopping * self.ranks) == self.ranks

    def _result(self, log: RunLog) -> StepResult:
        """Of the last step, for which the host waits.

        Raises:
            TrainingError: steps were not finite, as often in a row as train.max_bad_steps says.
        """
        try:
            result = self.step.result()
        except NonFiniteError as error:
            self._note_bad(error.bad_ago, log)
            ids = ", ".join(map(str, self.recent[-1 - error.ago][0][:8])) if error.ago < len(self.recent) else "unknown"
            row = f" (the last of {error.row} in a row)" if error.row > 1 else ""
            raise TrainingError(
                f"step {self.step_number - error.ago}{row}: {error}; it updated nothing; its batch begins with samples "
                f"{ids} ({self.folder / bad_batches.BOOK}); lower optimizer.lr or look at the data, then --resume; "
                f"train.max_bad_steps={self.config.train.max_bad_steps + 1} would pass over it"
            ) from None
        self._note_bad(result.bad_ago, log)
        self.recent.clear()
        return result

    def _note_bad(self, bad_ago: Sequence[int], log: RunLog) -> None:
        """Tells of the bad steps since the last look, and keeps their batches, which are read once more."""
        for ago in sorted((ago for ago in bad_ago if ago < len(self.recent)), reverse=True):
            step = self.step_number - ago
            again = self.loader.batches(**self.recent[-1 - ago][1])
            try:
                kept = bad_batches.note(self.folder, step, self.rank, next(again))
            except (OSError, DataError) as error:  # a full disk, or data that are gone meanwhile
                log.say(f"step {step}: not finite, and not noted: {brief(error)}")
                continue
            finally:
                again.close()
            where = f"; its batch is kept: tools/rerun_batch.py {kept}" if kept else ""
            log.say(f"step {step}: not finite, it updated nothing{where}")

    def _evaluate(self, log: RunLog) -> bool:
        """Measures the held-out split with the weights of the latest checkpoint, and marks the best one.

        Returns:
            Whether training ends: it was interrupted, or nothing has become better for long. All ranks say the same.
        """
        if self.held_out is not None:
            try:
                # of several ranks none may leave alone: they ask each other where they divide the work
                with self.stop if self.ranks == 1 else contextlib.nullcontext():
                    self._judge(log, self.held_out)
            except Interruption:  # it is still due
                self.stop.asked = True  # by a signal to another rank, perhaps
                log.say(f"step {self.step_number}: the evaluation is given up, a resumed run repeats it")
                return True  # a step more would be saved as if nothing were due
        return self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        """Whether too many evaluations in a row found nothing better. All ranks ask, and all do what one finds."""
        patience = self.config.train.patience
        if not patience:
            return False
        ends = self.state["since_best"] >= patience
        if self.ranks > 1:
            ends = any_rank(ends)
        if ends:
            self._say(f"step {self.step_number}: no better in {patience} evaluations (train.patience): training ends")
        return ends

    def _judge(self, log: RunLog, held_out: HeldOut) -> None:
        step, train = self.step_number, self.config.train
        self.step.set_train(False)
        try:
            measured = held_out.measure()
        except Exception as error:
            if train.stop_on_eval_error or isinstance(error, ConfigError):  # the next one would fail, too
                raise
            measured = Measured()
            log.say(f"step {step}: not evaluated: {brief(error)}")
        finally:
            self.step.set_train()
        value, best = held_out.value(measured.metrics), self.state["best"]
        if measured.metrics:
            log.say(f"step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in measured.metrics.items()))
            log.write(step, held_out_line(measured, value))
        improved = value is not None and (best is None or value > best)
        found = {"best": value if improved else best, "evaluation_due": False}
        found["since_best"] = 0 if improved else self.state["since_best"] + (value is not None)
        self.state |= found
        if self.rank == 0 and self.place is not None:  # otherwise it could not be saved
            try:
                checkpoint.note_evaluation(self.place, found, improved, train.keep_checkpoints)
            except CheckpointError as error:
                log.say(f"step {step}: the evaluation is not noted, training goes on: {error}")
        if measured.metrics:  # behind the note: it takes seconds, in which a run may be killed
            for line in measured.not_shown:
                log.say(f"step {step}: not shown: {line}")
            log.show(step, measured.shown)

    def _save_what_is_done(self, log: RunLog) -> None:
        """Before a run ends by an error that leaves weights and optimiser whole; of several ranks none saves alone."""
        unsaved = self.place is None or checkpoint.read_state(self.place)["step"] < self.step_number
        if self.ranks == 1 and unsaved and self.step_number:
            try:
                self._save(log, self.state["evaluation_due"], needed=True)
            except CheckpointError as error:  # the run's own error is told after it
                log.say(f"step {self.step_number}: {error}")

    def _save(self, log: RunLog, evaluation_due: bool, needed: bool) -> None:
        """Saves; a disk that does not take it costs the checkpoint, not the run.

        Raises:
            CheckpointError: it cannot be written, and training does not go on.
        """
        self.state["evaluation_due"] = evaluation_due
        optimizer_state = self.step.whole_state()  # all ranks take part
        if self.rank != 0:
            return
        average = self.step.average
        try:
            self.place = checkpoint.save_checkpoint(
                self.checkpoints,
                self.step_number,
                self.trained,
                self.model,
                optimizer_state,
                self.state,
                self.config.train.keep_checkpoints,
                None if average is None else average.arrays(),
                self.texts,
            )
        except CheckpointError as error:
            self.place = None
            if needed:
                raise
            log.say(f"step {self.step_number}: not saved, training goes on: {error}")


def parameter_table(model: nn.Cell) -> str:
    """Parameters of every part, to be printed."""
    rows = [(name, f"{count:,}") for name, count in count_parameters(model).items()]
    return table(rows, ("part", "parameters"))

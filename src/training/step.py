"""One training step: the host hands a batch to the device and waits for nothing.

What a step found stays on the device until it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.checkpoints.files import check_shapes, set_parameters, shapes_of
from src.errors import UserError
from src.models.dropout import dropouts, set_key
from src.objectives.objectives import Objectives
from src.training.accumulation import AccumulatedStep
from src.training.average import WeightAverage
from src.training.graphs import Gradients, Step, Update
from src.training.optimizer import AdamW
from src.training.shards import ShardedOptimizer

INITIAL_LOSS_SCALE = 65536.0
GUARD = ("bad_row", "bad_steps")  # what a run that goes on must know of its bad steps


class TrainingError(UserError):
    """A run that cannot go on; its message is one line."""


class NonFiniteError(TrainingError):
    """Losses or gradients that are not numbers, too often in a row; these steps updated nothing.

    Args:
        message: what was not finite in the latest of them.
        ago: how many steps have been taken since.
        row: how many came in a row at most.
        bad_ago: how many steps ago those of the latest were.
    """

    def __init__(self, message: str, ago: int = 0, row: int = 1, bad_ago: tuple[int, ...] = (0,)) -> None:
        super().__init__(message)
        self.ago, self.row, self.bad_ago = ago, row, bad_ago


@dataclass(frozen=True)
class StepResult:
    """What a step did: losses with their weighted ``total`` and metrics by name, gradient norm and rate.

    Attributes:
        skipped: it updated nothing.
        loss_scale: the one it had, where the precision needs one.
        bad_steps: steps of the run so far that were not finite.
        bad_ago: how many steps ago those of the latest were; 0: this one.
        stopping: share of the ranks that were asked to stop before it.
    """

    losses: dict[str, float]
    metrics: dict[str, float]
    norm: float
    rate: float
    skipped: bool
    loss_scale: float | None
    bad_steps: int
    bad_ago: tuple[int, ...] = ()
    stopping: float = 0.0


class TrainStep:
    """Takes a step when called with a batch of numpy arrays, and waits for nothing; :meth:`result` waits.

    Args:
        objectives: :class:`src.objectives.objectives.Objectives` or another task's; ``metrics`` names what follows its
            losses and is logged only; ``before_step`` makes from a batch what it lacks of ``fields``.
        optimizer: the update.
        clip_norm: largest global norm of the gradients.
        loss_scale: start of the dynamic loss scale, or None without one.
        mean: :class:`src.training.ranks.MeanOverRanks`, or None on one device.
        max_bad_steps: how many in a row are too many.
        mask_seed: what dropout's masks follow from beside the number of the step: the run's seed and the rank.
        part: the same objectives of a part of the batch, to take the batch in parts.
        average: of the weights, or None without one.
        remembered: of how many of the latest steps :meth:`result` tells which were bad.

    ``number``: steps taken; a run that goes on sets it.
    """

    def __init__(
        self,
        objectives: nn.Cell,
        optimizer: AdamW,
        clip_norm: float,
        loss_scale: float | None = None,
        mean: nn.Cell | None = None,
        max_bad_steps: int = 1,
        mask_seed: tuple[int, ...] = (),
        part: Objectives | None = None,
        average: WeightAverage | None = None,
        remembered: int = 1,
    ) -> None:
        self.fields, self.max_bad_steps = objectives.fields, max_bad_steps
        self.metrics: tuple[str, ...] = getattr(objectives, "metrics", ())
        self.names = ("total", *objectives.names, *self.metrics)
        self.before_step = getattr(objectives, "before_step", None)
        self.optimizer, self.gradients = optimizer, Gradients(objectives, optimizer)
        after_update = getattr(objectives, "after_update", None)
        self.average = average
        count = len(self.names)
        self.update = Update(optimizer, clip_norm, count, loss_scale, mean, after_update, average, remembered)
        self.mask_seed, self.drops, self.number = mask_seed, bool(dropouts(objectives)), 0
        self.report: Tensor | None = None
        self.graph, self.accumulated = Step(self.gradients, self.update), None
        if part is not None:
            self.accumulated = AccumulatedStep(objectives, part, optimizer, self.update, self.drops)
        self.set_train()

    def set_train(self, mode: bool = True) -> None:
        """What is trained and evaluated in turns changes its mode so."""
        for cell in (self.graph,) if self.accumulated is None else self.accumulated.cells:
            cell.set_train(mode)

    def state(self) -> dict[str, Parameter]:
        """The optimiser's state and the loss scale, by name; of a sharded optimiser this rank's shard."""
        update = self.update
        counts = {"loss_scale": update.loss_scale, "clean_steps": update.clean_steps}
        return self.optimizer.state() | counts | {name: getattr(update, name) for name in GUARD}

    def whole_state(self) -> dict[str, Parameter | np.ndarray]:
        """What a checkpoint holds, by name. All ranks must call it; it is whole on the rank that writes."""
        if isinstance(self.optimizer, ShardedOptimizer):
            return self.state() | self.optimizer.gather()
        return self.state()

    def load_state(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        """Goes on from what a checkpoint holds, whatever the number of ranks that wrote it.

        Raises:
            CheckpointError: another model wrote the file ``path`` with these arrays.
        """
        state = self.state()
        for name in GUARD:
            if name not in arrays:  # an earlier version wrote it
                del state[name]
        if isinstance(self.optimizer, ShardedOptimizer):
            check_shapes(shapes_of(state) | self.optimizer.sharded, arrays, path)
            own = self.optimizer.own_part(arrays)
            arrays = own | {name: arrays[name] for name in state if name not in own}
        set_parameters(state, arrays, path)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> None:
        if self.before_step is not None:
            batch = {**batch, **self.before_step(batch)}
        key = (*self.mask_seed, self.number)
        self.number += 1
        if self.accumulated is not None:
            self.report = self.accumulated(batch, key)
            return
        if self.drops:
            set_key(*key)
        self.report = self.graph(*[Tensor(batch[name]) for name in self.fields])

    def result(self) -> StepResult:
        """Of the last step; the only place where the host waits for the device.

        Raises:
            NonFiniteError: ``max_bad_steps`` steps in a row were bad.
        """
        values, n = self.report.asnumpy().astype(float).tolist(), len(self.names)
        losses, (norm, rate, updated, scale, stopping, row, since, bad) = values[:n], values[n : n + 8]
        last_bad, latest = values[n + 8 : 2 * n + 8], values[2 * n + 8 :]
        bad_ago = tuple(ago for ago, was_bad in enumerate(reversed(latest)) if was_bad)
        if row >= self.max_bad_steps:
            names = [name for name, value in zip(self.names, last_bad, strict=True) if not np.isfinite(value)]
            what = f"not finite: {', '.join(names) or 'the gradients'}"
            raise NonFiniteError(what, int(since), int(row), bad_ago)
        named = dict(zip(self.names, losses, strict=True))
        metrics = {name: named.pop(name) for name in self.metrics}
        used = scale if self.update.scales else None
        return StepResult(named, metrics, norm, rate, not updated, used, int(bad), bad_ago, stopping)

    def ask_to_stop(self) -> None:
        """The results of the steps from now on tell all ranks that this one was asked to stop."""
        self.update.stop.set_data(Tensor(1.0, ms.float32))

    def reset_scale(self) -> None:
        """Begins anew with the loss scale, as a run needs it that goes on in another precision."""
        self.update.loss_scale.set_data(Tensor(self.update.first_scale, ms.float32))
        self.update.clean_steps.set_data(Tensor(0, ms.int32))

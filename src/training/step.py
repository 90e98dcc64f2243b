"""One training step: a graph that makes the gradients, a look at them, a graph that updates the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import UserError
from src.training.optimizer import AdamW, store

SCALE_GROWTH_STEPS = 1000  # steps without overflow after which the loss scale doubles
INITIAL_LOSS_SCALE = 65536.0


class TrainingError(UserError):
    """A run that cannot go on; its message is one line."""


class NonFiniteError(TrainingError):
    """A loss that is not a number; nothing was updated."""


# primitives, for the compiler resolves a Tensor's method many times slower; L2Loss is off by 6 % at 25 M elements
_square, _sum = ops.Square(), ops.ReduceSum()
square_sum = ops.MultitypeFuncGraph("square_sum")


@square_sum.register("Tensor")
def _square_sum_one(gradient):
    return _sum(_square(ops.cast(gradient, ms.float32)))


class Gradients(nn.Cell):
    """Losses and gradients of a batch; the gradients stay on the device, in Parameters.

    The update is a graph of its own, so that the host sees losses and norm before anything changes, without a branch
    in a graph.

    Objectives may keep something that moves without a gradient, such as a codebook. They then return, beside the
    losses, a tuple of statistics, and ``after_update`` is a Cell that reads them from its Parameters ``statistics``.

    Args:
        objectives: :class:`src.objectives.objectives.Objectives` or another task's.
        optimizer: says what is trained and holds the gradients.
        mean_gradients: :class:`src.training.ranks.MeanGradients`, or None on one device.

    Inputs:
        loss_scale () float32, then the tensors that ``objectives.fields`` names. (A dict would be compiled in as a
        constant, once a batch.)

    Outputs:
        losses (1 + n,) float32: the total, each loss and each figure; norm () float32 of the unscaled gradients.
    """

    def __init__(self, objectives: nn.Cell, optimizer: AdamW, mean_gradients: nn.Cell | None = None) -> None:
        super().__init__()
        self.objectives, self.mean_gradients = objectives, mean_gradients
        self.gradients, self.pack = optimizer.gradients, optimizer.pack
        after_update = getattr(objectives, "after_update", None)
        self.statistics = None if after_update is None else after_update.statistics
        self.map = ops.HyperMap()
        self.value_and_grad = ops.value_and_grad(self.forward, None, optimizer.parameters_, has_aux=True)

    def forward(self, loss_scale, *tensors):
        batch = {}
        for name, tensor in zip(self.objectives.fields, tensors):  # noqa: B905 - the graph compiler has no strict=
            batch[name] = tensor
        found = self.objectives(batch)
        if self.statistics is None:
            losses = ops.stack(found)  # (1 + n,)
            return losses[0] * loss_scale, losses
        losses = ops.stack(found[0])  # (1 + n,)
        return losses[0] * loss_scale, (losses, *found[1])

    def construct(self, loss_scale, *tensors):
        (_, losses), gradients = self.value_and_grad(loss_scale, *tensors)
        gradients = self.pack(gradients)
        if self.mean_gradients is not None:
            gradients = self.mean_gradients(gradients)
        if self.statistics is not None:
            statistics = losses[1:]
            losses = losses[0]
            if self.mean_gradients is not None:
                statistics = self.mean_gradients(statistics)
            self.map(store, self.statistics, statistics)
        norm = ops.sqrt(ops.addn(self.map(square_sum, gradients))) / loss_scale
        self.map(store, self.gradients, gradients)
        return losses, norm


@dataclass(frozen=True)
class StepResult:
    """What a step did: losses with their weighted ``total`` and figures by name, gradient norm, rate, overflow."""

    losses: dict[str, float]
    figures: dict[str, float]
    norm: float
    rate: float
    skipped: bool


class TrainStep:
    """Runs a step; call it with a batch of numpy arrays.

    With a loss scale (fp16) a step whose gradients overflow updates nothing and halves the scale, which doubles again
    after 1,000 clean steps.

    Args:
        objectives: :class:`src.objectives.objectives.Objectives` or another task's; ``figures`` names what follows its
            losses and is logged only; ``before_step`` makes from a batch what it lacks of ``fields``.
        optimizer: the update.
        clip_norm: largest global norm of the gradients.
        loss_scale: start of the dynamic loss scale, or None without one.
        mean_gradients: :class:`src.training.ranks.MeanGradients`, or None on one device.

    Raises:
        NonFiniteError: when called, if a loss is not finite, or a gradient although no scale is left to be halved.
    """

    def __init__(
        self,
        objectives: nn.Cell,
        optimizer: AdamW,
        clip_norm: float,
        loss_scale: float | None = None,
        mean_gradients: nn.Cell | None = None,
    ) -> None:
        self.names, self.fields = objectives.names, objectives.fields
        self.figures: tuple[str, ...] = getattr(objectives, "figures", ())
        self.before_step = getattr(objectives, "before_step", None)
        self.after_update = getattr(objectives, "after_update", None)
        self.optimizer, self.clip_norm, self.scales = optimizer, clip_norm, loss_scale is not None
        self.first_scale = loss_scale or 1.0
        self.loss_scale = Parameter(Tensor(self.first_scale, ms.float32), name="loss_scale", requires_grad=False)
        self.clean_steps = Parameter(Tensor(0, ms.int32), name="clean_steps", requires_grad=False)
        self.make_gradients = Gradients(objectives, optimizer, mean_gradients)
        self.make_gradients.set_train()

    def state(self) -> dict[str, Parameter]:
        """The optimiser's state and the loss scale, by name."""
        return self.optimizer.state() | {"loss_scale": self.loss_scale, "clean_steps": self.clean_steps}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> StepResult:
        if self.before_step is not None:
            batch = {**batch, **self.before_step(batch)}
        tensors = [Tensor(batch[name]) for name in self.fields]
        losses, norm = self.make_gradients(self.loss_scale.value(), *tensors)
        values, norm = losses.asnumpy(), float(norm.asnumpy())
        names = ("total", *self.names, *self.figures)
        named = {name: float(value) for name, value in zip(names, values, strict=True)}
        overflow = not math.isfinite(norm)
        if not np.isfinite(values).all() or (overflow and not self.can_halve()):
            bad = [name for name, value in named.items() if not math.isfinite(value)]
            raise NonFiniteError(f"not finite: {', '.join(bad) or 'the gradients'}")
        rate = 0.0 if overflow else self.update(norm)
        if self.scales:
            self.adapt_scale(overflow)
        figures = {name: named.pop(name) for name in self.figures}
        return StepResult(named, figures, norm, rate, overflow)

    def update(self, norm: float) -> float:
        factor = min(1.0, self.clip_norm / (norm + 1e-6)) / float(self.loss_scale.asnumpy())
        rate = float(self.optimizer(Tensor(factor, ms.float32)).asnumpy())
        if self.after_update is not None:
            self.after_update()
        return rate

    def can_halve(self) -> bool:
        """False without a loss scale, and where it is 1: then an overflow is the gradients' own."""
        return self.scales and float(self.loss_scale.asnumpy()) > 1.0

    def reset_scale(self) -> None:
        """Begins anew with the loss scale, as a run needs it that goes on in another precision."""
        self.loss_scale.set_data(Tensor(self.first_scale, ms.float32))
        self.clean_steps.set_data(Tensor(0, ms.int32))

    def adapt_scale(self, overflow: bool) -> None:
        scale, clean = float(self.loss_scale.asnumpy()), int(self.clean_steps.asnumpy()) + 1
        if overflow:
            scale, clean = max(1.0, scale / 2), 0
        elif clean >= SCALE_GROWTH_STEPS:
            scale, clean = scale * 2, 0
        self.loss_scale.set_data(Tensor(scale, ms.float32))
        self.clean_steps.set_data(Tensor(clean, ms.int32))

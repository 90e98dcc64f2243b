"""The graph of a training step: gradients of a batch, their guard, the update of the weights."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.objectives.views import name_tensors
from src.training.optimizer import AdamW

SCALE_GROWTH_STEPS = 1000  # steps without overflow after which the loss scale doubles

# primitives, for the compiler resolves a Tensor's method many times slower; L2Loss is off by 6 % at 25 M elements
_square, _sum = ops.Square(), ops.ReduceSum()
square_sum = ops.MultitypeFuncGraph("square_sum")


@square_sum.register("Tensor")
def _square_sum_one(gradient):
    return _sum(_square(ops.cast(gradient, ms.float32)))


class Gradients(nn.Cell):
    """Losses and gradients of a batch.

    Objectives may keep something that moves without a gradient, such as a codebook. They then return, beside the
    losses, a tuple of statistics, from which their ``after_update`` moves it.

    Args:
        objectives: :class:`src.objectives.objectives.Objectives` or another task's.
        optimizer: says what is trained, and packs gradients.

    Inputs:
        loss_scale () float32, then the tensors that ``objectives.fields`` names.

    Outputs:
        losses (1 + n,) float32: the total, each loss and each metric; the packed gradients, times the loss scale; the
        statistics, () without any.
    """

    def __init__(self, objectives: nn.Cell, optimizer: AdamW) -> None:
        super().__init__()
        self.objectives, self.pack = objectives, optimizer.pack
        self.has_statistics = getattr(objectives, "after_update", None) is not None
        self.value_and_grad = ops.value_and_grad(self.forward, None, optimizer.parameters_, has_aux=True)

    def forward(self, loss_scale, *tensors):
        found = self.objectives(name_tensors(self.objectives.fields, tensors))
        statistics = ()
        if self.has_statistics:
            found, statistics = found
        losses = ops.stack(found)  # (1 + n,)
        return losses[0] * loss_scale, (losses, *statistics)

    def construct(self, loss_scale, *tensors):
        (_, found), gradients = self.value_and_grad(loss_scale, *tensors)
        return found[0], self.pack(gradients), found[1:]


class Update(nn.Cell):
    """What follows the gradients: their mean over the ranks, the guard, clipping, the optimiser, the loss scale.

    A step whose losses or gradients are not finite changes nothing: what would be written is selected on the device, so
    that no host waits to look. With a loss scale (fp16) an overflow halves it, which doubles again after 1,000 clean
    steps. A step that is not finite although no scale is left to be halved is *bad*.

    Args:
        optimizer: the update.
        clip_norm: largest global norm of the gradients.
        losses: 1 + n, how many numbers the objectives give.
        loss_scale: start of the dynamic loss scale, or None without one.
        mean: :class:`src.training.ranks.MeanOverRanks`, or None on one device.
        after_update: moves what has statistics instead of gradients, or None.
        average: :class:`src.training.average.WeightAverage`, or None without one.
        remembered: W, of how many of the latest steps it is told which were bad.

    Inputs:
        losses, packed gradients and statistics, as :class:`Gradients` gives them.

    Outputs:
        (2·(1 + n) + 8 + W,) float32: the losses; norm of the unscaled gradients, rate, whether the weights were
        updated, loss scale, share of the ranks that were asked to stop; how many bad steps came in a row at most, steps
        since the last of them, how many there were; its losses; of the latest steps, the last one last, which were bad.
    """

    def __init__(
        self,
        optimizer: AdamW,
        clip_norm: float,
        losses: int,
        loss_scale: float | None = None,
        mean: nn.Cell | None = None,
        after_update: nn.Cell | None = None,
        average: nn.Cell | None = None,
        remembered: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip_norm, self.mean, self.after_update = optimizer, clip_norm, mean, after_update
        self.average = average
        self.scales = loss_scale is not None
        self.first_scale = loss_scale or 1.0
        self.loss_scale = _number("loss_scale", self.first_scale)
        self.clean_steps = _number("clean_steps", 0, ms.int32)
        self.bad_row, self.longest, self.since, self.bad_steps = (
            _number(name, 0.0) for name in ("bad_row", "bad_longest", "bad_since", "bad_steps")
        )
        self.bad_losses = Parameter(initializer("zeros", (losses,)), name="bad_losses", requires_grad=False)
        self.bad_latest = Parameter(initializer("zeros", (remembered,)), name="bad_latest", requires_grad=False)
        self.stop = _number("stop", 0.0)  # the host sets it
        self.map = ops.HyperMap()

    def construct(self, losses, gradients, statistics):
        stop = self.stop.value()
        if self.mean is not None:
            together = self.mean((stop, losses, *statistics, *gradients))
            first = 2 + len(statistics)
            stop, losses, statistics, gradients = together[0], together[1], together[2:first], together[first:]
        scale = self.loss_scale.value()
        norm = ops.sqrt(ops.addn(self.map(square_sum, gradients))) / scale
        finite, fits = ops.isfinite(losses).all(), ops.isfinite(norm)
        good = ops.logical_and(finite, fits)
        factor = ops.minimum(self.clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32)) / scale
        rate = self.optimizer(ops.where(good, factor, ops.zeros_like(factor)), good, gradients)
        if self.after_update is not None:
            self.after_update(good, statistics)
        if self.average is not None:
            self.average(good)
        excused = good
        if self.scales:
            excused = ops.logical_or(good, ops.logical_and(finite, scale > 1.0))
            self.adapt_scale(scale, good)
        guard = self.guard(losses, ops.logical_not(excused))
        return ops.concat((losses, ops.stack((norm, rate, good.astype(ms.float32), scale, stop)), *guard))

    def guard(self, losses, bad):
        """Counts bad steps: the longest row, steps since the last one, and all (3,).

        Returns:
            The counts, the last bad step's losses (1 + n,), and which of the latest steps were bad (W,).
        """
        one = bad.astype(ms.float32)
        row = (self.bad_row + 1.0) * one
        longest, since = ops.maximum(self.longest, row), (self.since + 1.0) * (1.0 - one)
        total, kept = self.bad_steps + one, ops.where(bad, losses, self.bad_losses)
        latest = ops.concat((self.bad_latest[1:], one.reshape(1)))
        ops.assign(self.bad_row, row)
        ops.assign(self.longest, longest)
        ops.assign(self.since, since)
        ops.assign(self.bad_steps, total)
        ops.assign(self.bad_losses, kept)
        ops.assign(self.bad_latest, latest)
        return ops.stack((longest, since, total)), kept, latest

    def adapt_scale(self, scale, good):
        clean = (self.clean_steps + 1) * good.astype(ms.int32)
        grows = clean >= SCALE_GROWTH_STEPS
        halved = ops.maximum(scale * 0.5, Tensor(1.0, ms.float32))
        ops.assign(self.loss_scale, ops.where(good, ops.where(grows, scale * 2.0, scale), halved))
        ops.assign(self.clean_steps, clean * (1 - grows.astype(ms.int32)))


class Step(nn.Cell):
    """Gradients and update in one graph: no second copy of the gradients waits between two.

    Inputs: the tensors that ``objectives.fields`` names. Outputs: as :class:`Update`.
    """

    def __init__(self, gradients: Gradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, *tensors):
        losses, gradients, statistics = self.gradients(self.update.loss_scale.value(), *tensors)
        return self.update(losses, gradients, statistics)


def _number(name: str, value: float, kind: ms.Type = ms.float32) -> Parameter:
    return Parameter(Tensor(value, kind), name=name, requires_grad=False)

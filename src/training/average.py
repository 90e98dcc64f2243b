"""A moving average of the weights, which often answers better than the last ones (Polyak and Juditsky 1992)."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.training.muon import Muon
from src.training.optimizer import AdamW, mul_no_nan, packed_zeros

_approach = ops.MultitypeFuncGraph("approach")


@_approach.register("Tensor", "Tensor", "Tensor")
def _approach_one(share, held, weight):
    return ops.assign_add(held, mul_no_nan(weight - held, share))


class WeightAverage(nn.Cell):
    """ema ← d·ema + (1 − d)·w with d = min(decay, (1 + t) / (10 + t)) after the t-th update, for all that is trained.

    The average begins at the weights that it finds. That d grows with t lets it forget the first ones, which are random
    (``num_updates`` of TensorFlow's ``tf.train.ExponentialMovingAverage``). It is packed as the optimiser packs
    gradients, for the compiler takes its time over every tensor. All ranks have the same weights, so the same average.

    Args:
        optimizer: says what is trained, by its names in the network, and counts the updates.
        decay: the largest d, in (0, 1).

    Inputs:
        good () bool, False for a step that has updated nothing: it leaves the average as it is.
    """

    def __init__(self, optimizer: AdamW | Muon, decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.pack, self.parameters_ = optimizer.pack, optimizer.parameters_
        # kept, for a training step gives the parameters other names
        self.names = [[parameter.name for parameter in group] for group in optimizer.members]
        self.shapes = [group[0].shape for group in optimizer.members]
        self.step, self.least = optimizer.step, Tensor(1.0 - decay, ms.float32)
        self.held = packed_zeros("ema", optimizer)
        self.map = ops.HyperMap()
        self.begin()

    def construct(self, good):
        updates = self.step.value().astype(ms.float32)
        share = ops.maximum(self.least, 9.0 / (10.0 + updates)) * good.astype(ms.float32)  # 1 − d
        self.map(ops.partial(_approach, share), self.held, self.pack(self.parameters_))

    def begin(self) -> None:
        """Sets it to the present weights."""
        names = [name for group in self.names for name in group]
        self.set({name: weight.asnumpy() for name, weight in zip(names, self.parameters_, strict=True)})

    def set(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Args: arrays: of every trained parameter, by name."""
        for held, names in zip(self.held, self.names, strict=True):
            packed = np.stack([arrays[name] for name in names]).reshape(held.shape)
            held.set_data(Tensor(packed, held.dtype))

    def arrays(self) -> dict[str, np.ndarray]:
        """The average of every trained parameter, by name."""
        found = {}
        for held, names, shape in zip(self.held, self.names, self.shapes, strict=True):
            rows = held.asnumpy().reshape(len(names), *shape).copy()
            found |= dict(zip(names, rows, strict=True))
        return found

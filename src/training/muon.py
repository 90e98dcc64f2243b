"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised before they are applied."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import OptimizerConfig
from src.training.optimizer import (
    AdamW,
    group_alike,
    mul_no_nan,
    rates_by_name,
    stack_groups,
    stacked_zeros,
    store,
)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives every singular value to about 1
NEWTON_SCHULZ_STEPS = 5


def is_layer_matrix(parameter: Parameter) -> bool:
    """Muon trains the matrices of linear layers; tables of vectors, gains and biases are AdamW's."""
    return len(parameter.shape) == 2 and parameter.name.endswith("weight")


def orthogonalising_cost(shape: tuple[int, int]) -> int:
    """Multiplications of a Newton–Schulz step: x·xᵀ and the polynomial's product with x (R²C each), a square (R³)."""
    rows, columns = sorted(shape)
    return rows * rows * (2 * columns + rows)


class Orthogonalise(nn.Cell):
    """The nearest matrices with equal singular values, roughly: U·S·Vᵀ → U·S'·Vᵀ with S' between 0.7 and 1.2.

    Inputs:
        x (n, R, C) float32 with R ≤ C.

    Outputs:
        (n, R, C) float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product, self.product_bt = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)

    def construct(self, x):
        a, b, c = NEWTON_SCHULZ
        x = x * ops.rsqrt((x * x).sum((1, 2), keepdims=True) + 1e-14)
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = self.product_bt(x, x)  # (n, R, R)
            x = a * x + self.product(b * gram + c * self.product(gram, gram), x)
        return x


class Muon(nn.Cell):
    """M ← μM + (1−μ)G;  W ← (1 − lr·λ)·W − lr · √max(1, rows / columns) · orthogonal((1−μ)G + μM).

    Matrices of linear layers are updated so; everything else by :class:`AdamW`. Both follow one schedule, each from
    its own peak. A layer then moves by the same amount in all directions of its input, which on small models needs
    about a third of AdamW's steps for the same quality (docs/design.md).

    Args:
        parameters: what is trained.
        config: muon_lr (the peak for matrices), muon_momentum, lr, weight_decay, layer_decay and those of AdamW.
        rates: (steps,) learning rate of AdamW at every step.
        shares: as of AdamW.

    Inputs and outputs: as :class:`AdamW`.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: OptimizerConfig,
        rates: np.ndarray,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)  # or the inner AdamW would rename the model's parameters
        shares = shares or rates_by_name(parameters, config.layer_decay)
        self.adam = AdamW([p for p in parameters if not is_layer_matrix(p)], config, rates, shares)
        groups = group_alike([p for p in parameters if is_layer_matrix(p)], shares)
        self.kinds, self.groups = tuple(groups), tuple(groups.values())
        self.momenta = stacked_zeros("muon_m", groups)
        self.members = (*self.groups, *self.adam.members)
        self.parameters_ = ParameterTuple([p for group in self.members for p in group])
        self.ratio, self.decay = config.muon_lr / config.lr, config.weight_decay
        self.momentum, self.one = Tensor(config.muon_momentum, ms.float32), Tensor(1.0, ms.float32)
        self.map = ops.HyperMap()
        self.orthogonalise = Orthogonalise()

    @property
    def step(self) -> Parameter:
        """() int32, the updates so far."""
        return self.adam.step

    def state(self) -> dict[str, Parameter]:
        """What a checkpoint must keep, by name."""
        return self.adam.state() | {p.name: p for p in self.momenta}

    @property
    def packed_shapes(self) -> list[tuple[int, ...]]:
        """As of :class:`AdamW`."""
        return [momentum.shape for momentum in self.momenta] + self.adam.packed_shapes

    def pack(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As :meth:`AdamW.pack`."""
        matrices = len(self.parameters_) - len(self.adam.parameters_)
        return (*stack_groups(gradients[:matrices], self.groups), *self.adam.pack(gradients[matrices:]))

    def construct(self, factor, good, gradients):
        matrices = len(self.groups)
        adam_rate = self.adam(factor, good, gradients[matrices:])
        rate = adam_rate * self.ratio
        kept = ops.where(good, self.momentum, self.one)
        for kind, group, momentum, gradient in zip(  # noqa: B905 - the graph compiler has no strict=
            self.kinds, self.groups, self.momenta, gradients[:matrices]
        ):
            shape, share = kind
            steps = self.directions(momentum, mul_no_nan(gradient, factor), shape, kept)
            gain = max(1.0, shape[0] / shape[1]) ** 0.5 * share
            moved = ops.stack(group) * (1.0 - rate * share * self.decay) - steps * (rate * gain)
            self.map(store, group, ops.unstack(moved))
        return adam_rate

    def directions(self, momentum: Parameter, gradient: Tensor, shape: tuple[int, int], kept: Tensor) -> Tensor:
        """Advances a group's momentum and looks one step ahead (Nesterov): orthogonal directions (n, R, C).

        Args:
            momentum, gradient: (n, R, C).
            shape: (R, C).
            kept: () float32, the share of the momentum that is kept: μ, or 1 in a step that changes nothing.
        """
        advanced = momentum * kept + gradient * (1.0 - kept)
        ops.assign(momentum, advanced)
        prefetch = gradient * (1.0 - self.momentum) + advanced * self.momentum
        if shape[0] <= shape[1]:
            return self.orthogonalise(prefetch)
        return ops.transpose(self.orthogonalise(ops.transpose(prefetch, (0, 2, 1))), (0, 2, 1))


def build_optimizer(
    parameters: Sequence[Parameter],
    config: OptimizerConfig,
    rates: np.ndarray,
    shares: Mapping[str, float] | None = None,
) -> AdamW | Muon:
    """The optimiser that ``config.name`` asks for. Arguments: as :class:`AdamW`."""
    return {"adamw": AdamW, "muon": Muon}[config.name](parameters, config, rates, shares)

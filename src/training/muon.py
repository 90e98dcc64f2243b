"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised before they are applied."""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import OptimizerConfig
from src.training.layer_rates import rate_shares
from src.training.optimizer import AdamW

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives every singular value to about 1
NEWTON_SCHULZ_STEPS = 5


def is_layer_matrix(parameter: Parameter) -> bool:
    """Muon trains the matrices of linear layers; tables of vectors, gains and biases are AdamW's."""
    return len(parameter.shape) == 2 and parameter.name.endswith("weight")


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
    about a third of AdamW's steps for the same figures (docs/design.md).

    Args:
        parameters: what is trained.
        config: muon_lr (the peak for matrices), muon_momentum, lr, weight_decay, layer_decay and those of AdamW.
        rates: (steps,) learning rate of AdamW at every step.

    Inputs and outputs: as :class:`AdamW`.
    """

    def __init__(self, parameters: Sequence[Parameter], config: OptimizerConfig, rates: np.ndarray) -> None:
        super().__init__(auto_prefix=False)  # or the inner AdamW would rename the model's parameters
        matrices = [p for p in parameters if is_layer_matrix(p)]
        self.adam = AdamW([p for p in parameters if not is_layer_matrix(p)], config, rates)
        self.matrices = ParameterTuple(matrices)
        self.momenta = self.matrices.clone("muon_m", init="zeros")
        self.matrix_gradients = self.matrices.clone("gradient", init="zeros")
        self.parameters_ = ParameterTuple((*self.matrices, *self.adam.parameters_))
        self.gradients = ParameterTuple((*self.matrix_gradients, *self.adam.gradients))
        # equal shapes are orthogonalised together; a tall matrix as its transpose
        shapes = [tuple(sorted(p.shape)) for p in matrices]
        self.groups = tuple(
            tuple(i for i, other in enumerate(shapes) if other == shape) for shape in sorted(set(shapes))
        )
        self.tall = tuple(p.shape[0] > p.shape[1] for p in matrices)
        self.gains = tuple(max(1.0, p.shape[0] / p.shape[1]) ** 0.5 for p in matrices)
        shares = dict(zip((p.name for p in parameters), rate_shares(parameters, config.layer_decay), strict=True))
        self.shares = tuple(shares[p.name] for p in matrices)
        self.ratio, self.momentum, self.decay = config.muon_lr / config.lr, config.muon_momentum, config.weight_decay
        self.orthogonalise = Orthogonalise()

    def state(self) -> dict[str, Parameter]:
        """What a checkpoint must keep, by name."""
        return self.adam.state() | {p.name: p for p in self.momenta}

    def construct(self, factor):
        adam_rate = self.adam(factor)
        rate = adam_rate * self.ratio
        for group in self.groups:
            directions = ()
            for i in group:
                directions = (*directions, self.direction(i, factor))
            steps = self.orthogonalise(ops.stack(directions))
            for place, i in enumerate(group):
                self.move(i, steps[place], rate)
        return adam_rate

    def direction(self, i: int, factor: Tensor) -> Tensor:
        """Advances the momentum of matrix ``i`` and looks one step ahead (Nesterov); the wide way round."""
        gradient = self.matrix_gradients[i] * factor
        momentum = self.momenta[i] * self.momentum + gradient * (1.0 - self.momentum)
        ops.assign(self.momenta[i], momentum)
        ahead = gradient * (1.0 - self.momentum) + momentum * self.momentum
        return ops.transpose(ahead, (1, 0)) if self.tall[i] else ahead

    def move(self, i: int, step: Tensor, rate: Tensor) -> None:
        step = ops.transpose(step, (1, 0)) if self.tall[i] else step
        matrix = self.matrices[i]
        if self.shares[i] != 1.0:  # settled when the graph is compiled
            rate = rate * self.shares[i]
        ops.assign(matrix, matrix * (1.0 - rate * self.decay) - step * (rate * self.gains[i]))


def build_optimizer(parameters: Sequence[Parameter], config: OptimizerConfig, rates: np.ndarray) -> AdamW | Muon:
    """The optimiser that ``config.name`` asks for. Arguments: as :class:`AdamW`."""
    return {"adamw": AdamW, "muon": Muon}[config.name](parameters, config, rates)

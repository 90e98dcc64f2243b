"""AdamW with bias correction (Loshchilov and Hutter 2019), as one in-graph update."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.config import OptimizerConfig
from src.training.layer_rates import rate_shares


def trained_parameters(model: nn.Cell, objectives: nn.Cell) -> list[Parameter]:
    """The parameters that an active objective reaches; the others keep their values and cost no memory."""
    parts = objectives.trained_parts()
    return [p for name, p in model.parameters_and_names() if name.split(".")[0] in parts]


def decays(parameter: Parameter) -> bool:
    """Weight decay applies to matrices only: never to gains, biases, or tables of single vectors such as positions."""
    is_matrix = sum(size > 1 for size in parameter.shape) > 1
    return is_matrix and not parameter.name.endswith(("positions", "modality", "absent"))


Kind = tuple[tuple[int, ...], float]  # a shape and a share of the learning rate


def rates_by_name(parameters: Sequence[Parameter], decay: float) -> dict[str, float]:
    """Each parameter's share of the learning rate, by its name. Arguments: as :func:`rate_shares`."""
    return dict(zip((p.name for p in parameters), rate_shares(parameters, decay), strict=True))


def group_alike(parameters: Sequence[Parameter], shares: Mapping[str, float]) -> dict[Kind, ParameterTuple]:
    """What can be updated together, for the compiler takes its time over every tensor of a step.

    Args:
        parameters: to be grouped; each keeps its order within its group.
        shares: of the learning rate, by parameter.
    """
    groups: dict[Kind, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.shape, shares[parameter.name]].append(parameter)
    return {kind: ParameterTuple(group) for kind, group in groups.items()}


def stack_name(prefix: str, kind: Kind) -> str:
    """Of the tensor that holds what a group of that kind has stacked."""
    shape, share = kind
    return f"{prefix}.{'x'.join(map(str, shape))}.{share:g}"


def stacked_zeros(prefix: str, groups: Mapping[Kind, ParameterTuple]) -> ParameterTuple:
    """A Parameter (n, …) of zeros for every group: for gradients, moments, and what is stacked for them."""
    made = []
    for kind, group in groups.items():
        zeros = initializer("zeros", (len(group), *kind[0]))
        made.append(Parameter(zeros, name=stack_name(prefix, kind), requires_grad=False))
    return ParameterTuple(made)


def stack_groups(tensors: tuple[Tensor, ...], groups: tuple[ParameterTuple, ...]) -> tuple[Tensor, ...]:
    """One tensor (n, …) for every group, of tensors that stand in the order of the groups' parameters."""
    stacked = ()
    start = 0
    for group in groups:
        stacked = (*stacked, ops.stack(tensors[start : start + len(group)]))
        start = start + len(group)
    return stacked


store = ops.MultitypeFuncGraph("store")  # over places and values, by HyperMap


@store.register("Tensor", "Tensor")
def _store_one(place, value):
    return ops.assign(place, value)


_adam = ops.Adam()
mul_no_nan = ops.MulNoNan()  # 0 wherever the factor is 0, whatever the gradient is
_update = ops.MultitypeFuncGraph("adamw_update")


@_update.register(*["Tensor"] * 7, *["Number"] * 2, *["Tensor"] * 4)
def _update_one(beta1, beta2, power1, power2, rate, eps, factor, decay, share, parameter, first, second, gradient):
    if share != 1.0:  # settled when the graph is compiled
        rate = rate * share
    if decay != 0.0:
        ops.assign(parameter, parameter * (1.0 - rate * decay))
    return _adam(parameter, first, second, power1, power2, rate, beta1, beta2, eps, mul_no_nan(gradient, factor))


class AdamW(nn.Cell):
    """m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  w ← (1 − lr·λ)·w − lr · m̂ / (√v̂ + ε), m̂ and v̂ bias-corrected.

    The update is MindSpore's fused Adam with ε scaled by √(1 − β₂ᵗ), which makes it equal the formula above
    (``nn.AdamWeightDecay`` has no bias correction, ``nn.Adam`` no decoupled decay). Vectors of one
    length and rate are stacked.

    Args:
        parameters: what is trained.
        config: betas, eps, weight_decay, layer_decay (lr is then each parameter's share of the rate).
        rates: (steps,) learning rate of every step; the last one holds afterwards.
        shares: of the learning rate by parameter, where ``parameters`` are only some of what is trained.

    Inputs:
        factor () float32 that multiplies the gradients (clipping, loss scale); good () bool, False (and factor 0) for a
        step that changes nothing, whatever its gradients; the gradients as :meth:`pack` makes them, in the order of
        ``members``, which are each one's parameters.

    Outputs:
        () float32, the learning rate that was used.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: OptimizerConfig,
        rates: np.ndarray,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        shares = shares or rates_by_name(parameters, config.layer_decay)
        single = [p for p in parameters if p.ndim != 1]
        groups = group_alike([p for p in parameters if p.ndim == 1], shares)
        self.vectors, self.stacks = tuple(groups.values()), stacked_zeros("vectors", groups)
        self.members = (*((p,) for p in single), *self.vectors)
        self.parameters_ = ParameterTuple([p for group in self.members for p in group])
        self.places = ParameterTuple((*single, *self.stacks))
        self.first = self.places.clone("adam_m", init="zeros")
        self.second = self.places.clone("adam_v", init="zeros")
        self.step = Parameter(Tensor(0, ms.int32), name="adam_step", requires_grad=False)
        self.rates = Tensor(rates)
        self.last = len(rates) - 1
        self.decay = tuple(config.weight_decay if decays(group[0]) else 0.0 for group in self.members)
        self.shares = tuple(shares[group[0].name] for group in self.members)
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.one = Tensor(1.0, ms.float32)
        self.eps = config.eps
        self.map = ops.HyperMap()

    def state(self) -> dict[str, Parameter]:
        """What a checkpoint must keep, by name."""
        return {p.name: p for p in (*self.first, *self.second, self.step)}

    @property
    def packed_shapes(self) -> list[tuple[int, ...]]:
        """Of what :meth:`pack` gives."""
        return [place.shape for place in self.places]

    def pack(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the update reads. Args: gradients: one a trained parameter, in the order of ``parameters_``."""
        single = len(self.places) - len(self.stacks)
        return (*gradients[:single], *stack_groups(gradients[single:], self.vectors))

    def construct(self, factor, good, gradients):
        step = self.step.value()
        rate = self.rates[ops.minimum(step, self.last)] * good.astype(ms.float32)
        ops.assign(self.step, step + good.astype(ms.int32))
        time = (step + 1).astype(ms.float32)
        power1, power2 = ops.pow(self.beta1, time), ops.pow(self.beta2, time)
        eps = self.eps * ops.sqrt(1.0 - power2)
        # of a step that changes nothing the moments keep all and take nothing
        beta1, beta2 = ops.where(good, self.beta1, self.one), ops.where(good, self.beta2, self.one)
        update = ops.partial(_update, beta1, beta2, power1, power2, rate, eps, factor)
        for place, vectors in zip(self.stacks, self.vectors):  # noqa: B905 - the graph compiler has no strict=
            ops.assign(place, ops.stack(vectors))
        self.map(update, self.decay, self.shares, self.places, self.first, self.second, gradients)
        for place, vectors in zip(self.stacks, self.vectors):  # noqa: B905
            self.map(store, vectors, ops.unstack(place))
        return rate


def packed_zeros(prefix: str, optimizer: nn.Cell) -> ParameterTuple:
    """Parameters of zeros in the shapes of what an optimiser packs."""
    shapes = enumerate(optimizer.packed_shapes)
    return ParameterTuple(
        [Parameter(initializer("zeros", shape), name=f"{prefix}.{i}", requires_grad=False) for i, shape in shapes]
    )

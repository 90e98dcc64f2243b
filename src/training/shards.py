"""An optimiser sharded over the data-parallel ranks: ZeRO stage 1 (Rajbhandari et al. 2020).

Every rank has all weights and all averaged gradients, but moments for its own shard of the weights alone. It updates
that, and then the ranks exchange what they updated. Shards are made of whole tensors. Vectors, which are small and
updated in stacks, stay on all ranks.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import OptimizerConfig
from src.training.muon import build_optimizer, is_layer_matrix, orthogonalising_cost
from src.training.optimizer import group_alike, rates_by_name, stack_name, store
from src.training.ranks import BUCKET

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]
Place = tuple[str, int | None]  # a tensor of the optimiser's state, and the row in it; None: all of it
WRITER = 0  # the rank that writes checkpoints


def divide(costs: Sequence[int], loads: Sequence[int]) -> list[int]:
    """Gives every item to a rank: the most expensive first, each to the rank that has least so far.

    Args:
        costs: of each item.
        loads: of each rank beforehand.

    Returns:
        The rank of each item; it depends on the arguments alone, so that all ranks find the same.
    """
    loads, owners = list(loads), [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        owner = loads.index(min(loads))
        owners[item] = owner
        loads[owner] += costs[item]
    return owners


def split(parameters: Sequence[Parameter], muon: bool) -> tuple[list[Parameter], list[Parameter]]:
    """What is sharded: the matrices that Muon orthogonalises, if it is used, and all else but the vectors."""
    matrices = [p for p in parameters if muon and is_layer_matrix(p)]
    return matrices, [p for p in parameters if p.ndim != 1 and not (muon and is_layer_matrix(p))]


def find_owners(parameters: Sequence[Parameter], muon: bool, ranks: int) -> dict[str, int]:
    """The rank of every parameter but the vectors, by name.

    Muon's matrices are balanced by their time, as orthogonalising them takes longer than all the rest of an update.
    What AdamW updates is balanced by memory, with the matrices' momentum counted.
    """
    matrices, tables = split(parameters, muon)
    owners = divide([orthogonalising_cost(p.shape) for p in matrices], [0] * ranks)
    held = [sum(p.size for p, owner in zip(matrices, owners, strict=True) if owner == rank) for rank in range(ranks)]
    owners += divide([2 * p.size for p in tables], held)
    return dict(zip((p.name for p in (*matrices, *tables)), owners, strict=True))


def make_buckets(shards: Sequence[Sequence[Parameter]], limit: int) -> list[list[list[Parameter]]]:
    """What is joined at once: for every bucket the parameters of each rank.

    All ranks send as much as the one with most, so they are filled alike, the large parameters first.

    Args:
        shards: the parameters of each rank.
        limit: the most elements of a rank in a bucket, but for a parameter that is larger.
    """
    waiting = [deque(sorted(shard, key=lambda p: -p.size)) for shard in shards]
    buckets = []
    while any(waiting):
        room = max(limit, *(queue[0].size for queue in waiting if queue))
        bucket = []
        for queue in waiting:
            part, elements = [], 0
            while queue and elements + queue[0].size <= room:
                elements += queue[0].size
                part.append(queue.popleft())
            bucket.append(part)
        buckets.append(bucket)
    return buckets


def moment_places(
    parameters: Sequence[Parameter], muon: bool, shares: Mapping[str, float]
) -> tuple[dict[str, tuple[Place, ...]], dict[str, Shape]]:
    """Where an unsharded optimiser has the moments of all parameters but the vectors.

    Args:
        shares: of the learning rate, by parameter.

    Returns:
        The places of each parameter's moments, and the shapes of the tensors that hold them.
    """
    matrices, tables = split(parameters, muon)
    places: dict[str, tuple[Place, ...]] = {}
    shapes: dict[str, Shape] = {}
    for kind, group in group_alike(matrices, shares).items():
        tensor = stack_name("muon_m", kind)
        shapes[tensor] = (len(group), *kind[0])
        places |= {p.name: ((tensor, row),) for row, p in enumerate(group)}
    for p in tables:
        places[p.name] = ((f"adam_m.{p.name}", None), (f"adam_v.{p.name}", None))
        shapes |= {tensor: tuple(p.shape) for tensor, _ in places[p.name]}
    return places, shapes


class JoinWeights(nn.Cell):
    """Gives all ranks what each has updated of a bucket's weights, by one AllGather.

    Args:
        bucket: the parameters of each rank.
        rank: this one.

    Inputs:
        before (): a number that must have been computed before. The graphs of the ranks differ, and their collectives
        must come in one order.

    Outputs:
        () float32 that the next one takes.
    """

    def __init__(self, bucket: Sequence[Sequence[Parameter]], rank: int) -> None:
        super().__init__(auto_prefix=False)
        sizes = [sum(p.size for p in part) for part in bucket]
        self.own, self.padding = ParameterTuple(bucket[rank]), max(sizes) - sizes[rank]
        # its own too: a rank to which the others bring nothing would leave the collective out
        self.weights = ParameterTuple([p for part in bucket for p in part])
        starts = []
        for number, part in enumerate(bucket):
            within = np.cumsum([0, *(p.size for p in part)])[:-1]
            starts += (number * max(sizes) + within).tolist()
        self.starts = tuple(starts)
        self.all_gather, self.map = ops.AllGather(), ops.HyperMap()

    def construct(self, before):
        flat = ()
        for weight in self.own:
            flat = (*flat, weight.reshape(-1))
        if self.padding > 0:
            flat = (*flat, ops.zeros((self.padding,), ms.float32))
        sent = ops.depend(ops.concat(flat, 0), before)
        joined = self.all_gather(sent)
        values = ()
        for weight, start in zip(self.weights, self.starts):  # noqa: B905 - the graph compiler has no strict=
            values = (*values, joined[start : start + weight.size].reshape(weight.shape))
        self.map(store, self.weights, values)
        return joined[0]


class ShardedOptimizer(nn.Cell):
    """An optimiser of which this rank has a shard, with the interface of :class:`src.training.optimizer.AdamW`.

    Gradients are packed as each rank's optimiser reads them: first what rank 0 updates, then what rank 1 updates, …,
    at last the vectors. Checkpoints are those of the unsharded optimiser (:meth:`gather`, :meth:`own_part`).

    Args:
        parameters, config, rates: as of AdamW.
        rank, ranks: this one, and how many there are.
        bucket: the most elements that are joined at once, but for larger parameters.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        config: OptimizerConfig,
        rates: np.ndarray,
        rank: int,
        ranks: int,
        bucket: int = BUCKET,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.rank = rank
        shares, self.muon = rates_by_name(parameters, config.layer_decay), config.name == "muon"
        self.owners = find_owners(parameters, self.muon, ranks)
        shards = [[p for p in parameters if self.owners.get(p.name) == number] for number in range(ranks)]
        vectors = [p for p in parameters if p.ndim == 1]
        self.local = build_optimizer([*shards[rank], *vectors], config, rates, shares)
        self.joins = nn.CellList(
            [JoinWeights(each, rank) for each in make_buckets(shards, bucket // ranks)], auto_prefix=False
        )
        packs = [self._members(shard, shares) for shard in shards]
        packs.append([(group, True) for group in group_alike(vectors, shares).values()])
        self.members = tuple(group for pack in packs for group, _ in pack)
        self.stacks = tuple(stacks for pack in packs for _, stacks in pack)
        self.parameters_ = ParameterTuple([p for group in self.members for p in group])
        ends = np.cumsum([0, *map(len, packs)]).tolist()
        self.first, self.last, self.shared = ends[rank], ends[rank + 1], ends[-2]
        self.places, self.sharded = moment_places(parameters, self.muon, shares)
        self.shapes = {p.name: tuple(p.shape) for p in parameters}

    def _members(self, shard: Sequence[Parameter], shares: Mapping[str, float]) -> list[tuple[Sequence, bool]]:
        """A rank's parameters as they are packed, and whether they are stacked."""
        matrices, tables = split(shard, self.muon)
        return [*((group, True) for group in group_alike(matrices, shares).values()), *(((p,), False) for p in tables)]

    @property
    def step(self) -> Parameter:
        """Updates so far, () int32; the same on all ranks."""
        return self.local.step

    @property
    def packed_shapes(self) -> list[Shape]:
        """As of AdamW."""
        pairs = zip(self.members, self.stacks, strict=True)
        return [(len(group), *group[0].shape) if stacks else group[0].shape for group, stacks in pairs]

    def pack(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As of AdamW."""
        packed, start = (), 0
        for group, stacks in zip(self.members, self.stacks):  # noqa: B905
            given = gradients[start : start + len(group)]
            packed = (*packed, ops.stack(given) if stacks else given[0])
            start = start + len(group)
        return packed

    def construct(self, factor, good, gradients):
        own = (*gradients[self.first : self.last], *gradients[self.shared :])
        rate = self.local(factor, good, own)
        before = rate
        for join in self.joins:
            before = join(before)
        return rate

    def state(self) -> dict[str, Parameter]:
        """What this rank keeps, by name."""
        return self.local.state()

    def gather(self) -> Arrays:
        """The sharded part of the state as the unsharded optimiser has it, on the rank that writes; {} on the others.

        All ranks must call it. One parameter's moment travels at a time, so that no device ever holds them all.
        """
        writes = self.rank == WRITER
        found = {tensor: np.empty(shape, np.float32) for tensor, shape in self.sharded.items() if writes}
        state, sent = self.state(), Counter()  # how many rows of a tensor this rank has sent
        for name, places in self.places.items():
            owner = self.owners[name]
            for tensor, row in places:
                moment = None
                if owner == self.rank:
                    moment = state[tensor].value() if row is None else state[tensor][sent[tensor]]
                    sent[tensor] += 1
                if owner != WRITER:
                    moment = ops.zeros(self.shapes[name], ms.float32) if moment is None else moment
                    moment = ops.Broadcast(owner)((moment,))[0]
                if writes:
                    found[tensor][... if row is None else row] = moment.asnumpy()
        return found

    def own_part(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """What this rank keeps of an unsharded optimiser's state."""
        rows: dict[str, list[int]] = {}
        for name, places in self.places.items():
            for tensor, row in places:
                if row is not None and self.owners[name] == self.rank:
                    rows.setdefault(tensor, []).append(row)
        return {name: arrays[name][rows[name]] if name in rows else arrays[name] for name in self.state()}

"""What the objectives of several ranks share: contrastive candidates, and what each loss is the mean over."""

from collections.abc import Sequence
from dataclasses import dataclass

from mindspore import Tensor, nn, ops

from src.losses.means import at_least_one


class GatherRows(nn.Cell):
    """Joins the rows of all ranks: (B, …) → (ranks·B, …), rank 0 first.

    Its own backward sums the output's gradient over the ranks and keeps this rank's rows: AllGather's has no CPU
    kernel, and this is the same everywhere.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.all_gather = ops.AllGather()
        self.all_reduce = ops.AllReduce()

    def construct(self, rows):
        return self.all_gather(rows)

    def bprop(self, rows, out, dout):
        start = self.rank * rows.shape[0]
        return (self.all_reduce(dout)[start : start + rows.shape[0]],)


@dataclass(frozen=True)
class Peers:
    """The ranks of a run, seen from one of them."""

    rank: int = 0
    ranks: int = 1

    def gather(self) -> GatherRows | None:
        """Joins rows over the ranks; None for a rank that is alone."""
        return GatherRows(self.rank) if self.ranks > 1 else None


ALONE = Peers()


class Counts(nn.Cell):
    """What the sum of each loss on this rank is divided by: this rank's share of the items of all ranks.

    The mean of the ranks' losses, and of their gradients, is then that of one process with all the items, whatever the
    ranks' samples have. (The mean of the ranks' own means would be another: a rank with one spoken sample would weigh
    as much as one with fifty.)

    Inputs:
        weights: a tensor for each loss.

    Outputs:
        a () float32 for each, without gradient.
    """

    def __init__(self, peers: Peers) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce() if peers.ranks > 1 else None
        self.share = 1.0 / peers.ranks

    def construct(self, weights: Sequence[Tensor]):
        counts = ()
        for weight in weights:
            counts = (*counts, ops.stop_gradient(weight.sum()))
        if self.all_reduce is None:
            found = ()
            for count in counts:
                found = (*found, at_least_one(count))
            return found
        return ops.unstack(at_least_one(self.all_reduce(ops.stack(counts))) * self.share)

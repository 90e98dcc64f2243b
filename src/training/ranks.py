"""What several devices share: gradients are averaged, contrastive candidates are gathered."""

from mindspore import Tensor, nn, ops


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


class MeanGradients(nn.Cell):
    """Averages every gradient over the ranks."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.share = 1.0 / ranks
        self.all_reduce = ops.AllReduce()

    def construct(self, grads: tuple[Tensor, ...]):
        averaged = ()
        for gradient in grads:
            averaged = (*averaged, self.all_reduce(gradient) * self.share)
        return averaged

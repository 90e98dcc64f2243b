"""The mean over the ranks of what a step makes: losses, gradients, statistics."""

import mindspore as ms
from mindspore import Tensor, nn, ops

BUCKET = 8 * 2**20  # elements that are reduced together, 32 MiB: fewer calls than tensors, several so that they overlap


class MeanOverRanks(nn.Cell):
    """Averages float32 tensors over the ranks, in few large buckets.

    Every call has its latency, whatever it carries, and most tensors are small. The last tensors come first: in the
    backward pass their gradients are ready first.

    Args:
        ranks: how many there are.
        bucket: the most elements of a bucket, but for a tensor that is larger.

    Inputs and outputs:
        a tuple of tensors.
    """

    def __init__(self, ranks: int, bucket: int = BUCKET) -> None:
        super().__init__()
        self.share, self.bucket = 1.0 / ranks, bucket
        self.all_reduce = ops.AllReduce()

    def construct(self, tensors: tuple[Tensor, ...]):
        means, held, elements = (), (), 0
        for tensor in tensors[::-1]:
            if elements > 0 and elements + tensor.size > self.bucket:
                means, held, elements = (*means, *self.mean(held)), (), 0
            held, elements = (*held, tensor), elements + tensor.size
        means = (*means, *self.mean(held))
        return means[::-1]

    def mean(self, tensors):
        """Of one bucket."""
        flat = ()
        for tensor in tensors:
            flat = (*flat, tensor.reshape(-1))
        whole = self.all_reduce(flat[0] if len(flat) == 1 else ops.concat(flat, 0)) * self.share
        means, start = (), 0
        for tensor in tensors:
            means = (*means, whole[start : start + tensor.size].reshape(tensor.shape))
            start = start + tensor.size
        return means


def any_rank(here: bool) -> bool:
    """Whether it is so on any rank; all of several must ask."""
    return bool(ops.AllReduce()(Tensor([float(here)], ms.float32)).asnumpy()[0] > 0)

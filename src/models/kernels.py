"""What the layers run on a CPU: the same functions with a backward of their own.

MindSpore's CPU operators are quick in matrix products and where shapes are equal. One that spreads an operand over the
other reads an index for each element, from a table that it fills at its first call; slower still are the gradients of
layer norm, softmax and bias, and erf. Here rows and columns are spread and summed by products with ones, and erf is a
polynomial inside a logistic function.

Letters: ``N`` rows, ``D`` width; in attention ``B`` batch, ``H`` heads, ``Lq`` queries, ``Lk`` keys.
"""

import functools
import math

import mindspore as ms
from mindspore import Tensor, nn, ops

reshape, cast = ops.Reshape(), ops.Cast()
row_mean = ops.ReduceMean(keep_dims=True)
matmul, matmul_at, matmul_bt = ops.MatMul(), ops.MatMul(transpose_a=True), ops.MatMul(transpose_b=True)
bias_add = ops.BiasAdd()
mul, add, sub = ops.Mul(), ops.Add(), ops.Sub()
sigmoid, exp, rsqrt = ops.Sigmoid(), ops.Exp(), ops.Rsqrt()

# Φ(x) ≈ σ(x·h(x²)), h's coefficients from the lowest: least-maximum fit of x·Φ(x), which is off by 3.1e-6 at most
GELU_POLYNOMIAL = (1.59565627, 0.0729375812, -2.4972299e-4, -6.1162052e-5, 2.23816608e-6)


def _spread_columns(column: Tensor, width: int) -> Tensor:
    """(N, 1) → (N, width)."""
    return matmul(column, ops.ones((1, width), column.dtype))


def _spread_rows(row: Tensor, like: Tensor) -> Tensor:
    """(D,) → (N, D) for ``like`` (N, 1)."""
    return matmul(ops.ones_like(like), reshape(row, (1, -1)))


def _column_sums(x: Tensor) -> Tensor:
    """(N, D) → (D,)."""
    return reshape(matmul(ops.ones((1, x.shape[0]), x.dtype), x), (x.shape[1],))  # (D,)


class LinearKernel(nn.Cell):
    """x (…, I), weight (O, I), bias (O,) → (…, O)."""

    def construct(self, x, weight, bias):
        rows = reshape(x, (-1, weight.shape[1]))  # (N, I)
        return reshape(bias_add(matmul_bt(rows, weight), bias), x.shape[:-1] + bias.shape)

    def bprop(self, x, weight, bias, out, dout):
        rows, drows = reshape(x, (-1, weight.shape[1])), reshape(dout, (-1, weight.shape[0]))  # (N, I), (N, O)
        return reshape(matmul(drows, weight), x.shape), matmul_at(drows, rows), _column_sums(drows)


class LayerNormKernel(nn.Cell):
    """x (…, D), gain (D,), shift (D,) → y = c·s·gain + shift (…, D), with c = x − mean and s = 1/deviation.

    c, s and s·gain, by rows, are further outputs, for the backward: with e = dy·gain,
    dx = s·e − s·mean(e) − s³·mean(e·c)·c.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def construct(self, x, gain, shift):
        rows = reshape(x, (-1, x.shape[-1]))  # (N, D)
        centred = sub(rows, _spread_columns(row_mean(rows, -1), x.shape[-1]))
        scale = rsqrt(add(row_mean(mul(centred, centred), -1), self.epsilon))  # (N, 1)
        slope = matmul(scale, reshape(gain, (1, -1)))  # (N, D)
        return reshape(add(mul(centred, slope), _spread_rows(shift, scale)), x.shape), centred, scale, slope

    def bprop(self, x, gain, shift, out, dout):
        _, centred, scale, slope = out
        width = x.shape[-1]
        dy = reshape(dout[0], (-1, width))  # (N, D)
        product = mul(dy, centred)
        share = mul(reshape(gain, (-1, 1)), 1.0 / width)  # (D, 1)
        mean = mul(scale, matmul(dy, share))  # (N, 1)
        tilt = mul(mul(mul(scale, scale), scale), matmul(product, share))  # (N, 1)
        dx = sub(sub(mul(dy, slope), _spread_columns(mean, width)), mul(centred, _spread_columns(tilt, width)))
        return reshape(dx, x.shape), reshape(matmul_at(scale, product), gain.shape), _column_sums(dy)


class GeluKernel(nn.Cell):
    """x → x·Φ(x), with Φ kept for the backward: Φ + x·φ."""

    def construct(self, x):
        square = mul(x, x)
        inner = GELU_POLYNOMIAL[-1]
        for coefficient in GELU_POLYNOMIAL[-2::-1]:
            inner = add(mul(square, inner), coefficient)
        phi = sigmoid(mul(x, inner))  # the CPU's tanh is off by 1e-4
        return mul(x, phi), phi

    def bprop(self, x, out, dout):
        density = mul(exp(mul(mul(x, x), -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
        return (mul(dout[0], add(out[1], mul(x, density))),)


class AttentionKernel(nn.Cell):
    """Scores (B, H, Lq, Lk), values (B, H, Lk, D/H) → softmax(scores)·values (B, H, Lq, D/H).

    The weights are a further output, for the backward. A query's Σ weights·dweights is taken from the much narrower
    outputs, as Σ outputs·doutputs (Dao et al. 2022).
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.product, self.product_at = ops.BatchMatMul(), ops.BatchMatMul(transpose_a=True)
        self.product_bt = ops.BatchMatMul(transpose_b=True)

    def construct(self, scores, values):
        weights = self.softmax(cast(scores, ms.float32))
        return self.product(cast(weights, values.dtype), values), weights

    def bprop(self, scores, values, out, dout):
        mixed, weights = out
        dmixed = dout[0]
        dweights = cast(self.product_bt(dmixed, values), ms.float32)
        narrow = reshape(cast(mul(dmixed, mixed), ms.float32), (-1, mixed.shape[3]))  # (B·H·Lq, D/H)
        sums = matmul(narrow, ops.ones((mixed.shape[3], weights.shape[3]), ms.float32))  # (B·H·Lq, Lk), spread
        dscores = mul(weights, sub(dweights, reshape(sums, weights.shape)))
        return cast(dscores, scores.dtype), self.product_at(cast(weights, values.dtype), dmixed)


# One of each for all layers: the compiler reads and types a Cell once, however often it is called.
linear, gelu, mix = LinearKernel(), GeluKernel(), AttentionKernel()
layer_norm = functools.cache(LayerNormKernel)  # one an epsilon

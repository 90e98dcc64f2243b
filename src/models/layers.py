"""The Transformer's parts, shared by every encoder and decoder.

Letters: ``B`` batch, ``L`` length, ``D`` width, ``H`` heads, ``N`` rows (B·L).

On a CPU :class:`Linear`, :class:`LayerNorm`, :class:`Gelu` and :class:`Attention` run what :mod:`src.models.kernels`
holds for them; elsewhere, and in half precision, the stock operators, which accelerators fuse.

The residual stream is float32. In half precision (:mod:`src.models.precision`) it is cast once where it enters a part,
and back once where the part's output is added to it; between the products of a part everything is of the compute type.
"""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.models import kernels, precision
from src.models.dropout import Dropout
from src.models.kernels import bias_add, cast, matmul_bt, reshape

# Primitives instead of Tensor methods: the graph compiler resolves a method call many times slower.
transpose = ops.Transpose()

# Starting scales of tables: what is added to something starts about as large as that, or it is learned late
TOKEN_STD = 0.1
POSITION_STD = 0.3
MEMORY_POSITION_STD = 1.0  # added to what a layer norm has normalised
TABLE_WIDTH = 128  # at which tables of tokens and their positions have the scales above
EPSILON = 1e-5  # of a layer norm
FLASH_WIDTH = 16  # the operator takes heads whose width is a multiple of it
MASKED = -1e4  # added to the logits of masked positions; representable in fp16


def tied_std(std: float, width: int) -> float:
    """Starting scale of a table of tokens whose rows are the outputs too, and of the positions added to its rows.

    Outputs are products with layer-normalised vectors, whose length is √D. With rows of standard deviation ∝ 1/√D the
    logits have a spread of about 1 at every width, and first losses are about half a nat above ln V.

    Args:
        std: at :data:`TABLE_WIDTH`.
        width: D.
    """
    return std * (TABLE_WIDTH / width) ** 0.5


class Linear(nn.Cell):
    """y = x·Wᵀ + b over the last axis.

    Args:
        inputs: width of x.
        outputs: width of y.
        inner: y stays in the compute type, for it goes into another product; otherwise it is float32.

    Inputs:
        x (…, I) float.

    Outputs:
        (…, O) float.
    """

    def __init__(self, inputs: int, outputs: int, inner: bool = False) -> None:
        super().__init__()
        self.compute_type = precision.compute_type()
        self.output_type = self.compute_type if inner else ms.float32
        self.inputs, self.outputs = inputs, outputs
        # 1/√(3·inputs): BERT's 0.02 at BERT's width; at width 128 the same 0.02 costs a third of a short run's recall
        self.weight = Parameter(initializer(Normal((3 * inputs) ** -0.5), (outputs, inputs)), name="weight")
        self.bias = Parameter(initializer("zeros", (outputs,)), name="bias")
        self.kernel = kernels.linear if precision.runs_own_kernels() else None

    def construct(self, x):
        if self.kernel is not None:
            return self.kernel(x, self.weight, self.bias)
        rows = cast(reshape(x, (-1, self.inputs)), self.compute_type)  # (N, I)
        y = cast(matmul_bt(rows, cast(self.weight, self.compute_type)), self.output_type)
        y = bias_add(y, cast(self.bias, self.output_type))
        return reshape(y, x.shape[:-1] + (self.outputs,))  # (…, O)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis (Ba et al. 2016), float32 in every precision.

    Inputs:
        x (…, D) float32.

    Outputs:
        (…, D) float32.
    """

    def __init__(self, width: int, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.gain = Parameter(initializer("ones", (width,)), name="gain")
        self.shift = Parameter(initializer("zeros", (width,)), name="shift")
        self.kernel = kernels.layer_norm(epsilon) if precision.runs_own_kernels() else None
        self.stock = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)

    def construct(self, x):
        if self.kernel is None:
            return self.stock(x, self.gain, self.shift)[0]
        return self.kernel(x, self.gain, self.shift)[0]


class Gelu(nn.Cell):
    """The exact (erf) GELU of BERT and ViT (Hendrycks and Gimpel 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = kernels.gelu if precision.runs_own_kernels() else None
        self.stock = nn.GELU(approximate=False)

    def construct(self, x):
        return self.stock(x) if self.kernel is None else self.kernel(x)[0]


def padding_bias(mask: Tensor) -> Tensor:
    """mask (B, L), 1 where a position may be attended → additive bias (B, 1, 1, L), float32."""
    bias = (1.0 - cast(mask, ms.float32)) * MASKED
    return reshape(bias, (mask.shape[0], 1, 1, mask.shape[1]))  # (B, 1, 1, L)


def causal_bias(length: int) -> Tensor:
    """(1, 1, L, L) float32: position i attends to j ≤ i."""
    ones = ops.ones((length, length), ms.float32)
    return reshape((1.0 - ops.tril(ones)) * MASKED, (1, 1, length, length))  # (1, 1, L, L)


def apply_mask_token(tokens: Tensor, masked: Tensor, mask_token: Tensor) -> Tensor:
    """Tokens (B, L, D) with ``mask_token`` (1, 1, D) where ``masked`` (B, L) float is 1."""
    masked = cast(reshape(masked, (tokens.shape[0], tokens.shape[1], 1)), tokens.dtype)
    return tokens * (1.0 - masked) + cast(mask_token, tokens.dtype) * masked


def gather_positions(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens (B, L, D) at positions (B, K) int32 → (B, K, D)."""
    rows, slots = positions.shape
    first = ops.arange(rows).reshape(rows, 1) * tokens.shape[1]  # of each row in the flat table
    flat = reshape(positions + cast(first, positions.dtype), (rows * slots,))
    found = ops.gather(reshape(tokens, (-1, tokens.shape[2])), flat, 0)
    return reshape(found, (rows, slots, tokens.shape[2]))


class FlashAttention(nn.Cell):
    """Attention as the one operator that MindSpore has for Ascend, which holds no weights (Dao et al. 2022).

    Args:
        heads: H.
        scale: of the scores.

    Inputs:
        queries (B, H, Lq, D/H), keys and values (B, H, Lk, D/H) float16 or bfloat16, D/H a multiple of 16; bias
        (1 or B, 1, 1 or Lq, Lk), 0 or MASKED, or None. A query whose every key is masked attends to all of them, as it
        does where a bias is added to scores.

    Outputs:
        (B, H, Lq, D/H) of the queries' type.
    """

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale

    def construct(self, queries, keys, values, bias):
        hidden = None
        if bias is not None:
            hidden = self.hidden(bias, queries.shape[2])
        return ops.flash_attention_score(
            queries, keys, values, self.heads, attn_mask=hidden, scalar_value=self.scale, input_layout="BNSD"
        )

    def hidden(self, bias, queries):
        """uint8 (B, 1, Lq, Lk), or (Lq, Lk) where it is the same in every row: 1 on what is not attended to."""
        hidden = cast(bias < MASKED / 2, ms.float32)
        some = 1.0 - ops.prod(hidden, -1, True)  # (…, 1): 0 where nothing is left
        hidden = cast(hidden * some, ms.uint8)
        rows, keys = bias.shape[0], bias.shape[3]
        if rows == 1:
            return ops.broadcast_to(hidden[0, 0], (queries, keys))
        return ops.broadcast_to(hidden, (rows, 1, queries, keys))


class Attention(nn.Cell):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017).

    Args:
        width: D, of queries and outputs.
        heads: H; must divide D.
        memory_width: width of what keys and values are made of; D by default.

    Inputs:
        x (B, Lq, D); memory (B, Lk, memory width); bias, broadcastable to (B, H, Lq, Lk), or None.

    Outputs:
        (B, Lq, D) float32.
    """

    def __init__(self, width: int, heads: int, memory_width: int | None = None) -> None:
        super().__init__()
        memory_width = memory_width or width
        self.width, self.heads, self.head_width = width, heads, width // heads
        self.scale = self.head_width**-0.5
        self.compute_type = precision.compute_type()
        self.query = Linear(width, width, inner=True)
        self.key = Linear(memory_width, width, inner=True)
        self.value = Linear(memory_width, width, inner=True)
        self.output = Linear(width, width)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.kernel = kernels.mix if precision.runs_own_kernels() else None
        fits = precision.has_flash_attention() and self.head_width % FLASH_WIDTH == 0
        self.flash = FlashAttention(heads, self.scale) if fits else None

    def split_heads(self, x):
        split = reshape(x, (x.shape[0], x.shape[1], self.heads, self.head_width))
        return transpose(split, (0, 2, 1, 3))  # (B, H, L, D/H)

    def keys_values(self, memory):
        """(B, Lk, memory width) → keys and values (B, H, Lk, D/H)."""
        memory = cast(memory, self.compute_type)  # once for both
        return self.split_heads(self.key(memory)), self.split_heads(self.value(memory))

    def attend(self, x, keys, values, bias):
        """Attention of x (B, Lq, D) over keys and values that were made before."""
        if self.flash is None:
            mixed = self.mix_values(self.split_heads(self.query(x) * self.scale), keys, values, bias)
        else:
            mixed = self.flash(self.split_heads(self.query(x)), keys, values, bias)
        return self.output(reshape(transpose(mixed, (0, 2, 1, 3)), x.shape))  # (B, Lq, D)

    def weights(self, x, keys, bias):
        """How much each of x (B, Lq, D) attends to each of the keys that were made before: (B, H, Lq, Lk) float32."""
        scores = cast(self.scores(self.split_heads(self.query(x) * self.scale), keys), ms.float32)
        return self.softmax(scores if bias is None else scores + bias)

    def mix_values(self, queries, keys, values, bias):
        """(B, H, Lq, D/H), the queries scaled."""
        scores = self.scores(queries, keys)  # (B, H, Lq, Lk)
        if bias is not None:
            scores = scores + cast(bias, scores.dtype)
        if self.kernel is not None:
            return self.kernel(scores, values)[0]
        # fp32 softmax: the exponentials of half precision overflow in long rows
        return self.mix(cast(self.softmax(cast(scores, ms.float32)), values.dtype), values)

    def construct(self, x, memory, bias):
        keys, values = self.keys_values(memory)
        return self.attend(x, keys, values, bias)


class FeedForward(nn.Cell):
    """Linear → GELU → Linear. Inputs (B, L, D) float, outputs (B, L, D) float32."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden, inner=True)
        self.gelu = Gelu()
        self.down = Linear(hidden, width)

    def construct(self, x):
        return self.down(self.gelu(self.up(x)))


class Block(nn.Cell):
    """One Transformer layer: self-attention, optional cross-attention, feed-forward, each with a residual.

    Args:
        width, heads, ffn: D, H and the hidden width of the feed-forward part.
        norm: ``pre`` normalises what enters a part (ViT), ``post`` what leaves its residual sum (BERT).
        dropout: probability, on the output of every part.
        memory_width: width of the cross-attended memory, or None for a block without cross-attention.
        epsilon: of the layer norms.

    Inputs:
        x (B, L, D); bias for self-attention or None; memory (B, Lm, memory width) and memory_bias, or None.

    Outputs:
        (B, L, D).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ffn: int,
        norm: str,
        dropout: float,
        memory_width: int | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.compute_type = precision.compute_type()
        self.attention = Attention(width, heads)
        self.attention_norm = LayerNorm(width, epsilon)
        self.crosses = memory_width is not None
        if self.crosses:
            self.cross_attention = Attention(width, heads, memory_width)
            self.cross_norm = LayerNorm(width, epsilon)
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = LayerNorm(width, epsilon)
        drops = [Dropout(dropout) if dropout else nn.Identity() for _ in range(2 + self.crosses)]
        self.attention_dropout, self.ffn_dropout = drops[:2]
        if self.crosses:
            self.cross_dropout = drops[2]
        if precision.recomputes():
            self.recompute()

    def construct(self, x, bias, memory=None, memory_bias=None):
        memory = self.cross_attention.keys_values(memory) if self.crosses else None
        return self.extend(x, bias, memory, memory_bias)

    def extend(self, x, bias, memory=None, memory_bias=None):
        """The layer over a memory's keys and values (B, H, Lm, D/H) that were made before, or None."""
        x = self.attend_self(x, bias)
        if self.crosses:
            normal = self.cross_norm(x) if self.pre else x
            x = x + self.cross_dropout(self.cross_attention.attend(normal, memory[0], memory[1], memory_bias))
            if not self.pre:
                x = self.cross_norm(x)
        if self.pre:
            return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))
        return self.ffn_norm(x + self.ffn_dropout(self.ffn(x)))

    def attend_self(self, x, bias):
        """The layer's first part: self-attention with its residual."""
        normal = cast(self.attention_norm(x) if self.pre else x, self.compute_type)  # once for query, key and value
        x = x + self.attention_dropout(self.attention(normal, normal, bias))
        return x if self.pre else self.attention_norm(x)

    def memory_weights(self, x, bias, keys, memory_bias):
        """How much each of x attends to each place of a memory, by its keys: (B, H, Lq, Lm) float32."""
        x = self.attend_self(x, bias)
        return self.cross_attention.weights(self.cross_norm(x) if self.pre else x, keys, memory_bias)


class Transformer(nn.Cell):
    """A stack of blocks; a pre-norm stack ends with one more norm, a post-norm stack does not.

    Args:
        config: any part of the model's configuration with width, layers, heads, ffn, norm and dropout.
        memory_width: width of the cross-attended memory, or None.
        epsilon: of the layer norms.

    Inputs and outputs: as :class:`Block`.
    """

    def __init__(self, config, memory_width: int | None = None, epsilon: float = EPSILON) -> None:
        super().__init__()
        sizes = (config.width, config.heads, config.ffn, config.norm, config.dropout, memory_width, epsilon)
        self.blocks = nn.CellList([Block(*sizes) for _ in range(config.layers)])
        self.final_norm = LayerNorm(config.width, epsilon) if config.norm == "pre" else None

    def construct(self, x, bias, memory=None, memory_bias=None):
        for block in self.blocks:
            x = block(x, bias, memory, memory_bias)
        return self.finish(x)

    def finish(self, x):
        """What follows the last block."""
        return x if self.final_norm is None else self.final_norm(x)

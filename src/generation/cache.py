"""A decoder that goes on token by token, with a key/value cache that several beams of one memory share.

Letters: ``B`` memories, ``K`` beams of each, ``N`` = B·K rows, ``T`` positions, ``Lm`` memory length, ``H`` heads,
``d`` head width, ``D`` width, ``V`` vocabulary.

The queries of all beams of a memory meet its keys in one product, so that neither the memory nor the cache is ever
copied: every beam's keys lie in the cache of its memory, and a bias says which of them belong to a beam's own past.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.models.decoder import Decoder
from src.models.layers import MASKED, Block, FeedForward, LayerNorm, cast, padding_bias


def _normalise(norm: LayerNorm, x: Tensor) -> Tensor:
    """By the stock kernel, which forward alone is the faster one on a CPU."""
    return norm.stock(x, norm.gain, norm.shift)[0]


def _feed_forward(ffn: FeedForward, x: Tensor) -> Tensor:
    """By the stock GELU, whose few operators are the faster ones for a few rows."""
    return ffn.down(ffn.gelu.stock(ffn.up(x)))


class _CachedBlock(nn.Cell):
    """A decoder's layer at one position, over what it has read and written.

    Args:
        block: the layer.
        name: of its cache.
        memories, beams, positions, memory_len: B, K, T, Lm.
    """

    def __init__(self, block: Block, name: str, memories: int, beams: int, positions: int, memory_len: int) -> None:
        super().__init__(auto_prefix=False)
        kind = block.compute_type
        self.block, self.beams = block, beams
        self.heads, self.head_width = block.attention.heads, block.attention.head_width
        self.groups, self.room = memories * self.heads, positions * beams
        self.memory_keys = _state(f"{name}.memory_keys", self.groups, memory_len, self.head_width, kind=kind)
        self.memory_values = _state(f"{name}.memory_values", self.groups, memory_len, self.head_width, kind=kind)
        # one row a memory, head, position and beam, so that a position's are written by number
        self.keys = _state(f"{name}.keys", self.groups * self.room, self.head_width, kind=kind)
        self.values = _state(f"{name}.values", self.groups * self.room, self.head_width, kind=kind)
        self.write = ops.ScatterUpdate()

    def read(self, keys, values):
        """Keeps keys and values (B, H, Lm, d) of the memories."""
        ops.assign(self.memory_keys, keys.reshape(self.memory_keys.shape))
        ops.assign(self.memory_values, values.reshape(self.memory_values.shape))

    def attend(self, attention, x, keys, values, bias):
        """Attention of x (N, D) over keys and values (B·H, …, d) that the beams of a memory share."""
        queries = self.by_memory(attention.query(x) * attention.scale)
        scores = attention.scores(queries, keys)  # (B·H, K, …)
        split = (-1, self.heads, self.beams, scores.shape[2])
        weights = attention.softmax(scores.reshape(split).astype(ms.float32) + bias).astype(values.dtype)
        mixed = attention.mix(weights.reshape(scores.shape), values)  # (B·H, K, d)
        return attention.output(self.by_beam(mixed))

    def by_memory(self, x):
        """(N, D) → (B·H, K, d)."""
        if self.beams > 1:
            x = ops.transpose(x.reshape(-1, self.beams, self.heads, self.head_width), (0, 2, 1, 3))
        return x.reshape(self.groups, self.beams, self.head_width)

    def by_beam(self, x):
        """(B·H, K, d) → (N, D)."""
        if self.beams > 1:
            x = ops.transpose(x.reshape(-1, self.heads, self.beams, self.head_width), (0, 2, 1, 3))
        return x.reshape(-1, self.heads * self.head_width)

    def construct(self, x, rows, bias, memory_bias):
        """x (N, D); rows (N·H,) int32 of the cache to write; biases for the cache and for the memory → (N, D)."""
        block, pre = self.block, self.block.pre
        normal = cast(_normalise(block.attention_norm, x) if pre else x, block.compute_type)
        attention = block.attention
        keys = self.write(self.keys, rows, attention.key(normal).reshape(-1, self.head_width))
        values = self.write(self.values, rows, attention.value(normal).reshape(-1, self.head_width))
        shape = (self.groups, self.room, self.head_width)
        x = x + self.attend(attention, normal, keys.reshape(shape), values.reshape(shape), bias)
        if not pre:
            x = _normalise(block.attention_norm, x)
        normal = _normalise(block.cross_norm, x) if pre else x
        x = x + self.attend(block.cross_attention, normal, self.memory_keys, self.memory_values, memory_bias)
        if not pre:
            x = _normalise(block.cross_norm, x)
        if pre:
            return x + _feed_forward(block.ffn, _normalise(block.ffn_norm, x))
        return _normalise(block.ffn_norm, x + _feed_forward(block.ffn, x))


class CachedDecoder(nn.Cell):
    """The keys and values of every layer: of the memory, written once a batch, and of the tokens, once a token.

    Dropout is off, whatever mode the decoder is in.

    Args:
        decoder: of texts or of images.
        memories: B.
        places: int32 [Lm], the fused tokens that a memory is made of.
        beams: K.
    """

    def __init__(self, decoder: Decoder, memories: int, places: np.ndarray, beams: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.decoder, self.places = decoder, Tensor(places)
        self.beams, self.length = beams, decoder.length
        self.blocks = nn.CellList(
            [
                _CachedBlock(block, f"decoding.{number}", memories, beams, decoder.length, len(places))
                for number, block in enumerate(decoder.transformer.blocks)
            ],
            auto_prefix=False,
        )
        self.memory_bias = _state("decoding.memory_bias", memories, 1, 1, len(places))
        self.positions = _state("decoding.positions", decoder.length, decoder.width)
        heads = self.blocks[0].heads
        memory, beam, head = np.ogrid[:memories, :beams, :heads]
        first = (memory * heads + head) * decoder.length * beams + beam
        self.first_rows = Tensor(first.reshape(-1).astype(np.int32))  # (N·H,): of position 0

    def read(self, memory, mask):
        """Begins anew over memories (B, Lm, D), the ``places`` of the fused tokens, and their mask (B, Lm) int32."""
        made = self.decoder.read(memory, self.places)
        for i in range(len(self.blocks)):
            self.blocks[i].read(made[i][0], made[i][1])
        ops.assign(self.memory_bias, padding_bias(mask))
        ops.assign(self.positions, self.decoder.all_positions()[0])

    def step(self, ids, position, bias):
        """One token further.

        Args:
            ids: (N,) int32, the tokens at ``position``, () int32.
            bias: float32, broadcastable to (B, H, K, T·K): 0 where a beam's past lies, its own place at ``position``
                included (:func:`past_bias`); MASKED elsewhere.

        Returns:
            logits (N, V) of the next token.
        """
        x = ops.gather(self.decoder.tokens, ids, 0) + ops.gather(self.positions, position, 0)  # (N, D)
        rows = self.first_rows + position * self.beams
        for i in range(len(self.blocks)):
            x = self.blocks[i](x, rows, bias, self.memory_bias)
        final = self.decoder.transformer.final_norm
        return self.decoder.logits(x if final is None else _normalise(final, x))


class Read(nn.Cell):
    """Begins a cache as a graph: memory (B, Lm, D) and mask (B, Lm) int32, as :meth:`CachedDecoder.read`."""

    def __init__(self, cached: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.cached = cached

    def construct(self, memory, mask):
        self.cached.read(memory, mask)
        return mask


def called_often(cell: nn.Cell) -> nn.Cell:
    """Marks a Cell whose tensors keep their shapes: from its second call on the graph runs at once.

    Otherwise every call compares its arguments with those of before and walks through all inner cells: milliseconds, as
    much as a token takes. "increment" is MindSpore's name for the phase in which a decoder goes on.
    """
    cell.phase = "increment"
    return cell


def past_bias(position: int, length: int, origins: np.ndarray | None = None) -> np.ndarray:
    """The bias of :meth:`CachedDecoder.step`.

    Args:
        position: where the last tokens stand.
        length: T.
        origins: int [B, K, T]: in which beam a beam's past was written, position by position; None: in its own, and
            there is one beam.

    Returns:
        float32 [1, 1, 1, T], or [B, 1, K, T·K].
    """
    if origins is None:
        return np.where(np.arange(length) <= position, np.float32(0), np.float32(MASKED)).reshape(1, 1, 1, length)
    memories, beams, _ = origins.shape
    bias = np.full((memories, beams, length, beams), MASKED, np.float32)
    np.put_along_axis(bias[:, :, : position + 1], origins[:, :, : position + 1, None], 0, 3)
    return bias.reshape(memories, 1, beams, length * beams)


def _state(name: str, *shape: int, kind=ms.float32) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32), kind), name=name, requires_grad=False)

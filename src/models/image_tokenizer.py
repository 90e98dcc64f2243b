"""Image tokenizer: images to a grid of codes and back (VQ-VAE, van den Oord et al. 2017).

Letters: ``B`` batch, ``S`` image side in pixels, ``C`` codes of an image (side²), ``K`` entries of the codebook,
``d`` their width, ``N`` rows (B·C).
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import ImageTokenizerConfig
from src.models.dropout import salt_dropouts
from src.models.layers import POSITION_STD, Linear, Transformer
from src.models.patches import split_patches

SMOOTHING = 1e-5  # ε of the counts (Laplace smoothing)


class Patches(nn.Cell):
    """A Transformer on the grid: every cell of it enters as one vector and leaves as another.

    Args:
        config: sizes of the Transformer and of the grid.
        inputs, outputs: widths of the vectors.

    Inputs:
        x (B, C, inputs) float.

    Outputs:
        (B, C, outputs) float.
    """

    def __init__(self, config: ImageTokenizerConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enter = Linear(inputs, config.width)
        self.positions = Parameter(
            initializer(Normal(POSITION_STD), (1, config.side**2, config.width)), name="positions"
        )
        self.transformer = Transformer(config)
        self.leave = Linear(config.width, outputs)

    def construct(self, x):
        return self.leave(self.transformer(self.enter(x) + self.positions, None))


class Codebook(nn.Cell):
    """K vectors, each the moving mean of what was assigned to it; no gradient reaches them.

    It begins empty: the first batch's rows take the place of all codes that it does not use (:class:`CodebookUpdate`).

    Inputs:
        x (N, d) float.

    Outputs:
        (N,) int32, the nearest code of each row.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        shape = (config.codes, config.code_dim)
        self.vectors = Parameter(initializer("zeros", shape), name="vectors", requires_grad=False)
        self.counts = Parameter(initializer("zeros", shape[:1]), name="counts", requires_grad=False)
        self.sums = Parameter(initializer("zeros", shape), name="sums", requires_grad=False)
        self.offset = Parameter(Tensor(0, ms.int32), name="offset", requires_grad=False)  # where candidates are taken
        self.product_bt, self.nearest = ops.MatMul(transpose_b=True), ops.Argmax(-1, ms.int32)

    def construct(self, x):
        # |x − e|² = |x|² − 2·x·e + |e|², and |x|² is the same for all codes
        vectors = self.vectors
        return self.nearest(2.0 * self.product_bt(x, vectors) - (vectors * vectors).sum(-1))

    def look_up(self, codes):
        """(…) int32 → (…, d)."""
        return ops.gather(self.vectors, codes, 0)


class ImageTokenizer(nn.Cell):
    """Encoder, codebook, decoder. Images are cut into side² squares of pixels, one code each.

    Inputs:
        image (B, S, S, 3) uint8.

    Outputs:
        patches (B, C, pixels) float32 in [−1, 1]; the same decoded; what was encoded (N, d); its nearest codes'
        vectors (N, d); the codes (N,) int32.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.side, self.patch, self.code_dim = config.side, config.size // config.side, config.code_dim
        self.places, self.pixels = config.side**2, self.patch**2 * 3
        self.encoder = Patches(config, self.pixels, config.code_dim)
        self.codebook = Codebook(config)
        self.decoder = Patches(config, config.code_dim, self.pixels)
        salt_dropouts(self)

    def construct(self, image):
        patches = split_patches(image, self.side, self.patch)
        encoded = self.features(patches)
        codes = self.codebook(ops.stop_gradient(encoded))
        vectors = self.codebook.look_up(codes)
        # straight-through: the decoder's gradient reaches the encoder as if nothing had been rounded
        through = encoded + ops.stop_gradient(vectors - encoded)
        return patches, self.decode_vectors(through), encoded, vectors, codes

    def encode(self, image):
        """(B, S, S, 3) uint8 → codes (B, C) int32, rows of the grid from the top."""
        return self.codebook(self.features(split_patches(image, self.side, self.patch))).reshape(
            -1, self.places
        )  # (B, C)

    def decode(self, codes):
        """(B, C) int32 → (B, S, S, 3) uint8."""
        return self.join(self.decode_vectors(self.codebook.look_up(codes)))

    def features(self, patches):
        """(B, C, pixels) → (N, d) float32."""
        return self.encoder(patches).reshape(-1, self.code_dim)  # (N, d)

    def decode_vectors(self, vectors):
        """(…, d), N rows → patches (B, C, pixels) float32."""
        return self.decoder(vectors.reshape(-1, self.places, self.code_dim))

    def join(self, patches):
        """(B, C, pixels) float32 → (B, S, S, 3) uint8, values outside [−1, 1] clipped."""
        x = patches.reshape(-1, self.side, self.side, self.patch, self.patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, self.side * self.patch, self.side * self.patch, 3)  # (B, S, S, 3)
        return ops.floor(ops.clamp((x + 1.0) * 127.5, 0.0, 255.0) + 0.5).astype(ms.uint8)


class CodebookStatistics(nn.Cell):
    """What a batch says about the codebook.

    Args:
        codebook: to be moved.
        rows: N, rows of a batch.
        seed: of the order in which rows are offered as new codes.
        rank, ranks: this process among its peers, which offer rows in turn: averaged over the ranks, each row stays
            one rank's, and all ranks move alike.

    Inputs:
        encoded (N, d) float32; codes (N,) int32.

    Outputs:
        counts (K,), sums (K, d) of the rows of each code; candidates (K, d), a row for each code to begin anew from.
    """

    def __init__(self, codebook: Codebook, rows: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.codebook, self.rows, self.codes = codebook, rows, codebook.counts.shape[0]
        self.order = Tensor(np.random.default_rng(seed).permutation(rows).astype(np.int32))
        numbers = np.arange(self.codes, dtype=np.int32)
        self.numbers, self.ones = Tensor(numbers), Tensor(np.ones(rows, np.float32))
        self.share = Tensor(((numbers % ranks == rank) * float(ranks)).astype(np.float32).reshape(-1, 1))  # (K, 1)
        self.segment_sum = ops.UnsortedSegmentSum()

    def construct(self, encoded, codes):
        places = ops.gather(self.order, (self.numbers + self.codebook.offset) % self.rows, 0)
        candidates = ops.gather(encoded, places, 0) * self.share
        counts = self.segment_sum(self.ones, codes, self.codes)
        return counts, self.segment_sum(encoded, codes, self.codes), candidates


class CodebookUpdate(nn.Cell):
    """n ← γn + (1−γ)·counts;  m ← γm + (1−γ)·sums;  e ← m / n̂, n̂ = (n + ε)·Σn / (Σn + K·ε).

    (van den Oord et al. 2017, appendix A.1, with the smoothing of VQ-VAE-2.) A code whose n is below a share of the
    mean n begins anew: at its candidate, with the mean n. So does, in the first batch, every code that it does not use.

    Args:
        codebook: what is moved.
        config: ema_decay γ, revive_below.
        rows: N, rows of a batch.

    Inputs:
        good () bool, False for a step that changes nothing; statistics, the outputs of :class:`CodebookStatistics`.

    Outputs:
        () float32, how many codes began anew.
    """

    def __init__(self, codebook: Codebook, config: ImageTokenizerConfig, rows: int) -> None:
        super().__init__(auto_prefix=False)
        self.codebook, self.rows = codebook, rows
        self.decay, self.revive_below, self.codes = config.ema_decay, config.revive_below, config.codes

    def construct(self, good, statistics):
        book, (counts, sums, candidates) = self.codebook, statistics
        n = book.counts * self.decay + counts * (1.0 - self.decay)
        m = book.sums * self.decay + sums * (1.0 - self.decay)
        mean = n.mean()
        unused = ops.logical_and(n == 0.0, book.counts.sum() == 0.0)  # of the first batch, which fills the codebook
        dead = ops.logical_or(n < mean * self.revive_below, unused).astype(ms.float32)  # (K,)
        n = n * (1.0 - dead) + mean * dead
        dead_rows = dead.reshape(-1, 1)  # (K, 1)
        m = m * (1.0 - dead_rows) + candidates * (mean * dead_rows)
        total = n.sum()
        smooth = (n + SMOOTHING) * (total / (total + self.codes * SMOOTHING))
        ops.assign(book.counts, ops.where(good, n, book.counts))
        ops.assign(book.sums, ops.where(good, m, book.sums))
        ops.assign(book.vectors, ops.where(good, m / smooth.reshape(-1, 1), book.vectors))
        ops.assign(book.offset, (book.offset + self.codes * good.astype(ms.int32)) % self.rows)
        return dead.sum()

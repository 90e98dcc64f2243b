"""Heads on the encoders: embeddings, masked predictions, matching, answers."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import LOGIT_SCALES
from src.models import precision
from src.models.layers import MEMORY_POSITION_STD, POSITION_STD, Attention, Gelu, LayerNorm, Linear, cast, padding_bias

INITIAL_SCALE = math.log(1 / 0.07)  # of the contrastive logits, as in CLIP
POINT_SCALE = 4.0  # of products whose spread is 0.2 to 0.4 with the bundled checkpoint


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D), (B, L) → (B, D): the mean over the positions whose mask is 1; zeros where there is none."""
    weights = mask.astype(tokens.dtype).expand_dims(-1)  # (B, L, 1)
    return (tokens * weights).sum(1) / ops.maximum(weights.sum(1), Tensor(1.0, tokens.dtype))


class EmbeddingHead(nn.Cell):
    """Mean of the tokens, projected to the shared space and scaled to length 1; float32 in every precision.

    Inputs:
        tokens (B, L, D) float32; mask (B, L) int32.

    Outputs:
        (B, E) float32 of unit length.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        with precision.building("fp32"):  # similarities, a hundredfold in the logits, must not be rounded; it is small
            self.project = Linear(width, embed_dim)

    def construct(self, tokens, mask):
        x = self.project(masked_mean(tokens, mask))
        return x * ops.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)

    def terms(self, tokens, mask):
        """(B, L, E) whose mean over the mask is the embedding: what each token adds to it."""
        x = self.project(masked_mean(tokens, mask)).expand_dims(1)  # (B, 1, E)
        return self.project(tokens) * ops.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


class _Clamp(nn.Cell):
    """x within [low, high]. Outside, a step that leads back has its gradient, one that leads farther out has none.

    With the gradient of ``ops.clamp``, which is 0 on both sides, a parameter that once steps outside stays there.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def construct(self, x):
        return ops.clamp(x, self.low, self.high)

    def bprop(self, x, out, dout):
        leads_out = ops.less((x - out) * dout, 0.0)  # a step goes against the gradient
        return (dout * (1.0 - leads_out.astype(dout.dtype)),)


class LogitScale(nn.Cell):
    """The learned inverse temperature of the contrastive logits, kept within its limits. Output: () float32."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = Parameter(Tensor(INITIAL_SCALE, ms.float32), name="log_scale")
        self.clamp = _Clamp(*map(math.log, LOGIT_SCALES))

    def construct(self):
        return ops.exp(self.clamp(self.log_scale))

    def value(self) -> float:
        """Of this moment; the host waits for the device."""
        return float(np.clip(np.exp(self.log_scale.asnumpy()), *LOGIT_SCALES))


class MaskedTextHead(nn.Cell):
    """BERT's masked-language head; the output table is the text encoder's token table.

    Inputs:
        hidden (N, D) float: fused tokens at the masked positions; table (V, Dt) float.

    Outputs:
        logits (N, V) float32.
    """

    def __init__(self, width: int, text_width: int, vocab_size: int) -> None:
        super().__init__()
        self.compute_type = precision.compute_type()
        self.transform = Linear(width, text_width)
        self.gelu = Gelu()
        self.norm = LayerNorm(text_width)
        self.bias = Parameter(initializer("zeros", (vocab_size,)), name="bias")
        self.product_bt = ops.MatMul(transpose_b=True)

    def construct(self, hidden, table):
        x = cast(self.norm(self.gelu(self.transform(hidden))), self.compute_type)
        return cast(self.product_bt(x, cast(table, self.compute_type)), ms.float32) + self.bias


class MaskedCodeHead(nn.Cell):
    """Predicts what masked patches or regions are: the image tokenizer's codes, the detector's classes.

    Inputs:
        hidden (N, D) float: fused patches or regions at the masked positions.

    Outputs:
        logits (N, K) float, one for every code of the codebook, or every class.
    """

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.transform = Linear(width, width)
        self.gelu = Gelu()
        self.norm = LayerNorm(width)
        self.classify = Linear(width, codes)

    def construct(self, hidden):
        return self.classify(self.norm(self.gelu(self.transform(hidden))))


class MaskedFeatureHead(nn.Cell):
    """Predicts the features of masked tokens of an encoder, and holds the mask token (``vector``).

    Args:
        width: D.
        encoder_width: of the encoder's tokens.
        feature_width: Df, of what is predicted.

    Inputs:
        hidden (…, D) float: fused tokens at the masked positions.

    Outputs:
        (…, Df) float.
    """

    def __init__(self, width: int, encoder_width: int, feature_width: int) -> None:
        super().__init__()
        self.vector = Parameter(initializer(Normal(POSITION_STD), (1, 1, encoder_width)), name="vector")
        self.transform = Linear(width, width)
        self.gelu = Gelu()
        self.project = Linear(width, feature_width)

    def construct(self, hidden):
        return self.project(self.gelu(self.transform(hidden)))


class MatchingHead(nn.Cell):
    """Which of text, image and audio belong together, as a five-way classification (``schema.MATCH_CASES``).

    It reads the fused [CLS] and the elementwise products of the three pairs of embeddings: from the [CLS] alone it
    takes far longer to learn, since attention has to find the agreement that the products already hold. Each hidden
    unit begins with weights that are equal over a pair's products, as a mixture of the three cosines: that is what
    tells the cases apart, and otherwise the head has to learn first to add up the products.

    Inputs:
        cls (B, D) float; text, image, audio (B, E) float32: embeddings, taken as given (no gradient);
        presence (B, 3) int32.

    Outputs:
        logits (B, 5) float.
    """

    def __init__(self, width: int, embed_dim: int, cases: int) -> None:
        super().__init__()
        self.join = Linear(width + 3 * embed_dim, width)
        self.gelu = Gelu()
        self.classify = Linear(width, cases)
        mixtures = initializer(Normal(embed_dim**-0.5), (width, 3)).init_data().asnumpy()  # √E of it: a cosine's weight
        weight = self.join.weight.asnumpy().copy()
        weight[:, width:] = np.repeat(mixtures, embed_dim, 1)  # (D, 3·E)
        self.join.weight.set_data(Tensor(weight))

    def construct(self, cls, text, image, audio, presence):
        here = presence.astype(ms.float32)
        text, image, audio = text * here[:, 0:1], image * here[:, 1:2], audio * here[:, 2:3]
        scale = text.shape[1] ** 0.5  # a product of unit vectors has entries of about 1/E
        pairs = ops.concat((text * image, text * audio, image * audio), 1) * scale  # (B, 3·E)
        features = ops.concat((cls, ops.stop_gradient(pairs).astype(cls.dtype)), 1)
        return self.classify(self.gelu(self.join(features)))


class Pointer(nn.Cell):
    """Where in an image each token of a question points, by the embeddings that the contrastive objective trained.

    The cosine of two embeddings is the mean of the products of their tokens' terms (:meth:`EmbeddingHead.terms`): of
    every word with every patch. What a word has in common with some patches more than with others says where that is
    which the word names.

    Inputs:
        question (B, Lq, E), image (B, P, E) float32: terms; mask (B, Lq), image_mask (B, P) int32.

    Outputs:
        (B, Lq, P) float32, of mean 0 over the patches and a spread of about 1; 0 where a mask is. Taken as given: no
        gradient, or a short training would unlearn what it reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product_bt = ops.BatchMatMul(transpose_b=True)

    def construct(self, question, mask, image, image_mask):
        image = (image - masked_mean(image, image_mask).expand_dims(1)) * image_mask.expand_dims(-1).astype(ms.float32)
        question = question * mask.expand_dims(-1).astype(ms.float32)
        return ops.stop_gradient(self.product_bt(question, image) * POINT_SCALE)


class AnswerHead(nn.Cell):
    """Scores of the answers that a question about an image may have.

    The question looks once more: each of its fused tokens, and the [CLS], attends to everything fused, and what they
    find is averaged. Where the cross-modal encoder has a single layer, as the demo's has, its [CLS] has met question
    and image at once, and not yet looked where the question points. As in the decoders the memory gets a learned
    position per place.

    What :class:`Pointer` finds is added, through one linear layer, whose columns are the meanings of the patches'
    positions. To find what a word names among the patches is the slowest to learn of all that questions need.

    Args:
        width: D.
        heads: of the attention.
        question: [L] bool, the fused places of a question, as text or speech.
        answers: A.
        patches: P; 0 for a detector's regions, whose order says nothing of where they are.

    Inputs:
        fused (B, L, D) float32, the [CLS] first; mask (B, L) int32; points (B, L, P) float32, zeros where no question
        stands, or None; places (L,) int32 of these tokens among all that are fused, or None where they are all of them.

    Outputs:
        logits (B, A) float32.
    """

    def __init__(self, width: int, heads: int, question: np.ndarray, answers: int, patches: int) -> None:
        super().__init__()
        asks = question | (np.arange(len(question)) == 0)
        self.asks = Tensor(asks.astype(np.int32).reshape(1, -1))
        positions = initializer(Normal(MEMORY_POSITION_STD), (1, len(question), width))
        self.memory_positions = Parameter(positions, name="memory_positions")
        self.attention = Attention(width, heads)
        self.read_points = Linear(patches, width) if patches else None
        self.transform = Linear(width, width)
        self.gelu = Gelu()
        self.norm = LayerNorm(width)
        self.classify = Linear(width, answers)
        # every answer is as likely as any other, and not half as likely as not: the first steps need not unlearn that
        self.classify.bias.set_data(Tensor(np.full(answers, -math.log(answers), np.float32)))

    def construct(self, fused, mask, points=None, places=None):
        positions, asks = self.memory_positions, self.asks
        if places is not None:
            positions, asks = ops.gather(positions, places, 1), ops.gather(asks, places, 1)
        x = fused + self.attention(fused, fused + positions, padding_bias(mask))  # (B, L, D)
        if points is not None:
            x = x + self.read_points(points)
        found = masked_mean(self.gelu(self.transform(x)), mask * asks)  # (B, D)
        return self.classify(self.norm(found))

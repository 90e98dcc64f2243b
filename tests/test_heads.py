"""What is read off the encoders: embeddings, masked tokens, matching."""

import math

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from src.data.schema import AUDIO, IMAGE, TEXT
from src.models.heads import (
    POINT_SCALE,
    AnswerHead,
    EmbeddingHead,
    LogitScale,
    MaskedTextHead,
    MatchingHead,
    Pointer,
    masked_mean,
)
from src.models.opt import OPT, count_parameters
from tests.oracles import (
    VOCAB,
    affine_slots,
    assert_parity,
    attention_slots,
    feature_model,
    norm_slots,
    random,
    randomise,
    tiny_model,
    torch_padding,
)

B, L, D, E = 4, 5, 6, 8
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)


def test_masked_mean() -> None:
    tokens = random(B, L, D)
    found = masked_mean(Tensor(tokens), Tensor(MASK)).asnumpy()
    for row in range(B):
        kept = tokens[row][MASK[row] == 1]
        np.testing.assert_allclose(found[row], kept.mean(0) if len(kept) else np.zeros(D), atol=1e-6)


def test_embedding_head_is_what_pytorch_computes() -> None:
    project = torch.nn.Linear(D, E)
    mask = MASK[:3]

    def oracle(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.float()[..., None]
        return torch.nn.functional.normalize(project((tokens * weights).sum(1) / weights.sum(1)), dim=-1)

    assert_parity(EmbeddingHead(D, E), [random(3, L, D), mask], oracle, affine_slots("project.", project))


def test_embedding_has_unit_length_and_an_absent_modality_stays_finite() -> None:
    head = EmbeddingHead(D, E)  # its bias is zero: an empty row projects to exactly nothing
    vectors = head(Tensor(random(B, L, D)), Tensor(MASK)).asnumpy()
    np.testing.assert_allclose((vectors[:3] ** 2).sum(1), 1, atol=1e-5)
    assert not vectors[3].any()
    gradient = ms.grad(lambda x: (head(x, Tensor(MASK)) * Tensor(random(B, E))).sum())(Tensor(random(B, L, D)))
    assert np.isfinite(gradient.asnumpy()).all() and not gradient.asnumpy()[3].any()


def test_the_mean_of_an_embeddings_terms_is_the_embedding() -> None:
    head = EmbeddingHead(D, E)
    randomise(head)
    tokens, mask = Tensor(random(3, L, D)), Tensor(MASK[:3])
    terms = head.terms(tokens, mask)
    assert terms.shape == (3, L, E)
    np.testing.assert_allclose(masked_mean(terms, mask).asnumpy(), head(tokens, mask).asnumpy(), atol=1e-5)


def test_a_pointer_holds_what_each_word_has_in_common_with_each_patch() -> None:
    words, patches = random(3, L, E), random(3, 4, E)
    image_mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], np.int32)
    found = Pointer()(*map(Tensor, (words, MASK[:3], patches, image_mask))).asnumpy()
    for row in range(3):
        for word in range(L):
            seen = image_mask[row] == 1
            expected = np.zeros(4)
            if MASK[row, word] and seen.any():
                products = patches[row, seen] @ words[row, word]
                expected[seen] = POINT_SCALE * (products - products.mean())
            np.testing.assert_allclose(found[row, word], expected, atol=1e-5)
    gradient = ms.grad(lambda x: Pointer()(x, *map(Tensor, (MASK[:3], patches, image_mask))).sum())(Tensor(words))
    assert not gradient.asnumpy().any(), "the embeddings are taken as given"


@pytest.mark.parametrize("points", [True, False])
def test_answer_head_is_what_pytorch_computes(points: bool) -> None:
    question = np.array([False, True, True, False, False])
    attention = torch.nn.MultiheadAttention(D, 2, batch_first=True)
    read, transform, norm, classify = (
        torch.nn.Linear(3, D),
        torch.nn.Linear(D, D),
        torch.nn.LayerNorm(D),
        torch.nn.Linear(D, 7),
    )
    positions = torch.nn.Parameter(torch.zeros(1, L, D))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1]], np.int32)

    def oracle(fused: torch.Tensor, mask: torch.Tensor, points: torch.Tensor | None = None) -> torch.Tensor:
        memory = fused + positions
        x = fused + attention(fused, memory, memory, key_padding_mask=torch_padding(mask))[0]
        x = torch.nn.functional.gelu(transform(x if points is None else x + read(points)))
        asks = (mask * torch.tensor([[1, 1, 1, 0, 0]])).float()[..., None]
        return classify(norm((x * asks).sum(1) / asks.sum(1)))

    slots = attention_slots("attention.", attention) | affine_slots("transform.", transform)
    slots |= affine_slots("classify.", classify) | norm_slots("norm.", norm)
    slots |= {"memory_positions": (positions, slice(None))}
    slots |= affine_slots("read_points.", read) if points else {}
    inputs = [random(3, L, D), mask, *([random(3, L, 3)] if points else [])]
    assert_parity(AnswerHead(D, 2, question, 7, 3 if points else 0), inputs, oracle, slots)


def test_scale_begins_as_clip_and_stays_within_bounds() -> None:
    scale = LogitScale()
    assert float(scale()) == pytest.approx(1 / 0.07, rel=1e-5)
    for log_scale, expected in ((50.0, 100.0), (-50.0, 1.0), (math.log(30), 30.0)):
        scale.log_scale.set_data(Tensor(log_scale, ms.float32))
        assert float(scale()) == pytest.approx(expected, rel=1e-5)


class ScaleGradient(nn.Cell):
    """The parameter's gradient of a loss that falls with the scale (sign −1) or rises with it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = LogitScale()
        self.grad = ms.value_and_grad(self.loss, None, self.scale.trainable_params())

    def loss(self, sign):
        return self.scale() * sign

    def construct(self, sign):
        return self.grad(sign)[1][0]


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_scale_outside_its_bounds_learns_the_way_back_alone(mode: int) -> None:
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    gradient = ScaleGradient()
    for start, sign, expected in (
        (math.log(30), 1.0, 30.0),
        (math.log(30), -1.0, -30.0),
        (5.0, 1.0, 100.0),  # a lower loss is inside
        (5.0, -1.0, 0.0),
        (-1.0, -1.0, -1.0),
        (-1.0, 1.0, 0.0),
    ):
        gradient.scale.log_scale.set_data(Tensor(start, ms.float32))
        found = gradient(Tensor(sign, ms.float32))
        assert float(found) == pytest.approx(expected, rel=1e-5), (start, sign)
    ms.set_context(mode=before)


def test_masked_text_head_is_what_pytorch_computes() -> None:
    transform, norm = torch.nn.Linear(D, E), torch.nn.LayerNorm(E)
    bias = torch.nn.Parameter(torch.zeros(VOCAB))

    def oracle(hidden: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return norm(torch.nn.functional.gelu(transform(hidden))) @ table.T + bias

    slots = {"bias": (bias, slice(None))} | affine_slots("transform.", transform) | norm_slots("norm.", norm)
    assert_parity(MaskedTextHead(D, E, VOCAB), [random(7, D), random(VOCAB, E)], oracle, slots)


def matching_logits(head: MatchingHead, inputs: list[np.ndarray], presence: np.ndarray) -> np.ndarray:
    return head(*map(Tensor, inputs), Tensor(presence)).asnumpy()


def test_matching_head_reads_what_is_shown_and_trains_no_embedding() -> None:
    head = MatchingHead(D, E, 5)
    randomise(head)
    inputs = [random(B, D), *(random(B, E, seed=i) for i in range(3))]
    presence = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.int32)
    before = matching_logits(head, inputs, presence)
    assert before.shape == (B, 5)
    for which in range(3):
        other = list(inputs)
        other[1 + which] = random(B, E, seed=9)
        moved = np.abs(matching_logits(head, other, presence) - before).max(1) > 1e-4
        assert moved.tolist() == (presence[:, which] == 1).tolist()

    gradients = ms.grad(lambda *x: head(*x, Tensor(presence)).sum(), (0, 1, 2, 3))(*map(Tensor, inputs))
    assert np.abs(gradients[0].asnumpy()).max() > 1e-3, "the fused [CLS] learns"
    assert not any(gradient.asnumpy().any() for gradient in gradients[1:])


def test_matching_head_is_the_formula() -> None:
    """The products are scaled by √E: of unit vectors they have entries of about 1/E."""
    head = MatchingHead(D, E, 5)
    randomise(head)
    cls, vectors = random(B, D), [random(B, E, seed=i) for i in range(3)]
    presence = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.int32)
    text, image, audio = (vector * presence[:, i : i + 1] for i, vector in enumerate(vectors))
    features = np.concatenate([cls, np.sqrt(E) * np.concatenate([text * image, text * audio, image * audio], 1)], 1)
    weights = [parameter.asnumpy() for part in (head.join, head.classify) for parameter in (part.weight, part.bias)]
    hidden = torch.nn.functional.gelu(torch.tensor(features @ weights[0].T + weights[1])).numpy()
    expected = hidden @ weights[2].T + weights[3]
    np.testing.assert_allclose(matching_logits(head, [cls, *vectors], presence), expected, atol=1e-5)


def test_matching_head_sees_agreement_of_each_pair() -> None:
    """Its pair features are the products: from the image and the audio alone, the text absent, too."""
    head = MatchingHead(D, E, 5)
    randomise(head)
    cls, vector = np.zeros((1, D), np.float32), random(1, E)
    for shown in ((1, 1, 0), (1, 0, 1), (0, 1, 1)):
        inputs = [cls, vector, vector, vector]
        agree = matching_logits(head, inputs, np.array([shown], np.int32))
        inputs[1 + max(i for i in range(3) if shown[i])] = -vector
        assert np.abs(matching_logits(head, inputs, np.array([shown], np.int32)) - agree).max() > 1e-3


def test_a_new_matching_head_reads_cosines() -> None:
    """Rotated together, embeddings keep their cosines, and it says the same; a random head does not."""
    head = MatchingHead(D, E, 5)
    cls, presence = random(B, D), np.ones((B, 3), np.int32)
    vectors = [random(B, E, seed=i) for i in range(3)]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((E, E)))[0].astype(np.float32)

    def difference(other: list[np.ndarray]) -> float:
        logits = (matching_logits(head, [cls, *given], presence) for given in (vectors, other))
        return float(np.abs(np.subtract(*logits)).max())

    rotated = [vector @ rotation for vector in vectors]
    assert difference(rotated) < 1e-5 < 1e-3 < difference([rotated[0], *vectors[1:]])
    randomise(head)
    assert difference(rotated) > 1e-3


@pytest.fixture(scope="module")
def opt() -> OPT:
    return OPT(tiny_model(), VOCAB)


def test_masked_tokens_are_read_at_their_places_in_the_text(opt: OPT) -> None:
    length, width = opt.cross_encoder.length, tiny_model().cross.width
    fused = random(3, length, width)
    positions = np.array([[0, 2], [6, 1], [3, 3]], np.int32)
    found = opt.masked_text_logits(Tensor(fused), Tensor(positions)).asnumpy()
    rows = np.stack([fused[b, 1 + t] for b in range(3) for t in positions[b]])  # the fused [CLS] stands in front
    expected = opt.masked_text_head(Tensor(rows), opt.text_encoder.tokens).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_parameters_are_counted_per_part(opt: OPT) -> None:
    counts = count_parameters(opt)
    total = counts.pop("total")
    assert total == sum(counts.values()) == sum(p.size for p in opt.get_parameters())
    assert counts["scale"] == 1 and counts["text_head"] == 16 * 12 + 12
    assert set(counts) >= {"text_encoder", "image_encoder", "audio_encoder", "cross_encoder", "text_decoder"}


def test_every_trained_parameter_has_a_name_of_its_own(opt: OPT) -> None:
    """Optimiser state and checkpoints go by name."""
    names = [parameter.name for parameter in opt.trainable_params()]
    assert len(names) == len(set(names)) == len(dict(opt.parameters_and_names()))


def test_questions_point_from_where_they_are_fused() -> None:
    """In text or speech, laid out as the cross-modal encoder lays out what is given; not at regions, nor blind."""
    model = OPT(tiny_model(), VOCAB, answers=3)
    randomise(model)
    heads = (model.text_head, model.image_head, model.audio_head)
    shapes = ((model.text_len, 16), model.image_shape, model.audio_shape)
    encoded = [
        (Tensor(random(2, *shape, seed=i)), Tensor(np.ones((2, shape[0]), np.int32))) for i, shape in enumerate(shapes)
    ]
    patches = shapes[IMAGE][0]
    for given in ((TEXT, IMAGE), (IMAGE, AUDIO), (TEXT, IMAGE, AUDIO)):
        shown = [pair if which in given else None for which, pair in enumerate(encoded)]
        found = model.points(shown, given).asnumpy()
        places = model.cross_encoder.single_modality_positions(*given)
        expected = np.zeros((2, model.cross_encoder.length, patches), np.float32)
        for which, first in ((TEXT, model.first_text), (AUDIO, model.first_audio)):
            if which in given:
                terms = [heads[i].terms(*encoded[i]) for i in (which, IMAGE)]
                points = model.pointer(terms[0], encoded[which][1], terms[1], encoded[IMAGE][1]).asnumpy()
                assert np.abs(points).max() > 0.1
                expected[:, first : first + shapes[which][0]] = points
        np.testing.assert_allclose(found, expected[:, places], atol=1e-6)
    assert model.points(encoded, (TEXT, AUDIO)) is None
    regions = OPT(feature_model(), VOCAB, answers=3)
    assert regions.points(encoded, (TEXT, IMAGE)) is None and regions.answer_head.read_points is None

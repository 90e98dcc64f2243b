"""The cross-modal encoder: what is absent has no influence, and that it is absent is known."""

from itertools import product

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.data.schema import AUDIO, IMAGE, TEXT
from src.models.cross_encoder import CrossEncoder
from tests.oracles import random, randomise, run_mode, tiny_model

MODEL = tiny_model(layers=2)
T, P, F = 5, 4, 3
PARTS = {TEXT: slice(1, 1 + T), IMAGE: slice(1 + T, 1 + T + P), AUDIO: slice(1 + T + P, 1 + T + P + F)}
SUBSETS = np.array([row for row in product((0, 1), repeat=3)], np.int32)  # [8, 3]: none … all
B = len(SUBSETS)
TEXT_MASK = np.array([[1, 1, 1, 0, 0]] * B, np.int32)
IMAGE_MASK = np.array([[1, 1, 1, 0]] * B, np.int32)
AUDIO_MASK = np.array([[1, 1, 0]] * B, np.int32)


@pytest.fixture(scope="module")
def encoder() -> CrossEncoder:
    cell = CrossEncoder(MODEL, T, P, F)
    randomise(cell)
    return cell


def contents(seed: int = 0) -> list[np.ndarray]:
    widths = ((T, MODEL.text.width), (P, MODEL.image.width), (F, MODEL.audio.width))
    return [random(B, length, width, seed=seed) for length, width in widths]


def fuse(
    encoder: CrossEncoder, tokens: list[np.ndarray], presence: np.ndarray = SUBSETS, text_mask: np.ndarray = TEXT_MASK
) -> tuple[np.ndarray, np.ndarray]:
    masks = (Tensor(text_mask), Tensor(IMAGE_MASK), Tensor(AUDIO_MASK))
    fused, mask = encoder(*map(Tensor, tokens), *masks, Tensor(presence))
    return fused.asnumpy(), mask.asnumpy()


def test_mask_shows_what_is_present_and_one_place_of_what_is_not(encoder: CrossEncoder) -> None:
    fused, mask = fuse(encoder, contents())
    assert fused.shape == (B, encoder.length, MODEL.cross.width) and mask.shape == (B, encoder.length)
    for row, presence in enumerate(SUBSETS):
        assert mask[row, 0] == 1, "[CLS]"
        for which, own in ((TEXT, TEXT_MASK[row]), (IMAGE, IMAGE_MASK[row]), (AUDIO, AUDIO_MASK[row])):
            expected = own if presence[which] else np.eye(1, len(own))[0]
            assert mask[row, PARTS[which]].tolist() == expected.tolist(), (presence, which)


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_absent_content_has_no_influence(encoder: CrossEncoder, mode: str) -> None:
    with run_mode(mode):
        before, mask = fuse(encoder, contents())
        for which in (TEXT, IMAGE, AUDIO):
            other = contents()
            other[which] = other[which] * 100 + 7
            after, _ = fuse(encoder, other)
            lacks = SUBSETS[:, which] == 0
            assert np.array_equal(before[lacks][mask[lacks] == 1], after[lacks][mask[lacks] == 1])
            assert (np.abs(before[~lacks, 0] - after[~lacks, 0]).max(1) > 1e-4).all(), "what is present is read"


def test_mask_of_an_absent_modality_has_no_influence(encoder: CrossEncoder) -> None:
    before, mask = fuse(encoder, contents())
    after, other_mask = fuse(encoder, contents(), text_mask=1 - TEXT_MASK)
    lacks = SUBSETS[:, TEXT] == 0
    assert np.array_equal(mask[lacks], other_mask[lacks])
    assert np.array_equal(before[lacks][mask[lacks] == 1], after[lacks][mask[lacks] == 1])


def test_padding_has_no_influence(encoder: CrossEncoder) -> None:
    before, mask = fuse(encoder, contents())
    other = contents()
    other[TEXT][TEXT_MASK == 0] = 50
    other[IMAGE][IMAGE_MASK == 0] = 30
    other[AUDIO][AUDIO_MASK == 0] = -50
    after, _ = fuse(encoder, other)
    assert np.array_equal(before[mask == 1], after[mask == 1])


def test_every_subset_reads_differently(encoder: CrossEncoder) -> None:
    """The same content throughout: only the presence tells the rows apart."""
    tokens = [np.repeat(x[:1], B, axis=0) for x in contents()]
    cls = fuse(encoder, tokens)[0][:, 0]
    distance = np.abs(cls[:, None] - cls[None]).max(-1)
    assert (distance[~np.eye(B, dtype=bool)] > 1e-3).all()


def gradients(encoder: CrossEncoder, presence: tuple[int, int, int]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Of a weighted sum of the attended outputs, for the three contents and for the parameters by name."""
    rows = Tensor(np.tile(np.array(presence, np.int32), (B, 1)))
    weights = Tensor(random(B, encoder.length, MODEL.cross.width, seed=3))

    def attended(text: Tensor, image: Tensor, audio: Tensor) -> Tensor:
        masks = (Tensor(TEXT_MASK), Tensor(IMAGE_MASK), Tensor(AUDIO_MASK))
        fused, mask = encoder(text, image, audio, *masks, rows)
        return (fused * weights * mask.astype(ms.float32).expand_dims(-1)).sum()

    named = dict(encoder.parameters_and_names())
    inputs, parameters = ms.grad(attended, (0, 1, 2), list(named.values()))(*map(Tensor, contents()))
    return [x.asnumpy() for x in inputs], {k: g.asnumpy() for k, g in zip(named, parameters, strict=True)}


@pytest.mark.parametrize("which", [TEXT, IMAGE, AUDIO])
def test_gradient_goes_to_the_absent_embedding_and_not_to_the_absent_content(encoder: CrossEncoder, which: int) -> None:
    presence = tuple(int(i != which) for i in range(3))
    inputs, parameters = gradients(encoder, presence)
    project = ("text_project", "image_project", "audio_project")[which]
    assert not inputs[which].any() and not parameters[f"{project}.weight"].any()
    assert not parameters["modality"][which].any()
    reached = [np.abs(parameters["absent"][i]).max() > 1e-4 for i in range(3)]
    assert reached == [i == which for i in range(3)]
    for other in {TEXT, IMAGE, AUDIO} - {which}:
        assert np.abs(inputs[other]).max() > 1e-4 and np.abs(parameters["modality"][other]).max() > 1e-4


def test_padding_gets_no_gradient(encoder: CrossEncoder) -> None:
    inputs, parameters = gradients(encoder, (1, 1, 1))
    for which, mask in ((TEXT, TEXT_MASK), (IMAGE, IMAGE_MASK), (AUDIO, AUDIO_MASK)):
        assert not inputs[which][mask == 0].any()
        assert (np.abs(inputs[which][mask == 1]).max(-1) > 0).all()
    assert not parameters["absent"].any()

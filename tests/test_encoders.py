"""The three encoders: order, masks, and that nothing behind a mask matters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from src.models.audio_encoder import AudioEncoder
from src.models.image_encoder import ImageEncoder
from src.models.patches import split_patches
from src.models.text_encoder import TextEncoder
from tests.oracles import (
    VOCAB,
    affine_slots,
    assert_parity,
    block_slots,
    differentiate,
    norm_slots,
    randomise,
    run_mode,
    tiny_batch,
    tiny_model,
    torch_block,
    torch_padding,
)

MODEL = tiny_model()
BATCH = tiny_batch(MODEL, 4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_text_encoder_is_what_pytorch_computes(norm: str) -> None:
    config = replace(MODEL.text, norm=norm)
    table = torch.nn.Embedding(VOCAB, config.width)
    positions = torch.nn.Parameter(torch.zeros(1, config.max_len, config.width))
    first, last = torch.nn.LayerNorm(config.width), torch.nn.LayerNorm(config.width)
    layer = torch_block(config.width, config.heads, config.ffn, norm)

    def oracle(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = layer(first(table(ids) + positions), src_key_padding_mask=torch_padding(mask))
        return last(x) if norm == "pre" else x

    slots = {"tokens": (table.weight, slice(None)), "positions": (positions, slice(None))}
    slots |= norm_slots("norm.", first) | block_slots("transformer.blocks.0.", layer)
    if norm == "pre":
        slots |= norm_slots("transformer.final_norm.", last)
    mask = BATCH["text_mask"]
    assert_parity(TextEncoder(config, VOCAB), [BATCH["text_ids"], mask], oracle, slots, tolerance=5e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_text_behind_the_mask_changes_nothing(norm: str) -> None:
    encoder = TextEncoder(replace(MODEL.text, norm=norm), VOCAB)
    randomise(encoder)
    ids, mask = BATCH["text_ids"], BATCH["text_mask"]
    other = np.where(mask == 1, ids, 9).astype(np.int32)
    assert not np.array_equal(ids, other)
    before, after = (encoder(Tensor(x), Tensor(mask)).asnumpy() for x in (ids, other))
    assert np.array_equal(before[mask == 1], after[mask == 1])


def test_order_of_words_matters() -> None:
    encoder = TextEncoder(MODEL.text, VOCAB)
    ids, mask = BATCH["text_ids"][:1].copy(), np.ones((1, MODEL.text.max_len), np.int32)
    swapped = ids[:, ::-1].copy()
    found = encoder(Tensor(ids), Tensor(mask)).asnumpy()
    assert np.abs(encoder(Tensor(swapped), Tensor(mask)).asnumpy()[:, ::-1] - found).max() > 1e-3


def test_patches_are_squares_in_reading_order() -> None:
    config = MODEL.image
    found = split_patches(Tensor(BATCH["image"]), config.size // config.patch, config.patch).asnumpy()
    side, p = config.size // config.patch, config.patch
    for number in range(side * side):
        top, left = number // side * p, number % side * p
        pixels = BATCH["image"][:, top : top + p, left : left + p].reshape(4, -1)
        np.testing.assert_allclose(found[:, number], pixels / 127.5 - 1, atol=1e-6)
    assert found.shape == (4, side * side, p * p * 3) and found.min() >= -1 and found.max() <= 1


def test_a_patch_moves_its_own_embedding_and_the_others_only_by_attention() -> None:
    encoder = ImageEncoder(MODEL.image)
    before = encoder.project(split_patches(Tensor(BATCH["image"]), encoder.side, encoder.patch)).asnumpy()
    image = BATCH["image"].copy()
    image[:, : MODEL.image.patch, MODEL.image.patch :] ^= 255  # the second patch
    after = encoder.project(split_patches(Tensor(image), encoder.side, encoder.patch)).asnumpy()
    assert [i for i in range(before.shape[1]) if not np.array_equal(before[:, i], after[:, i])] == [1]
    outputs = [encoder(Tensor(x)).asnumpy() for x in (BATCH["image"], image)]
    assert (np.abs(outputs[0] - outputs[1]).max((0, 2)) > 0).all()


def test_audio_mask_counts_a_token_that_holds_any_audio() -> None:
    config = MODEL.audio
    frames = np.array([0, 1, config.stride, config.stride + 1, config.max_frames - 1, config.max_frames], np.int32)
    audio = np.zeros((len(frames), config.max_frames, config.mels), np.uint8)
    tokens, mask = AudioEncoder(config)(Tensor(audio), Tensor(frames))
    assert mask.asnumpy().sum(1).tolist() == [0, 1, 1, 2, 6, 6]
    assert (np.diff(mask.asnumpy(), axis=1) <= 0).all(), "audio stands in front"
    assert tokens.shape == (len(frames), config.max_frames // config.stride, config.width)
    assert np.isfinite(tokens.asnumpy()).all()


def test_audio_behind_the_end_changes_nothing() -> None:
    """Whole tokens behind the end; within the last token the batch contract says zeros."""
    encoder = AudioEncoder(MODEL.audio)
    randomise(encoder)
    frames = Tensor(BATCH["audio_frames"])
    before, mask = (x.asnumpy() for x in encoder(Tensor(BATCH["audio"]), frames))
    other = BATCH["audio"].copy()
    other[np.repeat(mask, MODEL.audio.stride, axis=1) == 0] = 77
    assert not np.array_equal(other, BATCH["audio"])
    after = encoder(Tensor(other), frames)[0].asnumpy()
    assert np.array_equal(before[mask == 1], after[mask == 1])


def test_audio_token_is_a_linear_map_of_its_frames() -> None:
    config = replace(MODEL.audio, norm="post")
    encoder, project = AudioEncoder(config), torch.nn.Linear(config.stride * config.mels, config.width)
    layer = torch_block(config.width, config.heads, config.ffn, "post")
    positions = torch.nn.Parameter(torch.zeros(1, encoder.tokens, config.width))
    mask = encoder(Tensor(BATCH["audio"]), Tensor(BATCH["audio_frames"]))[1].asnumpy()

    def oracle(audio: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        joined = (audio.float() / 127.5 - 1).unflatten(1, (-1, config.stride)).flatten(2)
        return layer(project(joined) + positions, src_key_padding_mask=torch_padding(torch.from_numpy(mask)))

    class Tokens(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.cell = encoder

        def construct(self, audio, frames):
            return self.cell(audio, frames)[0]

    slots = {"cell.positions": (positions, slice(None))} | affine_slots("cell.project.", project)
    slots |= block_slots("cell.transformer.blocks.0.", layer)
    assert_parity(Tokens(), [BATCH["audio"], BATCH["audio_frames"]], oracle, slots, tolerance=5e-5)


def test_graph_equals_pynative() -> None:
    encoder = TextEncoder(MODEL.text, VOCAB)
    inputs = [BATCH["text_ids"], BATCH["text_mask"]]
    shape = (4, MODEL.text.max_len, MODEL.text.width)
    found = {}
    for mode in ("graph", "pynative"):
        with run_mode(mode):
            output, _, gradients = differentiate(encoder, inputs, shape)
            found[mode] = {"output": output, **gradients}
    for name, value in found["pynative"].items():
        np.testing.assert_allclose(found["graph"][name], value, atol=1e-5, rtol=1e-4, err_msg=name)

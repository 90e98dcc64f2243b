"""The image decoder: causal, every code at every position, the same step by step, and it learns."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops

from src.config import ImageDecoderConfig
from src.generation.cache import CachedDecoder, past_bias
from src.losses.classification import cross_entropy
from src.models.image_decoder import ImageDecoder
from tests.oracles import (
    assert_parity,
    block_slots,
    differentiate,
    norm_slots,
    random,
    randomise,
    run_mode,
    torch_block,
    torch_padding,
)

CONFIG = ImageDecoderConfig(width=14, layers=2, heads=2, ffn=18)
K, G, B, L, D = 11, 3, 2, 5, 10
P = G * G
CODES = np.random.default_rng(0).integers(0, K, (B, P)).astype(np.int32)
IDS = np.concatenate([np.full((B, 1), K, np.int32), CODES[:, :-1]], 1)
MEMORY = random(B, L, D)
MASK = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], np.int32)


def build() -> ImageDecoder:
    return ImageDecoder(CONFIG, K, G, L, D)


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    cell = build()
    randomise(cell)
    return cell


def logits(decoder: ImageDecoder, codes: np.ndarray) -> np.ndarray:
    """[B, P', K]: position i is what is expected of code i."""
    with run_mode("pynative"):
        output = decoder(decoder.shift(Tensor(codes)), Tensor(MEMORY), Tensor(MASK))
    return output.asnumpy().reshape(len(codes), P, K)


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_is_what_pytorch_computes(mode: str) -> None:
    """Tied tables without BOS among the outputs, positions of rows and columns, and every gradient."""
    table = torch.nn.Parameter(torch.zeros(K + 1, CONFIG.width))
    shapes = {
        "row_positions": (G, 1, CONFIG.width),
        "column_positions": (1, G, CONFIG.width),
        "memory_positions": (1, L, D),
        "output_bias": (K,),
    }
    free = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    layers = [torch_block(CONFIG.width, CONFIG.heads, CONFIG.ffn, "pre", D) for _ in range(2)]
    final = torch.nn.LayerNorm(CONFIG.width)
    causal = torch.triu(torch.ones(P, P, dtype=torch.bool), 1)

    def oracle(ids: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.embedding(ids, table)
        rows = torch.stack([free["row_positions"][i // G, 0] + free["column_positions"][0, i % G] for i in range(P)])
        x, memory = x + rows, memory + free["memory_positions"]
        for layer in layers:
            x = layer(x, memory, tgt_mask=causal, memory_key_padding_mask=torch_padding(mask))
        return torch.nn.functional.linear(final(x), table[:K], free["output_bias"]).flatten(0, 1)

    slots = {name: (parameter, slice(None)) for name, parameter in {"tokens": table, **free}.items()}
    for number, layer in enumerate(layers):
        slots |= block_slots(f"transformer.blocks.{number}.", layer)
    slots |= norm_slots("transformer.final_norm.", final)
    with run_mode(mode):
        assert_parity(build(), [IDS, MEMORY, MASK], oracle, slots, tolerance=1e-4)


def test_a_code_is_seen_only_behind_itself(decoder: ImageDecoder) -> None:
    whole = logits(decoder, CODES)
    for place in range(P):
        other = CODES.copy()
        other[:, place] = (other[:, place] + 1) % K
        changed = np.abs(logits(decoder, other) - whole).max((0, 2)) > 1e-6  # [P']
        assert not changed[: place + 1].any() and changed[place + 1 :].all(), place


def test_gradient_of_a_logit_ends_at_its_own_input(decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is added to each input, a place of its own for each."""

    def chosen(places: Tensor, rows: Tensor) -> Tensor:
        monkeypatch.setattr(decoder, "all_positions", lambda: places)
        output = decoder(Tensor(IDS), Tensor(MEMORY), Tensor(MASK)).reshape(B, P, K)
        return (output * Tensor(random(B, P, K)) * rows).sum()

    with run_mode("pynative"):
        places, gradient = decoder.all_positions(), ms.grad(chosen, 0)
        for place in (0, P // 2, P - 1):
            rows = np.eye(P, dtype=np.float32)[place].reshape(1, P, 1)
            strength = np.abs(gradient(places, Tensor(rows)).asnumpy()[0]).max(1)  # [P']
            assert (strength[: place + 1] > 1e-5).all() and not strength[place + 1 :].any(), place


def test_input_begins_with_bos_and_ends_before_the_last_code(decoder: ImageDecoder) -> None:
    codes = CODES.copy()
    codes[1] = -1  # no image: any code that the table has
    with run_mode("pynative"):
        ids = decoder.shift(Tensor(codes)).asnumpy()
    assert ids.dtype == np.int32 and (ids[:, 0] == K).all() and (ids[1, 1:] == 0).all()
    np.testing.assert_array_equal(ids[0, 1:], CODES[0, :-1])


def test_steps_give_the_logits_of_the_whole(decoder: ImageDecoder) -> None:
    """One position at a time, over a cache that holds garbage behind it."""
    expected = logits(decoder, CODES)
    with run_mode("pynative"):
        read = decoder.read(Tensor(MEMORY), Tensor(np.arange(L, dtype=np.int32)))
        bias = Tensor(((1 - MASK) * -1e4).astype(np.float32).reshape(B, 1, 1, L))
        scored = decoder.score(Tensor(IDS), read, bias).asnumpy().reshape(expected.shape)
        np.testing.assert_allclose(scored, expected, atol=1e-4)
        cached = CachedDecoder(decoder, B, np.arange(L, dtype=np.int32))
        for block in cached.blocks:
            for table in (block.keys, block.values):
                table.set_data(Tensor(9 * random(*table.shape)))
        cached.read(Tensor(MEMORY), Tensor(MASK))
        for position in range(P):
            at = Tensor(position, ms.int32)
            found = cached.step(Tensor(IDS[:, position]), at, Tensor(past_bias(position, P)))
            assert found.shape == (B, K)
            np.testing.assert_allclose(found.asnumpy(), expected[:, position], atol=1e-4)


def code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """The mean over the codes of rows that have an image."""
    return cross_entropy(logits, ops.relu(codes).reshape(-1), (codes >= 0).astype(ms.float32).reshape(-1))


class _Loss(nn.Cell):
    """What training computes of codes (B, P'), memory (B, L, D) and its mask, given (B,)."""

    def __init__(self, decoder: ImageDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def construct(self, codes, memory, mask):
        return code_loss(self.decoder(self.decoder.shift(codes), memory, mask), codes)


def test_loss_counts_rows_with_a_image() -> None:
    codes = np.concatenate([CODES, CODES, CODES])  # [6, P']
    codes[1] = -1
    scores = random(6, P, K)
    log_probabilities = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    expected = -np.mean([log_probabilities[row, i, codes[row, i]] for row in (0, 2, 3, 4, 5) for i in range(P)])
    flat = Tensor(scores.reshape(-1, K))
    with run_mode("pynative"):
        assert float(code_loss(flat, Tensor(codes))) == pytest.approx(expected, rel=1e-5)
        assert float(code_loss(flat, Tensor(np.full_like(codes, -1)))) == 0
        gradient = ms.grad(lambda x: code_loss(x, Tensor(codes)))(flat).asnumpy().reshape(6, P, K)
    reached = np.abs(gradient).max(-1) > 0  # [6, P']
    np.testing.assert_array_equal(reached, (np.arange(6) != 1)[:, None] & np.ones(P, bool))


def test_every_code_and_every_position_is_trained(decoder: ImageDecoder) -> None:
    """The last code of the codebook and the last of the image too; BOS has no logit."""
    with run_mode("pynative"):
        inputs = [CODES, MEMORY, MASK]
        _, _, found = differentiate(_Loss(decoder), inputs, ())
    found = {name.removeprefix("decoder."): gradient for name, gradient in found.items()}
    assert found["output_bias"].shape == (K,) and found["output_bias"].all()
    assert found["tokens"].shape == (K + 1, CONFIG.width) and np.abs(found["tokens"]).max(1).all()
    assert np.abs(found["row_positions"]).max((1, 2)).all() and np.abs(found["column_positions"]).max((0, 2)).all()


def test_learns_one_batch() -> None:
    """The two images differ from the first code on: only the memory can tell which is meant."""
    ms.set_seed(1)
    codes = np.stack([np.arange(P), K - 1 - np.arange(P)]).astype(np.int32)
    loss = _Loss(build())
    optimizer = nn.Adam(loss.trainable_params(), 0.01)
    with run_mode("graph"):
        step = nn.TrainOneStepCell(loss, optimizer)
        inputs = [Tensor(x) for x in (codes, MEMORY, MASK)]
        losses = [float(step(*inputs)) for _ in range(100)]
    assert losses[-1] < 0.1 * losses[0], losses[::10]

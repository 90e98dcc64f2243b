"""The text decoder: causal, blind to padding of its memory, aware of places."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from src.models.layers import MASKED, padding_bias
from src.models.text_decoder import TextDecoder
from tests.oracles import (
    VOCAB,
    assert_parity,
    block_slots,
    norm_slots,
    random,
    randomise,
    run_mode,
    tiny_model,
    torch_block,
    torch_padding,
)

CONFIG = tiny_model(layers=2).text_decoder
B, T, L, D = 2, 4, 5, 10
IDS = np.random.default_rng(0).integers(0, VOCAB, (B, T)).astype(np.int32)
MEMORY = random(B, L, D)
MASK = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], np.int32)


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    cell = TextDecoder(CONFIG, VOCAB, T, L, D)
    randomise(cell)
    return cell


def logits(decoder: TextDecoder, ids: np.ndarray, memory: np.ndarray, mask: np.ndarray = MASK) -> np.ndarray:
    """[B, T', V]"""
    return decoder(Tensor(ids), Tensor(memory), Tensor(mask)).asnumpy().reshape(B, -1, VOCAB)


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_is_what_pytorch_computes(mode: str) -> None:
    """Tied tables, positions on the memory, and every gradient."""
    table = torch.nn.Embedding(VOCAB, CONFIG.width)
    free = {
        "positions": (1, T, CONFIG.width),
        "memory_positions": (1, L, D),
        "output_bias": (VOCAB,),
    }
    free = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in free.items()}
    layers = [torch_block(CONFIG.width, CONFIG.heads, CONFIG.ffn, "pre", D) for _ in range(2)]
    final = torch.nn.LayerNorm(CONFIG.width)
    causal = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)

    def oracle(ids: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x, memory = table(ids) + free["positions"], memory + free["memory_positions"]
        for layer in layers:
            x = layer(x, memory, tgt_mask=causal, memory_key_padding_mask=torch_padding(mask))
        return (final(x) @ table.weight.T + free["output_bias"]).flatten(0, 1)

    slots = {name: (parameter, slice(None)) for name, parameter in {"tokens": table.weight, **free}.items()}
    for number, layer in enumerate(layers):
        slots |= block_slots(f"transformer.blocks.{number}.", layer)
    slots |= norm_slots("transformer.final_norm.", final)
    with run_mode(mode):
        assert_parity(TextDecoder(CONFIG, VOCAB, T, L, D), [IDS, MEMORY, MASK], oracle, slots, tolerance=1e-4)


def test_gradient_of_a_logit_ends_at_its_own_input(decoder: TextDecoder) -> None:
    """By the input's positions: the tied table would reach every logit through the output."""

    def chosen(rows: Tensor) -> Tensor:
        output = decoder(Tensor(IDS), Tensor(MEMORY), Tensor(MASK)).reshape(B, T, VOCAB)
        return (output * Tensor(random(B, T, VOCAB)) * rows).sum()

    gradient = ms.grad(chosen, None, [decoder.positions])
    for place in range(T):
        rows = np.eye(T, dtype=np.float32)[place].reshape(1, T, 1)
        strength = np.abs(gradient(Tensor(rows))[0].asnumpy()[0]).max(1)  # [T]
        assert (strength[: place + 1] > 1e-5).all() and not strength[place + 1 :].any(), place


def test_a_prefix_has_the_logits_of_the_whole(decoder: TextDecoder) -> None:
    """What greedy decoding relies on."""
    whole = logits(decoder, IDS, MEMORY)
    for length in (1, 3):
        np.testing.assert_allclose(logits(decoder, IDS[:, :length], MEMORY), whole[:, :length], atol=1e-4)


def test_memory_behind_the_mask_changes_nothing(decoder: TextDecoder) -> None:
    other = MEMORY.copy()
    other[MASK == 0] = 99
    assert np.array_equal(logits(decoder, IDS, MEMORY), logits(decoder, IDS, other))
    other = MEMORY.copy()
    other[:, 0] += 1
    assert not np.array_equal(logits(decoder, IDS, MEMORY), logits(decoder, IDS, other))


@pytest.mark.parametrize("forbids", [False, True])
def test_log_probabilities_are_those_of_the_next_tokens_among_the_allowed(decoder: TextDecoder, forbids: bool) -> None:
    forbidden = np.where((np.arange(VOCAB) % 3 == 1) & forbids, np.float32(MASKED), np.float32(0))
    read, bias = decoder.read(Tensor(MEMORY), Tensor(np.arange(L, dtype=np.int32))), padding_bias(Tensor(MASK))
    found = decoder.log_probabilities(Tensor(IDS), read, bias, Tensor(forbidden) if forbids else None)
    logs = logits(decoder, IDS[:, :-1], MEMORY).astype(np.float64) + forbidden
    logs -= np.logaddexp.reduce(logs, axis=2, keepdims=True)
    np.testing.assert_allclose(found.asnumpy(), np.take_along_axis(logs, IDS[:, 1:, None], 2)[..., 0], rtol=1e-4)


def test_places_of_the_memory_are_known(decoder: TextDecoder) -> None:
    """Attention alone sees a set: without positions on the memory an order of its items could not be told."""
    order = np.array([3, 0, 4, 2, 1])
    shuffled, mask = MEMORY[:, order], MASK[:, order]
    assert np.abs(logits(decoder, IDS, shuffled, mask) - logits(decoder, IDS, MEMORY)).max() > 1e-2

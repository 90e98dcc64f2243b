"""New networks predict tokens about as well as a guess, at every width."""

import math

import numpy as np
import pytest
from mindspore import Tensor

from src.config import TextDecoderConfig, TextEncoderConfig
from src.losses.classification import cross_entropy
from src.models.heads import MaskedTextHead
from src.models.layers import POSITION_STD, TOKEN_STD, tied_std
from src.models.text_decoder import TextDecoder
from src.models.text_encoder import TextEncoder

VOCAB, LENGTH, MEMORY = 3000, 6, 5
WIDTHS = (64, 128, 512)
MOST = 1.0  # nats above ln V; with tables of one scale it is 2.6 at a width of 512


def first_loss(logits: Tensor, labels: np.ndarray) -> float:
    return float(cross_entropy(logits, Tensor(labels.reshape(-1)), Tensor(np.ones(labels.size, np.float32))))


def random_ids(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, VOCAB, (rows, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_decoders_first_loss_is_that_of_a_guess(width: int) -> None:
    sizes = TextDecoderConfig(width=width, layers=2, heads=4, ffn=4 * width)
    decoder = TextDecoder(sizes, VOCAB, LENGTH, MEMORY, width)
    ids, labels = random_ids(32), random_ids(64)[32:]
    memory = np.random.default_rng(1).standard_normal((32, MEMORY, width)).astype(np.float32)
    logits = decoder(Tensor(ids), Tensor(memory), Tensor(np.ones((32, MEMORY), np.int32)))
    assert -0.1 < first_loss(logits, labels) - math.log(VOCAB) < MOST


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_loss_of_masked_words_is_that_of_a_guess(width: int) -> None:
    encoder = TextEncoder(TextEncoderConfig(max_len=LENGTH, width=width, layers=1, heads=4), VOCAB)
    head = MaskedTextHead(width, width, VOCAB)
    hidden = Tensor(np.random.default_rng(1).standard_normal((32 * LENGTH, width)).astype(np.float32))
    assert -0.1 < first_loss(head(hidden, encoder.tokens), random_ids(32)) - math.log(VOCAB) < MOST


def test_tables_of_the_demos_width_start_where_they_always_did() -> None:
    """To the bit, so that results of the demo can be compared across versions."""
    assert (tied_std(TOKEN_STD, 128), tied_std(POSITION_STD, 128)) == (0.1, 0.3)
    encoder = TextEncoder(TextEncoderConfig(max_len=64, width=128, layers=0), VOCAB)
    assert encoder.tokens.asnumpy().std() == pytest.approx(0.1, rel=0.01)
    assert encoder.positions.asnumpy().std() == pytest.approx(0.3, rel=0.05)

"""Dropout: its statistics, and masks that follow from seed, step, rank and layer alone."""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.config import ImageTokenizerConfig
from src.models.dropout import Dropout, dropouts, salt_dropouts, set_key
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT
from tests.oracles import VOCAB, random, run_mode, tiny_model

ROWS, WIDTH, P = 4000, 256, 0.2
ONES = Tensor(np.ones((10, ROWS // 10, WIDTH), np.float32))


@pytest.fixture(autouse=True, params=["graph", "pynative"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with run_mode(request.param):
        yield


def dropped(layer: nn.Cell, *key: int) -> np.ndarray:
    """bool [ROWS, WIDTH]"""
    set_key(*key)
    return layer(ONES).asnumpy().reshape(ROWS, WIDTH) == 0


@pytest.fixture
def layer(mode: None) -> Dropout:
    return Dropout(P).set_train()


def test_a_share_is_dropped_and_the_rest_grows(layer: Dropout) -> None:
    set_key(1)
    values = layer(ONES).asnumpy()
    np.testing.assert_allclose(np.unique(values), [0, 1 / (1 - P)])
    found, noise = (values == 0).reshape(ROWS, WIDTH), np.sqrt(P * (1 - P))
    assert abs(found.mean() - P) < 5 * noise / np.sqrt(found.size)
    for axis, count in ((0, ROWS), (1, WIDTH)):  # no column or row is dropped more often than chance would
        assert np.abs(found.mean(axis) - P).max() < 5.5 * noise / np.sqrt(count)


def test_rows_and_columns_are_independent(layer: Dropout) -> None:
    found = dropped(layer, 1) - P
    for matrix in (found.T, found[:WIDTH]):
        correlation = np.corrcoef(matrix)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < 6 / np.sqrt(matrix.shape[1])
    square, above = found[:WIDTH], np.triu_indices(WIDTH, 1)
    mirrored = np.corrcoef(square[above], square.T[above])[0, 1]
    assert abs(mirrored) < 6 / np.sqrt(len(above[0])), "place (i, j) and place (j, i)"


def test_masks_follow_from_the_key_and_the_layer(layer: Dropout) -> None:
    other = Dropout(P).set_train()
    other.salt = 7
    both = P * P, 5 * P / np.sqrt(ROWS * WIDTH)
    first = dropped(layer, 1, 5, 0)
    np.testing.assert_array_equal(first, dropped(layer, 1, 5, 0))
    for another in (dropped(layer, 1, 6, 0), dropped(layer, 1, 5, 1), dropped(layer, 2, 5, 0), dropped(other, 1, 5, 0)):
        assert abs((first & another).mean() - both[0]) < both[1], "as often as independent masks would"


def test_the_gradient_passes_what_was_kept(layer: Dropout) -> None:
    set_key(3)
    x = Tensor(random(6, WIDTH))
    kept = layer(x).asnumpy() / x.asnumpy()
    np.testing.assert_allclose(ms.grad(layer)(x).asnumpy(), kept, rtol=1e-6)


def test_it_is_off_outside_of_training(layer: Dropout) -> None:
    layer.set_train(False)
    np.testing.assert_array_equal(layer(ONES).asnumpy(), ONES.asnumpy())


def test_a_network_has_masks_of_its_own_for_every_layer_and_no_weight_more() -> None:
    plain, network = OPT(tiny_model(), VOCAB), OPT(tiny_model(dropout=0.1), VOCAB)
    assert {name for name, _ in plain.parameters_and_names()} == {name for name, _ in network.parameters_and_names()}
    found = dropouts(network)
    assert not dropouts(plain) and len({layer.salt for layer in found}) == len(found) > 10
    tokenizer = dropouts(ImageTokenizer(ImageTokenizerConfig(dropout=0.1)))
    assert len({layer.salt for layer in tokenizer}) == len(tokenizer) == 8
    again = OPT(tiny_model(dropout=0.1), VOCAB)
    salt_dropouts(again)
    assert [layer.salt for layer in dropouts(again)] == [layer.salt for layer in found]

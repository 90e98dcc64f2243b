"""Generating text: the cache changes nothing, rows are independent, texts end, special tokens are never generated."""

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.data.schema import AUDIO, IMAGE
from src.data.tokenizer import SPECIALS, Tokenizer
from src.generation.beam import BeamSearch
from src.generation.cache import CachedDecoder, Read, past_bias
from src.models.batches import fitting_size, pad_rows
from src.models.opt import OPT
from src.models.text_decoder import TextDecoder
from tests.oracles import CLS, MASK, PAD, SEP, VOCAB, random, randomise, run_mode, tiny_model

UNK = 1
ROWS = 4


@pytest.fixture(scope="module")
def model() -> OPT:
    ms.set_seed(1)
    model = OPT(tiny_model(), VOCAB)
    randomise(model, seed=1)
    for block in model.text_decoder.transformer.blocks:  # the text must depend on the memory, not the biases
        value = block.cross_attention.value.weight
        value.set_data(value * 5)
    model.set_train(False)
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *(chr(ord("一") + i) for i in range(VOCAB - len(SPECIALS)))]))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def decoder(model: OPT, tokenizer: Tokenizer) -> BeamSearch:
    """Compiled once for all tests."""
    return BeamSearch(model, tokenizer, ROWS)


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


def images(model: OPT, rows: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = random(rows, *model.image_encoder.positions.shape[1:], seed=3)
    return tokens, np.ones(tokens.shape[:2], np.int32)


def clips(model: OPT, rows: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = random(rows, *model.audio_encoder.positions.shape[1:], seed=4)
    return tokens, (np.arange(tokens.shape[1]) < 1 + np.arange(rows)[:, None] % tokens.shape[1]).astype(np.int32)


def given_of(model: OPT, name: str, rows: int = ROWS) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    makers = {"image": (IMAGE, images), "audio": (AUDIO, clips)}
    return {makers[part][0]: makers[part][1](model, rows) for part in name.split("+")}


def whole_logits(model: OPT, ids: np.ndarray, given: dict[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Logits [n, T', V] by the decoder as it is trained, over all tokens so far."""
    rows = len(ids)
    presence = np.zeros((rows, 3), np.int32)
    presence[:, list(given)] = 1
    image = given.get(IMAGE) or images(model, rows)
    audio = given.get(AUDIO) or (random(rows, *model.audio_encoder.positions.shape[1:]), clips(model, rows)[1])
    text = random(rows, model.text_len, model.text_encoder.tokens.shape[1])
    text_mask = np.ones((rows, model.text_len), np.int32)
    inputs = [Tensor(array) for array in (text, image[0], audio[0], text_mask, image[1], audio[1], presence)]
    fused, mask = model.cross_encoder(*inputs)
    return model.text_decoder(Tensor(ids), fused, mask).asnumpy().reshape(rows, ids.shape[1], VOCAB)


def decode_slowly(model: OPT, given: dict[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Greedy decoding that computes everything again for every token."""
    ids = np.full((ROWS, model.text_len), PAD, np.int32)
    ids[:, 0] = CLS
    for position in range(model.text_len - 1):
        logits = whole_logits(model, ids[:, :-1], given)[:, position].copy()
        logits[:, [PAD, UNK, CLS, MASK]] = -np.inf
        ended = (ids == SEP).any(1)
        ids[:, position + 1] = np.where(ended, PAD, logits.argmax(1))
    return ids


@pytest.mark.parametrize("name", ["image", "audio", "image+audio"])
def test_cached_decoding_is_decoding_without_a_cache(model: OPT, decoder: BeamSearch, name: str) -> None:
    given = given_of(model, name)
    generated = decoder.generate(given)
    with run_mode("pynative"):
        expected = decode_slowly(model, given)
    np.testing.assert_array_equal(generated, expected)
    assert len(np.unique(generated, axis=0)) > 1, "all rows alike: the memory is not read"


class Cached(nn.Cell):
    """A step as a graph."""

    def __init__(self, cached: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.cached = cached

    def construct(self, ids, position, bias):
        return self.cached.step(ids, position, bias)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_step_gives_the_logits_of_the_whole(norm: str, beams: int) -> None:
    """One position at a time, beams that take over each other's past, over a cache that holds garbage behind it."""
    config, memories, length, fused = tiny_model(layers=2, norm=norm), 2, 5, 6
    decoder = TextDecoder(config.text_decoder, VOCAB, length, fused, config.cross.width)
    randomise(decoder)
    rng = np.random.default_rng(0)
    memory = random(memories, fused, config.cross.width)
    places = np.array([0, 2, 3, 5], np.int32)  # the other places are masked, so leaving them out changes nothing
    mask = np.tile(np.isin(np.arange(fused), places).astype(np.int32), (memories, 1))
    cached = CachedDecoder(decoder, memories, places, beams)
    for block in cached.blocks:
        for table in (block.keys, block.values):
            table.set_data(Tensor(9 * random(*table.shape)))
    step = Cached(cached)
    Read(cached)(Tensor(memory[:, places]), Tensor(mask[:, places]))
    ids = rng.integers(0, VOCAB, (memories, beams, length)).astype(np.int32)
    origins = np.tile(np.arange(beams)[:, None], (memories, 1, length))
    for position in range(length):
        if position:  # every beam goes on from another one's past
            rows, parent = np.arange(memories)[:, None], rng.integers(0, beams, (memories, beams))
            ids[:, :, :position], origins = ids[rows, parent][:, :, :position], origins[rows, parent]
            origins[:, :, position:] = np.arange(beams)[:, None]
        bias = past_bias(position, length, origins if beams > 1 else None)
        found = step(Tensor(ids[:, :, position].reshape(-1)), Tensor(position, ms.int32), Tensor(bias)).asnumpy()
        inputs = (np.repeat(array, beams, 0) for array in (memory, mask))
        with run_mode("pynative"):
            whole = decoder(Tensor(ids.reshape(-1, length)), *map(Tensor, inputs)).asnumpy()
        np.testing.assert_allclose(found, whole.reshape(-1, length, VOCAB)[:, position], atol=1e-4)


def test_rows_do_not_depend_on_the_batch(model: OPT, tokenizer: Tokenizer, decoder: BeamSearch) -> None:
    tokens, mask = images(model, 5)
    whole = decoder.generate({IMAGE: (tokens, mask)})
    np.testing.assert_array_equal(decoder.generate({IMAGE: (tokens[::-1], mask)})[::-1], whole)
    again = decoder.generate({IMAGE: (tokens, mask)})  # the last call's cache is overwritten
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_array_equal(BeamSearch(model, tokenizer, 2).generate({IMAGE: (tokens[2:], mask[2:])}), whole[2:])


@contextmanager
def output_bias(model: OPT, values: dict[int, float]) -> Iterator[None]:
    """Other biases of some tokens inside the block."""
    parameter = model.text_decoder.output_bias
    before = parameter.asnumpy().copy()
    changed = before.copy()
    changed[list(values)] = list(values.values())
    parameter.set_data(Tensor(changed))
    yield
    parameter.set_data(Tensor(before))


def test_special_tokens_are_never_generated(model: OPT, decoder: BeamSearch) -> None:
    with output_bias(model, dict.fromkeys([PAD, UNK, CLS, MASK], 50.0)):
        generated = decoder.generate(given_of(model, "image"))
    behind = np.cumsum(generated == SEP, axis=1) - (generated == SEP) > 0
    assert not np.isin(generated[:, 1:][~behind[:, 1:]], [PAD, UNK, CLS, MASK]).any()
    assert (generated[behind] == PAD).all()


def test_stops_at_the_end(model: OPT, decoder: BeamSearch) -> None:
    image = given_of(model, "image", 3)
    plain = decoder.generate(image)
    with output_bias(model, {SEP: 100.0}):  # also: the graph reads the weights of now, not those of its compilation
        generated = decoder.generate(image)
    assert (generated[:, :2] == [CLS, SEP]).all() and (generated[:, 2:] == PAD).all()
    assert decoder.decode(generated) == ["", "", ""]
    np.testing.assert_array_equal(decoder.generate(image), plain)


def test_batches_fit_few_rows() -> None:
    assert [fitting_size(rows, 100) for rows in (1, 2, 3, 64, 65, 100, 1000)] == [1, 2, 4, 64, 100, 100, 100]
    assert [fitting_size(rows, 100, {100, 8}) for rows in (3, 8, 9, 1000)] == [8, 8, 100, 100], "compiled before"
    np.testing.assert_array_equal(pad_rows(np.array([[1, 2], [3, 4]]), 4), [[1, 2], [3, 4], [3, 4], [3, 4]])

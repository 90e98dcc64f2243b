"""Sampling of image codes: the formula, its frequencies, and nothing that depends on the batch."""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import ImageDecoderConfig
from src.data.schema import AUDIO, TEXT
from src.generation.sampling import CodeSampler, Encoded, Sampling, sample_codes
from src.models.cross_encoder import CrossEncoder
from src.models.image_decoder import ImageDecoder
from tests.oracles import random, randomise, run_mode, tiny_model

MODEL = tiny_model()
K, G, ROWS = 7, 2, 3
P = G * G
TEXT_LEN, PATCHES, AUDIO_LEN = 7, 4, 3
Parts = tuple[CrossEncoder, ImageDecoder]


@pytest.fixture(scope="module")
def parts() -> Parts:
    ms.set_seed(1)
    cross = CrossEncoder(MODEL, TEXT_LEN, PATCHES, AUDIO_LEN)
    config = ImageDecoderConfig(width=14, layers=1, heads=2, ffn=18)
    decoder = ImageDecoder(config, K, G, cross.length, MODEL.cross.width)
    randomise(cross, seed=1)
    randomise(decoder, seed=2)
    value = decoder.transformer.blocks[0].cross_attention.value.weight
    value.set_data(value * 3)  # what is sampled must depend on the memory
    decoder.tokens.set_data(decoder.tokens * 0.6)  # and leave more than one code likely
    return cross, decoder


@pytest.fixture(scope="module")
def sampler(parts: Parts) -> CodeSampler:
    """Compiled once for all tests."""
    return CodeSampler(*parts, 8)


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


def encoded(length: int, width: int, rows: int = ROWS) -> Encoded:
    """Tokens and a mask of different lengths."""
    mask = np.arange(length) < 1 + np.arange(rows)[:, None] % length
    return random(rows, length, width), mask.astype(np.int32)


TEXTS, CLIPS = encoded(TEXT_LEN, MODEL.text.width), encoded(AUDIO_LEN, MODEL.audio.width)


def code_logits(parts: Parts, codes: np.ndarray, text: Encoded | None, audio: Encoded | None) -> np.ndarray:
    """[n, P', K] by the decoder as it is trained, over the whole memory; what is absent holds garbage."""
    rows = len(codes)
    presence = np.zeros((rows, 3), np.int32)
    presence[:, TEXT], presence[:, AUDIO] = text is not None, audio is not None
    text = text or (random(rows, TEXT_LEN, MODEL.text.width, seed=9), np.ones((rows, TEXT_LEN), np.int32))
    audio = audio or (random(rows, AUDIO_LEN, MODEL.audio.width, seed=9), np.ones((rows, AUDIO_LEN), np.int32))
    image = random(rows, PATCHES, MODEL.image.width, seed=9), np.ones((rows, PATCHES), np.int32)
    with run_mode("pynative"):
        given = [Tensor(x) for x in (text[0], image[0], audio[0], text[1], image[1], audio[1], presence)]
        fused, mask = parts[0](*given)
        logits = parts[1](parts[1].shift(Tensor(codes)), fused, mask)
    return logits.asnumpy().reshape(rows, P, K).astype(np.float64)


def guided_logits(parts: Parts, codes: np.ndarray, w: float, text: Encoded | None, audio: Encoded | None) -> np.ndarray:
    return (1 + w) * code_logits(parts, codes, text, audio) - w * code_logits(parts, codes, None, None)


def sample_slowly(parts: Parts, sampling: Sampling, text: Encoded | None, audio: Encoded | None) -> np.ndarray:
    """As the sampler, but everything is computed again for every code, in the usual form of the formula."""
    sampled = np.zeros((ROWS, sampling.samples, P), np.int32)
    for number in range(sampling.samples):
        streams = [np.random.default_rng((sampling.seed, row, number)) for row in range(ROWS)]
        for position in range(P):
            logits = guided_logits(parts, sampled[:, number], sampling.guidance, text, audio)[:, position]
            if sampling.top_k:
                worst = np.sort(logits, 1)[:, -sampling.top_k]
                logits[logits < worst[:, None]] = -np.inf
            if sampling.temperature:
                logits = logits / sampling.temperature + np.stack([stream.gumbel(size=K) for stream in streams])
            sampled[:, number, position] = logits.argmax(1)
    return sampled


@pytest.mark.parametrize(
    ("sampling", "given"),
    [
        (Sampling(temperature=0), "text"),
        (Sampling(samples=2, temperature=0.7, top_k=3, seed=5), "text+audio"),
        (Sampling(samples=3, guidance=1.5), "audio"),
        (Sampling(samples=2, temperature=0, guidance=2.0, top_k=K), "text"),
    ],
)
def test_cached_sampling_is_the_formula_without_a_cache(
    parts: Parts, sampler: CodeSampler, sampling: Sampling, given: str
) -> None:
    text, audio = TEXTS if "text" in given else None, CLIPS if "audio" in given else None
    codes = sampler.sample(sampling, text, audio)
    assert codes.shape == (ROWS, sampling.samples, P) and codes.dtype == np.int32
    np.testing.assert_array_equal(codes, sample_slowly(parts, sampling, text, audio))
    assert len(np.unique(codes[:, 0], axis=0)) > 1, "all rows alike: the memory is not read"
    if not sampling.temperature:
        assert (codes == codes[:, :1]).all(), "without noise the samples of a row are one"


def test_guidance_and_temperature_matter(sampler: CodeSampler) -> None:
    """Otherwise the test above would compare nothing."""
    found = [sampler.sample(Sampling(temperature=0, guidance=w), TEXTS) for w in (0, 2.0)]
    assert (found[0] != found[1]).any()
    found = [sampler.sample(Sampling(temperature=t, samples=2), TEXTS) for t in (0.1, 1.0, 10.0)]
    assert (found[0] != found[1]).any() and (found[1] != found[2]).any()


def test_pynative_samples_the_same(parts: Parts, sampler: CodeSampler) -> None:
    sampling = Sampling(samples=2, guidance=1.5)
    expected = sampler.sample(sampling, None, CLIPS)
    with run_mode("pynative"):
        np.testing.assert_array_equal(CodeSampler(*parts, 8).sample(sampling, None, CLIPS), expected)


def test_neither_batch_nor_order_matters(parts: Parts, sampler: CodeSampler) -> None:
    sampling = Sampling(samples=3, guidance=1.5)
    whole = sampler.sample(sampling, None, CLIPS)
    np.testing.assert_array_equal(sampler.sample(sampling, None, CLIPS), whole)  # the last call's cache is overwritten
    order = np.array([2, 0, 1])
    shuffled = sampler.sample(sampling, None, tuple(x[order] for x in CLIPS), rows=order)
    np.testing.assert_array_equal(shuffled, whole[order])
    one_by_one = CodeSampler(*parts, 1)
    for row in range(ROWS):
        alone = one_by_one.sample(sampling, None, tuple(x[row : row + 1] for x in CLIPS), rows=[row])
        np.testing.assert_array_equal(alone[0], whole[row])
    fewer = sampler.sample(Sampling(samples=2, guidance=1.5), None, CLIPS)
    np.testing.assert_array_equal(fewer, whole[:, :2])


def test_seeds_rows_and_samples_are_independent(sampler: CodeSampler) -> None:
    same = tuple(np.repeat(x[:1], ROWS, 0) for x in TEXTS)
    sampled = [sampler.sample(Sampling(samples=4, temperature=3.0, seed=seed), same).reshape(-1, P) for seed in (0, 1)]
    assert len(np.unique(np.concatenate(sampled), axis=0)) > 20, "of 24"


def test_top_k_leaves_out_the_least_likely() -> None:
    """However the noise falls; of all codes none is left out."""
    logits, noise = np.float32([[3, 1, 2, 0]]), np.float32([[0, 8, 0, 10]])
    assert [sample_codes(logits, noise, top_k).item() for top_k in (0, 1, 2, 3, 4)] == [3, 0, 0, 1, 3]


def test_top_k_samples_only_the_likeliest(parts: Parts, sampler: CodeSampler) -> None:
    codes = sampler.sample(Sampling(samples=16, temperature=20.0, top_k=3, seed=5), TEXTS, CLIPS)
    seen = set()
    for number in range(codes.shape[1]):
        logits = code_logits(parts, codes[:, number], TEXTS, CLIPS)
        chosen = np.take_along_axis(logits, codes[:, number, :, None], 2)
        rank = (logits > chosen).sum(2)  # [n, P']
        seen |= set(rank.ravel().tolist())
    assert seen == {0, 1, 2}


def test_frequencies_are_the_softmax(parts: Parts) -> None:
    """The first two codes together: so the second is conditional on the first."""
    samples = 3000
    text = tuple(x[:1] for x in TEXTS)
    codes = CodeSampler(*parts, 500).sample(Sampling(samples=samples), text)[0]  # [N, P']
    counts = np.bincount(codes[:, 0] * K + codes[:, 1], minlength=K * K)
    starts = np.zeros((K, P), np.int32)
    starts[:, 0] = np.arange(K)
    logits = code_logits(parts, starts, tuple(np.repeat(x, K, 0) for x in text), None)

    def statistic(temperature: float) -> tuple[float, int]:
        """Pearson's χ² and its degrees of freedom; rare pairs are counted together."""
        p = np.exp(logits / temperature)
        p /= p.sum(-1, keepdims=True)
        expected = samples * (p[0, 0][:, None] * p[:, 1]).ravel()
        often = expected >= 5
        found = np.append(counts[often], counts[~often].sum())
        wanted = np.append(expected[often], max(expected[~often].sum(), 1e-3))
        return float(((found - wanted) ** 2 / wanted).sum()), int(often.sum())

    value, freedom = statistic(1.0)
    assert freedom >= 5, "hardly more than one code is sampled: the test would show nothing"
    bound = freedom + 4 * (2 * freedom) ** 0.5
    assert value < bound
    assert min(statistic(0.8)[0], statistic(1.25)[0]) > bound, "another temperature would pass as well"


def test_first_and_last_code_are_sampled_at_every_position(parts: Parts, sampler: CodeSampler) -> None:
    """Also: the graph reads the weights of now, not those of its compilation."""
    bias = parts[1].output_bias
    before = bias.asnumpy().copy()
    try:
        for code in (0, K - 1):
            bias.set_data(Tensor(before + 100 * np.eye(K, dtype=np.float32)[code]))
            assert (sampler.sample(Sampling(), TEXTS) == code).all()
    finally:
        bias.set_data(Tensor(before))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"temperature": -1.0}, {"top_k": -1}, {"guidance": -0.5}])
def test_impossible_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)

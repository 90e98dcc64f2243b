"""Beam search against an exhaustive one, and each of its settings."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.config import Config, ConfigError, DecodingConfig, EvalConfig
from src.data.schema import IMAGE
from src.data.tokenizer import SPECIALS, Tokenizer
from src.generation.beam import BeamSearch, BeamSettings, _Hypotheses, _Step, repeated
from src.models.layers import MASKED
from src.models.opt import OPT
from tests.oracles import CLS, PAD, SEP, random, randomise, run_mode, tiny_model

ORDINARY = 4  # tokens beside the special ones
VOCAB = len(SPECIALS) + ORDINARY
LETTERS = range(len(SPECIALS), VOCAB)
EVERY = 90  # beams that hold every text: 1 + 4 + 16 + 64 of them end, or are cut off
ROWS, LIMIT = 3, 3  # inputs, and tokens that are generated at most


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *"一二三四"]), encoding="utf-8")
    return Tokenizer(path)


@pytest.fixture(scope="module")
def model() -> OPT:
    ms.set_seed(1)
    model = OPT(tiny_model(), VOCAB)
    randomise(model, seed=2)
    value = model.text_decoder.transformer.blocks[0].cross_attention.value.weight
    value.set_data(value * 5)
    table = model.text_decoder.tokens
    table.set_data(table * 0.4)  # no token is certain
    return model.set_train(False)


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def given(model: OPT) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    tokens = random(ROWS, *model.image_encoder.positions.shape[1:], seed=3)
    return {IMAGE: (tokens, np.ones(tokens.shape[:2], np.int32))}


@pytest.fixture(scope="module")
def searches(model: OPT, tokenizer: Tokenizer) -> dict[int, BeamSearch]:
    """By beams; compiled once for all tests."""
    return {beams: BeamSearch(model, tokenizer, ROWS, BeamSettings(beams)) for beams in (1, 3, EVERY)}


def search(searches: dict[int, BeamSearch], settings: BeamSettings) -> BeamSearch:
    found = searches[settings.beams]
    found.settings = settings
    return found


def every_text(limit: int) -> list[tuple[int, ...]]:
    """Those that end in time, and those that are cut off."""
    ended = [(*words, SEP) for n in range(limit) for words in itertools.product(LETTERS, repeat=n)]
    return ended + list(itertools.product(LETTERS, repeat=limit))


@pytest.fixture(scope="module")
def tables(model: OPT, given: dict) -> list[dict[tuple[int, ...], np.ndarray]]:
    """For each input, logits [VOCAB] of the token behind every beginning of a text, by the decoder as it is trained."""
    beginnings = sorted({text[:n] for text in every_text(LIMIT) for n in range(len(text))})
    ids = np.full((len(beginnings), LIMIT), PAD, np.int32)
    ids[:, 0] = CLS
    for row, words in zip(ids, beginnings, strict=True):
        row[1 : 1 + len(words)] = words
    found = []
    with run_mode("pynative"):
        for tokens in given[IMAGE][0]:
            fused, mask = model.cross_encoder.fuse_single_modality(
                Tensor(tokens[None]), Tensor(given[IMAGE][1][:1]), IMAGE
            )
            read = model.text_decoder.read(fused, Tensor(model.cross_encoder.single_modality_positions(IMAGE)))
            memory = [(ms.ops.tile(k, (len(ids), 1, 1, 1)), ms.ops.tile(v, (len(ids), 1, 1, 1))) for k, v in read]
            logits = model.text_decoder.score(Tensor(ids), memory, Tensor(np.zeros((1, 1, 1, 1), np.float32)))
            logits = logits.asnumpy().astype(np.float64).reshape(len(ids), LIMIT, VOCAB)
            rows = zip(beginnings, logits, strict=True)
            found.append({words: table[len(words)] for words, table in rows})
    return found


def allowed(words: tuple[int, ...], settings: BeamSettings) -> list[int]:
    """What may follow."""
    size = settings.no_repeat_ngram
    runs = {words[i : i + size] for i in range(len(words) - size + 1)} if size else set()
    letters = [token for token in LETTERS if not size or (*words, token)[-size:] not in runs]
    return letters + [SEP] * (len(words) + 1 >= settings.min_length)


def score(text: tuple[int, ...], table: dict[tuple[int, ...], np.ndarray], settings: BeamSettings) -> float:
    """log p of a text, every token's among those that may follow, by the penalised length; −inf: forbidden."""
    total = 0.0
    for place, token in enumerate(text):
        choices = allowed(text[:place], settings)
        if token not in choices:
            return -np.inf
        logits = table[text[:place]]
        total += logits[token] - np.logaddexp.reduce(logits[choices])
    return total / ((5 + len(text)) / 6) ** settings.length_penalty


def text_of(row: np.ndarray) -> tuple[int, ...]:
    """The tokens of a row of what was generated, checked to be well formed."""
    ids = row.tolist()
    assert ids[0] == CLS
    text = ids[1 : ids.index(SEP) + 1] if SEP in ids else [token for token in ids[1 : 1 + LIMIT] if token != PAD]
    assert ids[1 + len(text) :] == [PAD] * (len(ids) - 1 - len(text))
    return tuple(text)


@pytest.mark.parametrize(
    "settings",
    [
        BeamSettings(EVERY),
        BeamSettings(EVERY, length_penalty=1.0),
        BeamSettings(EVERY, length_penalty=3.0),
        BeamSettings(EVERY, no_repeat_ngram=1, length_penalty=2.0),
        BeamSettings(EVERY, no_repeat_ngram=2, length_penalty=2.0),
        BeamSettings(EVERY, min_length=3),
        BeamSettings(EVERY, max_length=2, length_penalty=2.0),
    ],
    ids=str,
)
def test_a_beam_that_holds_every_text_finds_the_best(
    searches: dict, given: dict, tables: list, settings: BeamSettings
) -> None:
    limit = settings.max_length or LIMIT
    found = search(searches, replace(settings, max_length=limit)).generate(given)
    for row, table in zip(found, tables, strict=True):
        scores = {text: score(text, table, settings) for text in every_text(limit)}
        best = max(scores, key=scores.__getitem__)
        assert text_of(row) == best, (scores[text_of(row)], scores[best])


def test_a_wider_beam_finds_texts_at_least_as_good(searches: dict, given: dict, tables: list) -> None:
    means = []
    for beams in (1, 3, EVERY):
        settings = BeamSettings(beams=beams, max_length=LIMIT, length_penalty=2.0)
        rows = search(searches, settings).generate(given)
        means.append(np.mean([score(text_of(row), table, settings) for row, table in zip(rows, tables, strict=True)]))
    assert means[0] <= means[1] + 1e-5 and means[1] <= means[2] + 1e-5 and means[0] < means[2]


class ToyLanguage:
    """A random language: log-probabilities [SEP and four letters] behind every beginning of a text."""

    def __init__(self, seed: int, limit: int) -> None:
        rng = np.random.default_rng(seed)
        self.tokens = np.array([SEP, *LETTERS])
        beginnings = [words for n in range(limit) for words in itertools.product(LETTERS, repeat=n)]
        logits = rng.normal(0, 1.5, (len(beginnings), len(self.tokens)))
        self.table = self.normalised(dict(zip(beginnings, logits, strict=True)))

    @staticmethod
    def normalised(table: dict[tuple[int, ...], np.ndarray]) -> dict[tuple[int, ...], np.ndarray]:
        return {words: logits - np.logaddexp.reduce(logits) for words, logits in table.items()}

    @classmethod
    def of(cls, table: dict[tuple[int, ...], np.ndarray]) -> "ToyLanguage":
        """That of a model, by its logits [VOCAB] behind every beginning."""
        language = cls.__new__(cls)
        language.tokens = np.array([SEP, *LETTERS])
        language.table = cls.normalised({words: logits[language.tokens] for words, logits in table.items()})
        return language

    def choices(self, words: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-self.table[words], kind="stable")[:count]
        return self.tokens[order], self.table[words][order]

    def ended(self, settings: BeamSettings, limit: int) -> dict[tuple[int, ...], float]:
        """Scores of all texts that a plain beam search meets: those that have ended, and those that are cut off."""
        beams, found = [((), 0.0)], {}
        for length in range(1, limit + 1):
            grown = [
                ((*words, int(token)), total + log)
                for words, total in beams
                for token, log in zip(*self.choices(words, settings.beams + 1), strict=True)
            ]
            found |= {words: total / settings.penalty(length) for words, total in grown if words[-1] == SEP}
            grown = sorted((entry for entry in grown if entry[0][-1] != SEP), key=lambda entry: -entry[1])
            beams = grown[: settings.beams]
        return found | {words: total / settings.penalty(limit) for words, total in beams}


@pytest.mark.parametrize(("penalty", "limit"), [(0.0, 4), (0.6, 4), (2.0, 4), (6.0, 5)])
def test_no_text_that_ended_is_lost_to_one_that_later_gets_worse(
    tokenizer: Tokenizer, penalty: float, limit: int
) -> None:
    lengths = set()
    for seed, beams in itertools.product(range(40), (2, 3)):
        language, settings = ToyLanguage(seed, limit), BeamSettings(beams, penalty)
        search = _Hypotheses(1, limit + 1, limit, settings, tokenizer)
        for length in range(1, limit + 1):
            prefixes = [tuple(row[1:length].tolist()) for row in search.ids[0]]
            going = [row for row in range(beams) if np.isfinite(search.going[0, row])]
            tokens = np.full((1, beams, beams + 1), LETTERS[0], np.int32)
            logs = np.full(tokens.shape, -np.inf)
            for row in going:
                tokens[0, row], logs[0, row] = language.choices(prefixes[row], beams + 1)
            search.extend(length, tokens, logs)
            if search.over:
                break
        text = tuple(token for token in search.best()[0, 1:].tolist() if token != PAD)
        met = language.ended(settings, limit)
        assert met[text] == pytest.approx(max(met.values())), (seed, beams, text)
        lengths.add(len(text))
    assert len(lengths) > 1, "texts of one length would not show what the penalty does"


A, B, C = LETTERS[:3]


def hypotheses(tokenizer: Tokenizer, settings: BeamSettings, limit: int, inputs: int = 1) -> _Hypotheses:
    return _Hypotheses(inputs, limit + 1, limit, settings, tokenizer)


def extend(found: _Hypotheses, generated: int, *beams: list[tuple[int, float]]) -> None:
    """Of one input: the choices of each beam, the likeliest first, with their log-probabilities."""
    table = np.array(beams)[None]
    found.extend(generated, table[..., 0].astype(np.int32), table[..., 1])


def text_so_far(found: _Hypotheses) -> list[int]:
    return [token for token in found.best()[0, 1:].tolist() if token != PAD]


NOTHING = [(A, -np.inf), (B, -np.inf), (C, -np.inf)]


@pytest.mark.parametrize("ends", [True, False])
def test_a_longer_text_overtakes_one_that_ended(tokenizer: Tokenizer, ends: bool) -> None:
    """With α = 2 and at most 4 tokens −1.2 may still become −1.2 / 2.25, which is more than −1; −3 may not."""
    found = hypotheses(tokenizer, BeamSettings(2, length_penalty=2.0), 4)
    extend(found, 1, [(SEP, -1.0), (A, -1.2), (B, -3.0)], NOTHING)
    assert found.ended.tolist() == [-1.0] and found.ended_ids[0, 1:3].tolist() == [SEP, PAD]
    assert found.going.tolist() == [[-1.2, -np.inf]] and not found.over
    for generated in (2, 3):
        extend(found, generated, [(A, -0.1), (B, -5.0), (C, -6.0)], NOTHING)
    last = SEP if ends else C
    extend(found, 4, [(last, -0.1), (B, -5.0), (A, -6.0)], NOTHING)
    assert text_so_far(found) == [A, A, A, last] and found.over == ends
    best = found.ended if ends else found.going.max(1) / 2.25
    np.testing.assert_allclose(best, [-1.5 / 2.25])


def test_a_text_that_found_no_end_loses_to_a_better_one_that_did(tokenizer: Tokenizer) -> None:
    found = hypotheses(tokenizer, BeamSettings(2), 2)
    extend(found, 1, [(SEP, -1.0), (A, -0.5), (B, -0.9)], NOTHING)
    assert not found.over and text_so_far(found) == [A], "unfinished, it is still the best"
    extend(found, 2, [(A, -0.6), (B, -2.0), (C, -3.0)], [(A, -0.6), (B, -2.0), (C, -3.0)])
    assert found.over and text_so_far(found) == [SEP]


def test_a_token_that_may_not_stand_there_begins_no_text(tokenizer: Tokenizer) -> None:
    """Where fewer tokens are left than a beam has choices."""
    found = hypotheses(tokenizer, BeamSettings(2), 3)
    extend(found, 1, [(A, -0.5), (B, MASKED - 1.0), (SEP, MASKED - 2.0)], NOTHING)
    assert found.going.tolist() == [[-0.5, -np.inf]] and np.isneginf(found.ended).all()


def test_of_equally_good_texts_the_first_stays(tokenizer: Tokenizer) -> None:
    """α = 1: −1 after one token, and −2 after seven, are the same score."""
    found = hypotheses(tokenizer, BeamSettings(2, length_penalty=1.0), 13)
    extend(found, 1, [(A, -0.5), (SEP, -1.0), (B, -1.5)], NOTHING)
    for generated in range(2, 7):
        extend(found, generated, [(A, -0.25), (B, -9.0), (C, -9.0)], NOTHING)
    extend(found, 7, [(SEP, -0.25), (A, -9.0), (B, -9.0)], NOTHING)
    assert found.ended.tolist() == [-1.0] and found.ended_ids[0, 1:3].tolist() == [SEP, PAD]
    same = hypotheses(tokenizer, BeamSettings(2), 3)
    extend(same, 1, [(B, -1.0), (A, -1.0), (C, -1.0)], NOTHING)
    assert same.last(1).tolist() == [B, A], "and of equally good beginnings the earlier choice"
    extend(same, 2, [(SEP, -1.0), (A, -1.0), (B, -2.0)], [(SEP, -1.0), (C, -1.0), (B, -2.0)])
    assert same.ended_ids[0, 1:3].tolist() == [B, SEP]


def test_a_beam_takes_over_the_past_of_the_one_that_it_goes_on_from(tokenizer: Tokenizer) -> None:
    found = hypotheses(tokenizer, BeamSettings(2), 3)
    extend(found, 1, [(A, -1.0), (B, -2.0), (C, -9.0)], NOTHING)
    extend(found, 2, [(A, -5.0), (B, -6.0), (C, -9.0)], [(C, -0.1), (A, -0.2), (B, -9.0)])
    assert found.ids[0, :, 1:3].tolist() == [[B, C], [B, A]]
    assert found.origins[0, :, :2].tolist() == [[0, 1], [0, 1]], "both stand on what the second wrote"
    assert (found.origins[0, :, 2:] == [[0], [1]]).all()


def test_a_beam_of_three_finds_what_a_plain_one_does(searches: dict, given: dict, tables: list) -> None:
    """Also where SEP or a letter is not among a beam's choices: log p is among all that may follow."""
    for penalty in np.arange(0.0, 5.0, 0.25):
        settings = BeamSettings(3, max_length=LIMIT, length_penalty=float(penalty))
        for row, table in zip(search(searches, settings).generate(given), tables, strict=True):
            met = ToyLanguage.of(table).ended(settings, LIMIT)
            assert text_of(row) == max(met, key=met.__getitem__), penalty


class Logits(nn.Cell):
    """Stands for a cached decoder: the logits of its rows are given."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = Tensor(logits)

    def step(self, ids, position, bias):
        return self.logits


@pytest.mark.parametrize("choices", [1, 2, 4])
def test_a_step_gives_log_probabilities_among_all_that_may_follow(choices: int) -> None:
    """Not among the choices alone: log p of texts would be too high, by more where less is certain."""
    logits = 3 * random(4, VOCAB)
    allowed = np.where(np.arange(VOCAB) % 4 == 1, np.float32(MASKED), np.float32(0))
    with run_mode("pynative"):
        found = _Step(Logits(logits), choices)(None, None, None, Tensor(allowed))
    whole = logits.astype(np.float64) + allowed
    best = np.argsort(-whole, axis=1)[:, :choices]
    if choices == 1:
        np.testing.assert_array_equal(found.asnumpy(), best[:, 0])
        return
    logs = whole - np.logaddexp.reduce(whole, axis=1, keepdims=True)
    np.testing.assert_array_equal(found[0].asnumpy(), best)
    np.testing.assert_allclose(found[1].asnumpy(), np.take_along_axis(logs, best, 1), atol=1e-5)


def test_an_end_among_a_beams_choices_costs_no_other_text_its_place(model: OPT, searches: dict) -> None:
    """K texts go on although each beam offers [SEP] too: K + 1 choices, or all there are."""
    places = model.cross_encoder.single_modality_positions(IMAGE)
    assert {beams: one.build(1, places)[1].choices for beams, one in searches.items()} == {1: 1, 3: 4, EVERY: VOCAB}


def test_one_beam_is_greedy_whatever_the_penalty(searches: dict, given: dict, tables: list) -> None:
    rows = search(searches, BeamSettings(max_length=LIMIT, length_penalty=2.0)).generate(given)
    for row, table in zip(rows, tables, strict=True):
        words: tuple[int, ...] = ()
        while len(words) < LIMIT and SEP not in words:
            words = (*words, max((*LETTERS, SEP), key=table[words].__getitem__))
        assert text_of(row) == words


def test_inputs_do_not_depend_on_each_other(model: OPT, tokenizer: Tokenizer, searches: dict, given: dict) -> None:
    settings = BeamSettings(beams=3, length_penalty=1.0)
    whole = search(searches, settings).generate(given)
    tokens, mask = given[IMAGE]
    np.testing.assert_array_equal(searches[3].generate({IMAGE: (tokens[::-1], mask)})[::-1], whole)
    one_by_one = BeamSearch(model, tokenizer, 1, settings).generate(given)
    np.testing.assert_array_equal(one_by_one, whole)


def test_ties_go_to_the_first_token(model: OPT, searches: dict, given: dict) -> None:
    """With a table of zeros every token is as likely as any other."""
    table = model.text_decoder.tokens
    before = Tensor(table.asnumpy().copy())
    bias = model.text_decoder.output_bias
    bias_before = Tensor(bias.asnumpy().copy())
    table.set_data(ms.ops.zeros_like(table))
    bias.set_data(ms.ops.zeros_like(bias))
    try:
        for beams in (1, 3):
            found = search(searches, BeamSettings(beams)).generate(given)
            assert (found[:, 1] == SEP).all(), "the first token that may be generated"
    finally:
        table.set_data(before)
        bias.set_data(bias_before)


@pytest.mark.parametrize("blocked", [0, 2])
def test_a_text_may_end_where_it_is_as_long_as_it_must_be(model: OPT, tokenizer: Tokenizer, blocked: int) -> None:
    """Its [SEP] included: the third token may be the first end of a text of at least three."""
    found = BeamSearch(model, tokenizer, 1, BeamSettings(min_length=3, no_repeat_ngram=blocked))
    texts = hypotheses(tokenizer, found.settings, 6)
    texts.ids[:, :, 1:6] = [A, B, C, A, C]
    ends = [found._allowed(texts, position).asnumpy().reshape(-1)[SEP] == 0 for position in range(5)]
    assert ends == [False, False, True, True, True]


def test_tokens_that_would_repeat_an_ngram() -> None:
    rows = np.array([[5, 6, 5, 6, 5], [5, 6, 7, 8, 6], [5, 5, 5, 5, 5]], np.int32)
    found = [np.flatnonzero(row).tolist() for row in repeated(rows, 3, 9)]
    assert found == [[6], [], [5]]
    assert [np.flatnonzero(row).tolist() for row in repeated(rows[:2], 1, 9)] == [[5, 6], [5, 6, 7, 8]]
    assert not repeated(rows[:, :1], 3, 9).any()


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="beam_size: must be positive"):
        EvalConfig(decoding=DecodingConfig(beam_size=0))
    with pytest.raises(ConfigError, match="length_penalty: must not be negative"):
        EvalConfig(decoding=DecodingConfig(length_penalty=-1))
    with pytest.raises(ConfigError, match="min_length: must not be above max_length=2"):
        EvalConfig(decoding=DecodingConfig(min_length=3, max_length=2))
    with pytest.raises(ConfigError, match="eval.decoding.max_length: model.text.max_len leaves room for 6 tokens"):
        Config(model=tiny_model(), eval=EvalConfig(decoding=DecodingConfig(max_length=7)))
    settings = BeamSettings.of(
        DecodingConfig(beam_size=3, length_penalty=0.5, no_repeat_ngram=2, min_length=1, max_length=9)
    )
    assert settings == BeamSettings(3, 0.5, 2, 1, 9)


def test_a_text_may_fill_all_places_behind_its_first_token() -> None:
    search = object.__new__(BeamSearch)
    search.model = SimpleNamespace(text_len=9)
    for longest, limit in ((0, 8), (3, 3), (8, 8)):
        search.settings = BeamSettings(max_length=longest)
        assert search.limit == limit

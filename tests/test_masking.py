"""The random part of a sample: shares, limits, and independence of everything but the key."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from src.data.masking import (
    mask_positions,
    mask_words,
    order_rng,
    possible_given,
    sample_given,
    sample_match,
    sample_rng,
)
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT, masked_word_slots
from src.data.tokenizer import SPECIALS, Tokenizer

LENGTH, SLOTS, RATIO = 32, 5, 0.15
GIVEN = {TEXT: ("image+audio", "image", "audio"), IMAGE: ("text+audio", "text", "audio")}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *(chr(0x4E00 + index) for index in range(200))]), encoding="utf-8")
    return Tokenizer(path)


def row(tokenizer: Tokenizer, lengths: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens in words of these lengths."""
    count = sum(lengths)
    ids, words = np.full(LENGTH, tokenizer.pad_id, np.int32), np.full(LENGTH, -1, np.int32)
    ids[0], ids[count + 1] = tokenizer.cls_id, tokenizer.sep_id
    ids[1 : count + 1] = rng.integers(5, tokenizer.size, count)
    words[1 : count + 1] = np.repeat(np.arange(len(lengths)), lengths)
    return ids, words


def test_hidden_words_are_whole_and_labelled(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        lengths = rng.integers(1, 4, rng.integers(1, 10)).tolist()
        ids, words = row(tokenizer, lengths, rng)
        before = ids.copy()
        masked, positions, labels, weights = mask_words(ids, words, SLOTS, RATIO, tokenizer, rng)
        assert np.array_equal(ids, before)
        used = int(weights.sum())
        assert 1 <= used <= SLOTS and weights[:used].all()
        assert not positions[used:].any() and not labels[used:].any()
        hidden = positions[:used]
        assert (np.diff(hidden) > 0).all() and np.array_equal(labels[:used], ids[hidden])
        assert set(np.flatnonzero(np.isin(words, words[hidden]))) == set(hidden), "words are hidden whole"
        assert (words[hidden] >= 0).all(), "special tokens stay"
        others = np.setdiff1d(np.arange(LENGTH), hidden)
        assert np.array_equal(masked[others], ids[others])
        assert (masked[hidden] >= 4).all()
        assert masked.dtype == positions.dtype == labels.dtype == np.int32 and weights.dtype == np.float32


def test_shares(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    lengths = [1, 4, 2, 1, 2, 3, 1, 2, 1, 2, 1]  # a whole row of 20 tokens, of which 3 are to be hidden
    slots = masked_word_slots(20, RATIO)
    fates, by_length, total = Counter(), Counter(), 0
    for _ in range(4000):
        ids, words = row(tokenizer, lengths, rng)
        masked, positions, labels, weights = mask_words(ids, words, slots, RATIO, tokenizer, rng)
        hidden = positions[weights > 0]
        total += len(hidden)
        for word in np.unique(words[hidden]):
            by_length[lengths[word]] += 1
        for place in hidden:
            kind = "mask" if masked[place] == tokenizer.mask_id else "same" if masked[place] == ids[place] else "other"
            fates[kind] += 1
    assert abs(total / (4000 * 20) - RATIO) < 0.006
    for kind, share in (("mask", 0.8), ("other", 0.1), ("same", 0.1)):
        assert abs(fates[kind] / total - share) < 0.015
    for length in (1, 2, 3, 4):
        chance = by_length[length] / lengths.count(length) / 4000
        assert abs(chance - RATIO) < 0.015, f"words of {length} are hidden like all others"


def test_extremes(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(2)
    ids, words = row(tokenizer, [9], rng)
    _, positions, _, weights = mask_words(ids, words, SLOTS, RATIO, tokenizer, rng)
    assert weights.sum() == SLOTS and positions.tolist() == [1, 2, 3, 4, 5]  # longer than the slots: its beginning
    ids, words = row(tokenizer, [], rng)
    masked, _, _, weights = mask_words(ids, words, SLOTS, RATIO, tokenizer, rng)
    assert weights.sum() == 0 and np.array_equal(masked, ids)


@pytest.mark.parametrize("absent", [TEXT, IMAGE])
@pytest.mark.parametrize("presence", list(product((0, 1), repeat=3)))
def test_given(presence: tuple[int, int, int], absent: int) -> None:
    """One of the choices that the sample has, all of them equally often; never what is to be generated."""
    rng = np.random.default_rng(0)
    have, other = np.array(presence, np.int32), TEXT + IMAGE - absent
    drawn = Counter(tuple(sample_given(GIVEN[absent], have, 0.0, rng).tolist()) for _ in range(600))
    seen = {tuple(int(which in shown) for which in range(3)) for shown in ((other, AUDIO), (other,), (AUDIO,))}
    wanted = {row for row in seen if row[other] <= have[other] and row[AUDIO] <= have[AUDIO]} or {(0, 0, 0)}
    assert drawn.keys() == wanted
    assert min(drawn.values()) > 600 / len(wanted) * 0.75
    assert have.tolist() == list(presence)


def test_given_falls_back_to_what_there_is_of_the_choices() -> None:
    """Never to a modality that no choice names: with given=[image] a sample without an image is given nothing."""
    rng = np.random.default_rng(0)
    assert sample_given(("image+audio",), np.array([1, 1, 0]), 0.0, rng).tolist() == [0, 1, 0]
    assert sample_given(("image+audio",), np.array([1, 0, 1]), 0.0, rng).tolist() == [0, 0, 1]
    assert sample_given(("image+audio", "audio"), np.array([1, 1, 0]), 0.0, rng).tolist() == [0, 1, 0]
    assert sample_given(("image",), np.array([1, 0, 1]), 0.0, rng).tolist() == [0, 0, 0]
    assert sample_given(("audio",), np.array([1, 1, 0]), 0.0, rng).tolist() == [0, 0, 0]
    assert sample_given(("text",), np.array([0, 1, 1]), 0.0, rng).tolist() == [0, 0, 0]
    assert sample_given(("image", "audio"), np.array([1, 0, 1]), 0.0, rng).tolist() == [0, 0, 1]


def test_given_may_have_to_be_whole() -> None:
    """A question or speech is not made up for by the image beside it."""
    questions, speech = ("text+image", "image+audio"), ("audio", "image+audio")
    for choices, presence, parts, wholes in (
        (questions, (1, 1, 1), [[1, 1, 0], [0, 1, 1]], [[1, 1, 0], [0, 1, 1]]),
        (questions, (1, 1, 0), [[1, 1, 0]], [[1, 1, 0]]),
        (questions, (1, 0, 1), [[1, 0, 1]], []),
        (questions, (0, 1, 0), [[0, 1, 0]], []),
        (speech, (1, 1, 0), [[0, 1, 0]], []),
        (speech, (1, 0, 1), [[0, 0, 1]], [[0, 0, 1]]),
        (speech, (1, 0, 0), [], []),
    ):
        assert possible_given(choices, np.array(presence)).tolist() == parts
        assert possible_given(choices, np.array(presence), whole=True).tolist() == wholes
        drawn = sample_given(choices, np.array(presence), 0.0, np.random.default_rng(0), whole=True).tolist()
        assert drawn in (wholes or [[0, 0, 0]])


def test_given_is_dropped_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_given(("text",), np.ones(3, np.int32), 0.2, rng).any() for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("span", [1, 3])
def test_places_are_hidden_in_runs_of_about_the_ratio(span: int) -> None:
    rng = np.random.default_rng(0)
    hidden, runs = np.zeros(40), 0
    for _ in range(3000):
        positions, weights = mask_positions(40, 8, 0.15, span, rng)
        used = positions[weights > 0]
        assert len(used) == len(set(used.tolist())) == 6 and used.max() < 40 and (np.diff(used) > 0).all()
        assert not positions[weights == 0].any()
        runs += 1 + int((np.diff(used) > 1).sum())
        hidden[used] += 1
    assert 4.5 < runs / 3000 < 6 if span == 1 else 1.8 < runs / 3000 < 2.5
    assert hidden.min() > 0.2 * hidden.mean(), "every place is hidden at times, the first in a run of its own only"


def test_places_of_something_short_or_absent() -> None:
    rng = np.random.default_rng(0)
    assert mask_positions(0, 3, 0.15, 3, rng)[1].sum() == 0
    positions, weights = mask_positions(1, 3, 0.15, 3, rng)
    assert positions.tolist() == [0, 0, 0] and weights.tolist() == [1, 0, 0]
    assert mask_positions(30, 2, 0.5, 1, rng)[1].sum() == 2  # no more than there are slots


PAIRS = {(0, 1, 1): "image+audio", (1, 0, 1): "text+audio", (1, 1, 0): "text+image"}


def test_match_of_triplets() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter()
    for _ in range(12000):
        case, shown = sample_match(np.ones(3, np.int32), rng)
        drawn[tuple(shown.tolist()), MATCH_CASES[case]] += 1
    expected = {((1, 1, 1), case): 0.1 for case in MATCH_CASES}
    for pair, name in PAIRS.items():
        expected |= {(pair, name): 1 / 12, (pair, "none"): 1 / 12}
    assert drawn.keys() == expected.keys()
    for key, share in expected.items():
        assert abs(drawn[key] / 12000 - share) < 0.012, key


@pytest.mark.parametrize("presence", list(product((0, 1), repeat=3))[:-1])
def test_match_of_less(presence: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    draws = [sample_match(np.array(presence, np.int32), rng) for _ in range(400)]
    cases = Counter(MATCH_CASES[case] for case, _ in draws)
    shown = {tuple(row.tolist()) for _, row in draws}
    if sum(presence) == 2:
        assert shown == {presence} and cases.keys() == {PAIRS[presence], "none"} and min(cases.values()) > 150
    else:
        assert shown == {(0, 0, 0)} and cases.keys() == {"none"}


def test_pairs_are_named_by_what_they_leave_out() -> None:
    names = ["text", "image", "audio"]
    for absent in (TEXT, IMAGE, AUDIO):
        assert MATCH_CASES[1 + absent] == "+".join(name for index, name in enumerate(names) if index != absent)


def test_keys_give_their_own_streams() -> None:
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    first = {key: sample_rng(*key).random() for key in keys}
    assert len(set(first.values())) == len(keys)
    assert sample_rng(1, 0, 0).random() == first[1, 0, 0]
    assert order_rng(1, 0).random() not in first.values()

"""What a sample's row draws at random: hidden words, patches and frames, what denoising is given, what is compared.

Every function takes the generator of :func:`sample_rng` and nothing else that changes, so that an epoch's draws
are the same in whatever order and process the samples are made.
"""

import functools

import numpy as np

from src.data.schema import MATCH_CASES, MODALITIES
from src.data.tokenizer import Tokenizer

ORDER, SAMPLE, IMAGE, SOUND = range(4)  # purposes, so that the streams of one epoch never meet


def order_rng(seed: int, epoch: int, source: int = 0) -> np.random.Generator:
    """The generator of an epoch's order: that of one of several sources, or of what is done with all of them."""
    return np.random.default_rng((seed, epoch, ORDER, source))


def sample_rng(seed: int, epoch: int, sample: int, purpose: int = SAMPLE) -> np.random.Generator:
    """The generator of what a sample draws in an epoch: SAMPLE, or how its PICTURE or its SOUND is varied."""
    return np.random.default_rng((seed, epoch, purpose, sample))


def mask_words(
    ids: np.ndarray, words: np.ndarray, slots: int, ratio: float, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hides whole words, about ``ratio`` of the tokens but at least one where there is text.

    Of the hidden tokens 80 % become [MASK], 10 % a random ordinary token, 10 % stay (BERT, section 3.1).

    Args:
        ids: int32 [T].
        words: int32 [T], the word a token belongs to, −1 on special tokens and padding.
        slots: K.

    Returns:
        mlm_ids int32 [T], positions int32 [K], labels int32 [K], weights float32 [K]; unused slots are 0.
    """
    hidden = _hidden_tokens(words, slots, ratio, rng)
    count = len(hidden)
    fate = rng.random(count)
    other = tokenizer.ordinary_ids[rng.integers(len(tokenizer.ordinary_ids), size=count)]
    masked = ids.copy()
    masked[hidden] = np.where(fate < 0.8, tokenizer.mask_id, np.where(fate < 0.9, other, ids[hidden]))
    positions, labels, weights = np.zeros(slots, np.int32), np.zeros(slots, np.int32), np.zeros(slots, np.float32)
    positions[:count], labels[:count], weights[:count] = hidden, ids[hidden], 1
    return masked, positions, labels, weights


def _hidden_tokens(words: np.ndarray, slots: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted positions of the words to hide.

    The word that would pass the budget is taken with the chance of what is left of it: so the expected share is the
    ratio, and long words are hidden as often as short ones.
    """
    count = int(words.max(initial=-1)) + 1
    budget = ratio * np.count_nonzero(words >= 0)
    chosen: list[int] = []
    for word in rng.permutation(count):
        tokens = np.flatnonzero(words == word)[:slots]
        if chosen and rng.random() * len(tokens) >= budget - len(chosen):
            break
        if len(chosen) + len(tokens) <= slots:
            chosen.extend(tokens)
    return np.array(sorted(chosen), np.int64)


def mask_positions(
    length: int, slots: int, ratio: float, span: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Hides about ``ratio`` of ``length`` places, in runs of ``span``, but at least one where there is any.

    Returns:
        positions int32 [K], sorted, and weights float32 [K]; unused slots are 0.
    """
    positions, weights = np.zeros(slots, np.int32), np.zeros(slots, np.float32)
    wanted = min(slots, max(1, round(length * ratio))) if length else 0
    hidden: set[int] = set()
    for start in rng.permutation(length):
        if len(hidden) >= wanted:
            break
        hidden.update(range(start, min(start + span, length, start + wanted - len(hidden))))
    chosen = sorted(hidden)
    positions[: len(chosen)], weights[: len(chosen)] = chosen, 1
    return positions, weights


def sample_given(
    choices: tuple[str, ...], presence: np.ndarray, absent: int, drop: float, rng: np.random.Generator
) -> np.ndarray:
    """What denoising may see, int32 [3]: one of the choices that the sample has, never the modality ``absent``.

    A sample that has none of the choices whole shows what it has of the other two. With the chance ``drop`` nothing is
    shown.
    """
    table = _given_table(choices)
    possible = table[(table <= presence).all(axis=1)]
    choice, dropped = rng.random(2)
    if dropped < drop:
        return np.zeros(3, np.int32)
    if len(possible):
        return possible[int(choice * len(possible))]
    rest = np.array(presence, np.int32)
    rest[absent] = 0
    return rest


@functools.cache
def _given_table(choices: tuple[str, ...]) -> np.ndarray:
    """Presence rows int32 [n, 3] of choices such as "image+audio"."""
    table = np.zeros((len(choices), 3), np.int32)
    for row, choice in zip(table, choices, strict=True):
        for name in choice.split("+"):
            row[MODALITIES.index(name)] = 1
    return table


def sample_match(presence: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """The matching row: column of MATCH_CASES and the modalities that it shows, int32 [3].

    A sample with all three shows them half of the time (each case equally likely), otherwise a random pair of them.
    A pair belongs together half of the time. A lone modality has nothing to match: nothing is shown.
    """
    full, leave_out, case, together = rng.random(4)
    shown = np.array(presence, np.int32)
    present = int(shown.sum())
    if present < 2:
        return len(MATCH_CASES) - 1, np.zeros(3, np.int32)
    if present == 3 and full < 0.5:
        return int(case * len(MATCH_CASES)), shown
    if present == 3:
        shown[int(leave_out * 3)] = 0
    pair = 1 + int(np.argmin(shown))  # MATCH_CASES lists the pairs by the modality that they leave out
    return (pair if together < 0.5 else len(MATCH_CASES) - 1), shown

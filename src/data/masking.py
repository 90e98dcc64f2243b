"""The random part of a sample's row: masked words, patches and frames, what denoising is given, what is matched.

Every function takes the generator of :func:`sample_rng` and nothing else that changes, so that an epoch is the same in
whatever order and process its samples are made.
"""

import functools

import numpy as np

from src.data.schema import MATCH_CASES, MODALITIES
from src.data.tokenizer import Tokenizer

ORDER, SAMPLE, IMAGE, AUDIO, ANSWER = range(5)  # purposes: each has a random stream of its own


def order_rng(seed: int, epoch: int, source: int = 0) -> np.random.Generator:
    """The generator of an epoch's order: of one of several sources, or of all of them together."""
    return np.random.default_rng((seed, epoch, ORDER, source))


def sample_rng(seed: int, epoch: int, sample: int, purpose: int = SAMPLE) -> np.random.Generator:
    """The generator of a sample in an epoch: for its masks and choices (SAMPLE), to augment its IMAGE or AUDIO, or for
    what task=vqa asks of it (ANSWER)."""
    return np.random.default_rng((seed, epoch, purpose, sample))


def mask_words(
    ids: np.ndarray, words: np.ndarray, slots: int, ratio: float, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masks whole words: a share ``ratio`` of them, but at least one if there is text.

    Of the masked tokens 80 % become [MASK], 10 % a random ordinary token, 10 % stay (BERT, section 3.1).

    Args:
        ids: int32 [T].
        words: int32 [T], the word a token belongs to, −1 on special tokens and padding.
        slots: K.

    Returns:
        mlm_ids int32 [T], positions int32 [K], labels int32 [K], weights float32 [K]; unused slots are 0.
    """
    chosen = _masked_tokens(words, slots, ratio, rng)
    count = len(chosen)
    fate = rng.random(count)
    other = tokenizer.ordinary_ids[rng.integers(len(tokenizer.ordinary_ids), size=count)]
    masked = ids.copy()
    masked[chosen] = np.where(fate < 0.8, tokenizer.mask_id, np.where(fate < 0.9, other, ids[chosen]))
    positions, labels, weights = np.zeros(slots, np.int32), np.zeros(slots, np.int32), np.zeros(slots, np.float32)
    positions[:count], labels[:count], weights[:count] = chosen, ids[chosen], 1
    return masked, positions, labels, weights


def _masked_tokens(words: np.ndarray, slots: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted positions of the words to mask: each word with the probability ``ratio``, but at least one.

    The number of words is the ratio of all of them, rounded up or down at random. A word that finds no slots any more
    is left out, and one that is longer than all slots is cut.
    """
    count = int(words.max(initial=-1)) + 1
    wanted = max(1, int(ratio * count + rng.random()))
    chosen: list[int] = []
    for word in rng.permutation(count)[:wanted]:
        tokens = np.flatnonzero(words == word)[:slots]
        if len(chosen) + len(tokens) <= slots:
            chosen.extend(tokens)
    return np.array(sorted(chosen), np.int64)


def mask_positions(
    length: int, slots: int, ratio: float, span: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Masks about ``ratio`` of ``length`` positions in runs of ``span``, but at least one if there is any.

    Returns:
        positions int32 [K], sorted, and weights float32 [K]; unused slots are 0.
    """
    positions, weights = np.zeros(slots, np.int32), np.zeros(slots, np.float32)
    wanted = min(slots, max(1, round(length * ratio))) if length else 0
    masked: set[int] = set()
    for start in rng.permutation(length):
        if len(masked) >= wanted:
            break
        masked.update(range(start, min(start + span, length, start + wanted - len(masked))))
    chosen = sorted(masked)
    positions[: len(chosen)], weights[: len(chosen)] = chosen, 1
    return positions, weights


def sample_given(
    choices: tuple[str, ...], presence: np.ndarray, drop: float, rng: np.random.Generator, whole: bool = False
) -> np.ndarray:
    """What a row is given, int32 [3]: one row of :func:`possible_given`; with probability ``drop`` nothing."""
    possible = possible_given(choices, presence, whole)
    choice, dropped = rng.random(2)
    if dropped < drop or not len(possible):
        return np.zeros(3, np.int32)
    return possible[int(choice * len(possible))]


def possible_given(choices: tuple[str, ...], presence: np.ndarray, whole: bool = False) -> np.ndarray:
    """What a row may be given, int32 [n, 3]: the choices that the sample has.

    If it has none of them, a part will do, unless ``whole``: of ("image+audio",) the image alone, of ("image",)
    nothing. A modality that no choice names is never given: it may not even be encoded.
    """
    table = _given_table(choices)
    possible = table[(table <= presence).all(axis=1)]
    part = table.any(axis=0) & (presence == 1)
    if whole or len(possible) or not part.any():
        return possible
    return np.int32([part])


@functools.cache
def _given_table(choices: tuple[str, ...]) -> np.ndarray:
    """Presence rows int32 [n, 3] of choices such as "image+audio"."""
    table = np.zeros((len(choices), 3), np.int32)
    for row, choice in zip(table, choices, strict=True):
        for name in choice.split("+"):
            row[MODALITIES.index(name)] = 1
    return table


def sample_match(presence: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """The row of the matching loss: its column of MATCH_CASES and the modalities that it holds, int32 [3].

    A sample with all three modalities holds all of them half of the time (each case equally likely), otherwise a random
    pair. A pair belongs together half of the time. A single modality has nothing to match: its row is empty.
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

"""A checkpoint's rows of tokens for a network with another vocabulary (train.init_from).

A token that both vocabularies have keeps its row, wherever that stands. A new one starts from the mean of the rows of
its pieces (Gee et al. 2022): the longest that the checkpoint's vocabulary has, of Chinese text its characters. Where it
has none, the token starts from the mean of all ordinary rows, so that it is neither more nor less likely than others,
and in a table of embeddings with a deviation of its own, so that no two such tokens are equal.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from src.data.tokenizer import SPECIALS, stands_alone
from src.models.layers import TOKEN_STD
from src.report.tables import table

# every tensor with a row for each token; standard deviation of a row that nothing is known of, around the mean
TOKEN_ROWS = {
    "text_encoder.tokens": TOKEN_STD,
    "masked_text_head.bias": 0.0,
    "text_decoder.tokens": TOKEN_STD,
    "text_decoder.output_bias": 0.0,
}
NAMED = re.compile(r"\[[^\[\]]+\]|<[^<>]+>")  # [unused1], <S>: a name in brackets, which no text is spelled with
EXAMPLES = 8  # tokens of each kind that are shown


class NewVocabulary:
    """Which of a checkpoint's rows each token starts from.

    Args:
        ours: tokens of the network, each once.
        theirs: tokens of the checkpoint.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        self.ours, self.theirs = ours, theirs
        place = {token: row for row, token in enumerate(theirs)}
        ordinary = {token: row for token, row in place.items() if token not in SPECIALS}
        self.kept = [token for token in ours if token in place]
        pieces = {token: known_pieces(token, ordinary) for token in ours if token not in place}
        self.composed = [token for token, found in pieces.items() if found]
        self.fresh = [token for token, found in pieces.items() if not found]
        known = set(ours)
        self.dropped = [token for token in theirs if token not in known]
        self.rows = [[place[token]] if token in place else pieces[token] for token in ours]
        self.ordinary = list(ordinary.values())

    def convert(self, array: np.ndarray, deviation: float, seed: int) -> np.ndarray:
        """A row for each of our tokens.

        Args:
            array: float [tokens of the checkpoint, …].
            deviation: standard deviation of a fresh row around the mean.
            seed: of that deviation.

        Returns:
            float32 [tokens of ours, …].
        """
        array = array.astype(np.float32)
        noise = np.random.default_rng(seed).standard_normal((len(self.ours), *array.shape[1:]), np.float32)
        converted = array[self.ordinary].mean(0) + deviation * noise
        for row, sources in enumerate(self.rows):
            if sources:
                converted[row] = array[sources].mean(0)
        return converted

    def __str__(self) -> str:
        kinds = {
            "kept": self.kept,
            "new, from known pieces": self.composed,
            "new, nothing known": self.fresh,
            "dropped": self.dropped,
        }
        rows = [(kind, len(tokens), _examples(tokens)) for kind, tokens in kinds.items()]
        return table(rows, ("tokens", "number", "for example"))


def known_pieces(token: str, rows: Mapping[str, int]) -> list[int]:
    """Rows of the longest pieces that a token is made of, from the left; what is in no piece is passed over.

    A piece inside a word is ``##x``, if there is one, otherwise ``x``. At the beginning of a word it is the other way
    round, as it is where characters are words of their own (Han, punctuation).
    """
    if NAMED.fullmatch(token):
        return []
    inner = token.startswith("##") and len(token) > 2
    word = token[2:] if inner else token
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            row = _row(word[start:end], inner or start > 0, rows)
            if row is not None:
                found.append(row)
                break
        start = end if row is not None else start + 1
    return found


def _row(piece: str, inside: bool, rows: Mapping[str, int]) -> int | None:
    spellings = (piece, f"##{piece}")
    inside = inside and not stands_alone(piece[0])
    return next((rows[spelling] for spelling in (spellings[::-1] if inside else spellings) if spelling in rows), None)


def _examples(tokens: Sequence[str]) -> str:
    shown = islice((token for token in tokens if token.isprintable() and not NAMED.fullmatch(token)), EXAMPLES)
    return " ".join(shown)

"""BERT-compatible WordPiece on a ``vocab.txt``, whole words of Chinese text, and a vocabulary builder."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from src.data.digests import short_digest
from src.data.errors import DataError
from src.data.segmenter import segmenter
from src.files import is_same_file, write_text

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; BERT gives up on longer ones
CACHED_TEXTS = 1 << 16
HAN = (  # the blocks that BERT splits into characters
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
OPENING, CLOSING = "([{'\"-/", ")]}'\"-/,.!?;:%"  # ASCII marks that are written without a space after or before


class Tokenizer:
    """WordPiece over a vocabulary file, one token a line (its line is its id).

    Args:
        path: vocab.txt, holding at least the five special tokens.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError:
            raise DataError(f"{path}: no such vocabulary file (model.text.vocab)") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: the vocabulary is not UTF-8 text") from None
        # not splitlines: BERT's vocabulary has tokens that are themselves line separators
        self.vocab: list[str] = text.rstrip("\n").split("\n")
        self._ids = {token: index for index, token in enumerate(self.vocab)}
        for special in SPECIALS:
            if special not in self._ids:
                raise DataError(f"{path}: the vocabulary has no {special}: add it")
        if "" in self._ids:
            raise DataError(f"{path}: line {self.vocab.index('') + 1} of the vocabulary is empty")
        if len(self._ids) < len(self.vocab):
            twice, _ = Counter(self.vocab).most_common(1)[0]
            raise DataError(f"{path}: {twice!r} occurs twice in the vocabulary: remove one")
        self._encode = functools.lru_cache(CACHED_TEXTS)(self._encode_uncached)
        self._encode_words = functools.lru_cache(CACHED_TEXTS)(self._words_uncached)

    @property
    def size(self) -> int:
        """``V``: tokens in the vocabulary."""
        return len(self.vocab)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def unk_id(self) -> int:
        return self._ids[UNK]

    @property
    def cls_id(self) -> int:
        return self._ids[CLS]

    @property
    def sep_id(self) -> int:
        return self._ids[SEP]

    @property
    def mask_id(self) -> int:
        return self._ids[MASK]

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """int32: every id but the special tokens'."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int32), [self._ids[token] for token in SPECIALS])

    def tokens(self, text: str) -> list[str]:
        """The WordPieces of a text, without [CLS] and [SEP]."""
        return [piece for word in split_words(text) for piece in self._pieces(word)]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters, lower case, that make words of a text [UNK]; a word that is too long is named itself."""
        found: list[str] = []
        for word in split_words(text):
            if self._pieces(word) == [UNK]:
                places = (f"##{char}" if index else char for index, char in enumerate(word))
                lacking = [char for char, token in zip(word, places, strict=True) if token not in self._ids]
                found += lacking or [word]
        return found

    def encode(self, text: str, max_len: int) -> tuple[np.ndarray, np.ndarray]:
        """[CLS] tokens [SEP] [PAD] … and its mask, both int32 [max_len] and read-only.

        A text that leaves no room for its [SEP] is cut and has none: it does not end there, and nothing that learns
        from the row is told so. Generated texts that found no end look the same.
        """
        return self._encode(text, max_len)

    def words(self, text: str, max_len: int) -> np.ndarray:
        """The word that each token of :meth:`encode` belongs to, int32 [max_len]; −1 on special tokens and padding.

        A run of Chinese characters is cut into words by jieba; every other word is what BERT splits at spaces
        and punctuation.
        """
        return self._encode_words(text, max_len)

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first [SEP]: pieces joined, spaces only between words that are written with them."""
        text = ""
        for index in ids:
            token = self.vocab[int(index)]
            if token == SEP:
                break
            if token in (PAD, CLS):
                continue
            if token.startswith("##") and len(token) > 2:
                text += token[2:]
            else:
                text += " " * _spaced(text, token) + token
        return text

    def _encode_uncached(self, text: str, max_len: int) -> tuple[np.ndarray, np.ndarray]:
        ids = [self.cls_id, *(self._ids[token] for token in self.tokens(text)), self.sep_id][:max_len]
        row = np.full(max_len, self.pad_id, np.int32)
        row[: len(ids)] = ids
        mask = (np.arange(max_len) < len(ids)).astype(np.int32)
        row.flags.writeable = mask.flags.writeable = False  # the cache returns the same arrays again
        return row, mask

    def _words_uncached(self, text: str, max_len: int) -> np.ndarray:
        owners: list[int] = []
        for index, word in enumerate(_whole_words(split_words(text))):
            owners += [index] * sum(len(self._pieces(part)) for part in word)
        row = np.full(max_len, -1, np.int32)
        owners = owners[: max_len - 1]
        row[1 : len(owners) + 1] = owners
        row.flags.writeable = False
        return row

    def _pieces(self, word: str) -> list[str]:
        """Greedy longest match from the left; one [UNK] where that fails."""
        if word in self._ids:
            return [word]
        if len(word) > LONGEST_WORD:
            return [UNK]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self._ids:
                    break
            else:
                return [UNK]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces


@functools.lru_cache(CACHED_TEXTS)
def text_id(text: str) -> int:
    """An int32 that is not 0, equal for texts that differ in case, accents, white space or control characters only.

    It does not depend on the vocabulary: texts that are [UNK] to it, or equal up to where they are cut, stay different.
    """
    return short_digest(" ".join(split_words(text)).encode())


def split_words(text: str) -> list[str]:
    """BERT's basic tokens: lower case, no accents, no control characters; Han characters and punctuation alone."""
    text = "".join(_clean(char) for char in text)
    text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    words = []
    for chunk in text.lower().split():
        for alone, run in groupby(chunk, stands_alone):
            chars = list(run)
            words += chars if alone else ["".join(chars)]
    return words


@functools.lru_cache(1 << 14)
def _clean(char: str) -> str:
    """Nothing for a control character, a space for white space, Han characters between spaces."""
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if char in "\0\ufffd" or unicodedata.category(char).startswith("C"):
        return ""
    return f" {char} " if _is_han(char) else char


@functools.lru_cache(1 << 14)
def stands_alone(char: str) -> bool:
    """Han characters and punctuation, where BERT counts every ASCII sign as punctuation."""
    ascii_sign = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return ascii_sign or unicodedata.category(char).startswith("P") or _is_han(char)


def _is_han(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in HAN)


def _whole_words(words: list[str]) -> Iterator[list[str]]:
    """Groups basic tokens into words: Han characters as jieba cuts them, anything else alone."""
    for han, run in groupby(words, lambda word: _is_han(word[0])):
        parts = list(run)
        if not han:
            yield from ([part] for part in parts)
            continue
        start = 0
        for word in segmenter().cut("".join(parts)):
            yield parts[start : start + len(word)]
            start += len(word)


def _spaced(text: str, token: str) -> bool:
    """Whether a space stands between a text and the token that follows it."""
    if not text or any(unicodedata.east_asian_width(char) in "WF" for char in (text[-1], token[0])):
        return False
    return token[0] not in CLOSING and text[-1] not in OPENING


def build_vocab(texts: Iterable[str], size: int = 21128) -> tuple[list[str], list[str]]:
    """A vocabulary that spells every text: special tokens, characters (with ## inside words), frequent words.

    Args:
        texts: the corpus.
        size: at most so many tokens; characters come before words, frequent ones before rare ones.

    Returns:
        The vocabulary, and the tokens of characters that it has no room for.

    Raises:
        DataError: there is no room for the special tokens and one more.
    """
    room = size - len(SPECIALS)
    if room < 1:
        raise DataError(f"--size {size}: there are {len(SPECIALS)} special tokens: make it {len(SPECIALS) + 1} or more")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text))
    single: Counter[str] = Counter()
    for word, count in counts.items():
        for index, char in enumerate(word):
            single[f"##{char}" if index else char] += count
    words = Counter({word: count for word, count in counts.items() if 1 < len(word) <= LONGEST_WORD and count > 1})
    order = [sorted(counter, key=lambda token: (-counter[token], token)) for counter in (single, words)]
    return [*SPECIALS, *order[0], *order[1]][:size], order[0][room:]


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    """Lines of text files, and the training captions of dataset folders, or questions with their answers."""
    for path in paths:
        if path.is_dir():
            from src.data.store import Dataset

            dataset = Dataset(path, "train")
            for record in dataset.read(np.unique(dataset.samples[:, 0])):
                yield from record.captions
                yield from (answer for question in record.questions for answer in question.answers)
            continue
        try:
            with path.open(encoding="utf-8") as file:
                yield from file
        except OSError:
            raise DataError(f"{path}: no such text file") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text") from None


def write_vocab(output: Path, files: Iterable[Path], size: int) -> None:
    """Builds a vocabulary of text files and dataset folders, writes it and prints its size, and what it leaves out.

    Raises:
        DataError: the vocabulary would replace one of the files.
    """
    files = list(files)
    if any(is_same_file(output, file) for file in files):
        raise DataError(f"--output {output} is one of the texts: name another file")
    vocab, left = build_vocab(_texts(files), size)
    write_text(output, "\n".join(vocab) + "\n")
    print(f"{output}: {len(vocab)} tokens")
    if left:
        print(
            f"characters that --size {size} has no room for, and that become [UNK]: {len(left)}, the first is "
            f"{left[0]!r} (## begins those inside of words); --size {size + len(left)} holds them all"
        )

"""WordPiece against BERT's own, decoding, whole words, the builder."""

import hashlib
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from src.data.errors import DataError
from src.data.tokenizer import SPECIALS, Tokenizer, build_vocab, split_words, write_vocab
from tools import build_vocab as command

HAN = "红色背景上左边有一只大猫右边两个苹果天安门广场電腦龍"
PIECES = ["hello", "world", "un", "##aff", "##able", "cafe", "naive", "##ing", "run", "2", "##0", "##2", "##6", "20"]
LETTERS = [prefix + char for char in "abcdefghijklmnopqrtuvwxyz0123456789" for prefix in ("", "##")]  # no s: [UNK]
BERT_VOCAB = Path("config/vocab/bert-base-chinese.txt")
BLOCKS = {  # first and last code point of what captions are made of, and of what they should not be made of
    "han": (0x4E00, 0x9FFF), "han a": (0x3400, 0x4DBF), "han b": (0x20000, 0x2A6DF), "han c-e": (0x2A700, 0x2CEAF),
    "han g": (0x30000, 0x3134A), "compatible han": (0xF900, 0xFAFF), "more of it": (0x2F800, 0x2FA1F),
    "ascii": (0x20, 0x7E), "latin": (0x80, 0x24F), "latin with marks": (0x1E00, 0x1FFF), "marks": (0x300, 0x36F),
    "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x52F), "hebrew": (0x590, 0x5FF), "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F), "thai": (0xE00, 0xE7F), "kana": (0x3040, 0x30FF), "hangul": (0xAC00, 0xD7A3),
    "full width": (0xFF00, 0xFFEF), "han punctuation": (0x3000, 0x303F), "zero width": (0x200B, 0x200F),
    "punctuation": (0x2000, 0x206F), "symbols": (0x2100, 0x2BFF), "emoji": (0x1F300, 0x1FAFF), "digits": (0x30, 0x39),
    "mathematical": (0x1D400, 0x1D7FF), "controls": (0, 0x1F), "more controls": (0x7F, 0x9F),
    "tags": (0xE0000, 0xE01EF), "private": (0xE000, 0xF8FF), "any": (0, 0xD7FF), "any behind": (0xE000, 0x10FFFF),
}  # fmt: skip
MARKS = list("，。！？、；：,.!?-'\"()[]<>=+#@$%…·~^`|")


def vocabulary() -> list[str]:
    return list(dict.fromkeys([*SPECIALS, *HAN, *PIECES, *LETTERS, *MARKS, "😀", "ß", "##ß", "ı"]))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return Tokenizer(path)


def varied_strings(count: int) -> list[str]:
    fixed = [
        "", "   ", "红色背景上，左边有一只大猫。", "Hello, WORLD!", "unaffable running", "Café naïve ÀÉÎÕÜ", "a\u0301b",
        "\x00\x01a\x7fb\ufffdc", "tab\tnew\nline\r", "全角　空格\u2003\u00a0x", "😀😀 👨‍👩‍👧",
        "x" * 101, "x" * 100, "ßtraße",
        "İstanbul ılık", "2026年6月", "don't -- stop…", "ﬁne ½ ①", "안녕하세요", "ไทย", "\u200bzero\u200dwidth\ufeff",
        "龍豈更", "a_b^c`d~e|f", "ΑΣ σς", "\u2028line\u2029para", "مرحبا", "क्षि",
    ]  # fmt: skip
    rng = random.Random(7)
    alphabet = [*HAN, *MARKS, *"abcxyzABCXYZs019", *"éÈñçøŁ", *" \t\n\u3000\u00a0", *"\x00\x08\u200b\ufeff"]
    alphabet += "😀🍎ßıあカ한"
    return fixed + ["".join(rng.choices(alphabet, k=rng.randint(1, 40))) for _ in range(count)]


def test_equal_to_bert(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "vocab.txt"
    vocab = {token: index for index, token in enumerate(vocabulary())}
    try:
        bert = transformers.BertTokenizer(vocab=vocab, do_lower_case=True)
    except TypeError:  # before version 5
        bert = transformers.BertTokenizer(str(path), do_lower_case=True)
    for text in varied_strings(600):
        ids, mask = tokenizer.encode(text, 24)
        wanted = bert(text, max_length=24, padding="max_length", truncation=False)
        assert ids.tolist() == wanted["input_ids"][:24], repr(text)  # BERT would end a text where it is cut
        assert mask.tolist() == wanted["attention_mask"][:24], repr(text)


def block_strings(count: int) -> list[str]:
    """Up to 24 characters each, out of one to four blocks of Unicode."""
    rng = random.Random(11)

    def text() -> str:
        blocks = rng.choices(list(BLOCKS.values()), k=rng.randint(1, 4))
        return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(0, 24)))

    return [text() for _ in range(count)]


def spelling_vocabulary(texts: list[str], path: Path) -> Path:
    """Every character that a text or its lower case or its decomposition holds: no [UNK] hides a difference."""
    chars = {part for text in texts for char in text for part in (char, *char.lower())}
    chars |= {part for char in chars for part in unicodedata.normalize("NFD", char)}
    pieces = [prefix + char for prefix in ("", "##") for char in sorted(chars - set("\n\r"))]
    path.write_text("\n".join([*SPECIALS, *pieces]) + "\n", encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("vocabulary", ["shipped", "spelling"])
def test_ten_thousand_strings_equal_to_bert(vocabulary: str, tmp_path: Path) -> None:
    """BERT's Python tokenizer, which has this Python's tables of Unicode."""
    bert = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    texts = varied_strings(2000) + block_strings(8000)
    assert len(texts) >= 10_000
    path = BERT_VOCAB if vocabulary == "shipped" else spelling_vocabulary(texts, tmp_path / "vocab.txt")
    theirs, ours = bert.BertTokenizerLegacy(str(path), do_lower_case=True), Tokenizer(path)
    assert [text for text in texts if ours.tokens(text) != theirs.tokenize(text)] == []


def test_shipped_vocabulary_is_google_s() -> None:
    assert hashlib.sha256(BERT_VOCAB.read_bytes()).hexdigest().startswith("45bbac6b")
    tokenizer = Tokenizer(BERT_VOCAB)
    assert tokenizer.size == 21128
    ids = tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    assert ids == (0, 100, 101, 102, 103) and tokenizer.vocab[-1] == "##😎"
    assert tokenizer.unk_id not in tokenizer.encode("红色背景上，左边有一只大猫。Hello 2026!", 40)[0]


def test_encode_by_hand(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens("Unaffable 大猫，Café\x00s") == ["un", "##aff", "##able", "大", "猫", "，", "[UNK]"]
    ids, mask = tokenizer.encode("大猫", 6)
    assert [tokenizer.vocab[i] for i in ids] == ["[CLS]", "大", "猫", "[SEP]", "[PAD]", "[PAD]"]
    assert mask.tolist() == [1, 1, 1, 1, 0, 0]
    assert ids.dtype == mask.dtype == np.int32
    long, _ = tokenizer.encode("大" * 50, 8)
    assert long.tolist() == [tokenizer.cls_id, *tokenizer.encode("大", 3)[0][1:2].tolist() * 7], "it does not end here"
    assert tokenizer.encode("大" * 6, 8)[0][-1] == tokenizer.sep_id, "it just fits"


@pytest.mark.parametrize(
    "text",
    ["红色背景上，左边有一只大猫，右边有两个苹果。", "hello world, unaffable!", "2026 cafe", "", "大猫hello大猫"],
)
def test_decode_restores(tokenizer: Tokenizer, text: str) -> None:
    ids, _ = tokenizer.encode(text, 64)
    assert tokenizer.decode(ids) == text


def test_decode_stops_at_sep(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode("大猫", 6)
    assert tokenizer.decode([*ids, *tokenizer.encode("苹果", 6)[0]]) == "大猫"


def test_whole_words(tokenizer: Tokenizer) -> None:
    text = "天安门广场有苹果, unaffable s"
    ids, _ = tokenizer.encode(text, 24)
    words = tokenizer.words(text, 24)
    by_word: dict[int, str] = {}
    for index, word in zip(ids, words, strict=True):
        if word >= 0:
            by_word[int(word)] = by_word.get(int(word), "") + tokenizer.vocab[index].removeprefix("##")
    assert list(by_word.values()) == ["天安门广场", "有", "苹果", ",", "unaffable", "[UNK]"]
    assert (words >= 0).sum() == len(tokenizer.tokens(text))
    cut = tokenizer.words(text, 8)
    assert cut.tolist() == [-1, 0, 0, 0, 0, 0, 1, 2]


def test_jieba_is_quiet() -> None:
    code = "from src.data.segmenter import segmenter; print(list(segmenter().cut('天安门广场')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "" and "天安门广场" in done.stdout


def test_jieba_leaves_no_cache(tmp_path: Path) -> None:
    """It neither reads what another user left in the temporary folder nor fills it."""
    (tmp_path / "jieba.cache").mkdir()
    code = "from src.data.segmenter import segmenter; print(list(segmenter().cut('天安门广场')))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "" and "天安门广场" in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "jieba.cache"]


def test_frequent_characters_come_before_those_of_many_words() -> None:
    """Where --size cuts the characters off, it is by how often they stand in the texts."""
    vocab, left = build_vocab([*["猫"] * 9, "鱼塘", "鱼缸", "鱼"], len(SPECIALS) + 2)
    assert vocab == [*SPECIALS, "猫", "鱼"] and left == ["塘", "缸"]


def test_builder_spells_its_corpus(tmp_path: Path) -> None:
    texts = ["红色背景，一只猫", "Hello world", "hello WORLD42"]
    vocab, left = build_vocab(texts)
    assert not left
    assert vocab[:5] == list(SPECIALS) and len(set(vocab)) == len(vocab)
    assert "hello" in vocab and "world42" not in vocab  # frequent words whole, rare ones in pieces
    path = tmp_path / "vocab.txt"
    path.write_text("\r\n".join(vocab), encoding="utf-8-sig", newline="")  # as an editor on Windows saves it
    tokenizer = Tokenizer(path)
    assert tokenizer.vocab == vocab
    assert all(tokenizer.unk_id not in tokenizer.encode(text, 40)[0] for text in texts)
    assert build_vocab(reversed(texts)) == (vocab, [])
    characters = [token for token in vocab[5:] if len(token.removeprefix("##")) == 1]
    assert build_vocab(texts, 12) == (vocab[:12], characters[7:])
    assert build_vocab(texts, 5 + len(characters)) == ([*SPECIALS, *characters], [])


@pytest.mark.parametrize("size", [-3, 0, 5])
def test_a_vocabulary_has_room_for_more_than_special_tokens(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n", encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=f"^--size {size}: there are 5 special tokens: make it 6 or more$"):
        write_vocab(tmp_path / "vocab.txt", [tmp_path / "a.txt"], size)
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8") == "mine"


def test_characters_that_have_no_room_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n一只狗\n一群\n", encoding="utf-8")
    for size, lines in ((6, 2), (10, 1)):
        write_vocab(tmp_path / "vocab.txt", [tmp_path / "a.txt"], size)
        told = capsys.readouterr().out.splitlines()
        assert told[0] == f"{tmp_path / 'vocab.txt'}: {size} tokens" and len(told) == lines
        parts = "--size 6 has no room for", ": 4, the first is '只'", "--size 10 holds"
        assert size == 10 or all(part in told[1] for part in parts)
    assert Tokenizer(tmp_path / "vocab.txt").unknown_characters("一群猫") == []


def test_a_vocabulary_does_not_replace_a_text_that_it_is_built_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n", encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for output in ("a.txt", "link.txt"):
        with pytest.raises(DataError, match=f"--output .*{output} is one of the texts: name another file"):
            write_vocab(tmp_path / output, iter([tmp_path / "a.txt"]), 100)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "一只猫\n"


def test_builder_command(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n两只狗\n", encoding="utf-8")
    build = [sys.executable, command.__file__, "--output", str(tmp_path / "v" / "vocab.txt")]
    subprocess.run([*build, str(tmp_path / "a.txt")], check=True, capture_output=True)
    assert Tokenizer(tmp_path / "v" / "vocab.txt").tokens("两只猫") == ["两", "只", "猫"]
    failed = subprocess.run([*build, str(tmp_path / "b.txt")], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.strip().endswith("b.txt: no such text file")


def test_a_corpus_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("两只大狗\n", encoding="gbk")
    with pytest.raises(DataError, match=f"^{tmp_path}/b.txt: not UTF-8 text$"):
        write_vocab(tmp_path / "vocab.txt", [tmp_path / "a.txt", tmp_path / "b.txt"], 100)
    assert not (tmp_path / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such vocabulary"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "has no [MASK]"),
        ("\n".join([*SPECIALS, "a", "a"]), "'a'"),
        ("\n".join([*SPECIALS, "", "a"]), "line 6 of the vocabulary is empty"),
        ("\n".join([*SPECIALS, "\udcff"]), "the vocabulary is not UTF-8 text"),
    ],
)
def test_bad_vocabulary(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message.replace("[", r"\[")) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


def test_split_words_of_nothing() -> None:
    assert split_words("\u200b \t") == []

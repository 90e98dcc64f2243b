import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.metrics.captions import bleu, characters, cider_d, has_words, rouge_l, score, words

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ["红", "蓝", "绿", "黄"]
OBJECTS = ["猫", "狗", "苹果", "汽车", "自行车", "太阳", "房子"]
PLACES = ["左边", "右边", "上面", "下面"]


def caption(rng: random.Random) -> list[str]:
    tokens = [rng.choice(COLOURS), "色", "背景", "上", rng.choice(PLACES), "有", rng.choice("一二三")]
    tokens.append(rng.choice(OBJECTS))
    for _ in range(rng.randrange(4)):
        tokens += [rng.choice(PLACES), rng.choice(OBJECTS)]
    return tokens[rng.randrange(3) :]


def corpus(seed: int, images: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Predictions near their references; some are empty, too short for 4-grams, or right."""
    rng = random.Random(seed)
    references = [[caption(rng) for _ in range(rng.randint(1, 5))] for _ in range(images)]
    predictions = []
    for group in references:
        tokens = list(rng.choice(group))
        if rng.random() < 0.7:
            tokens[rng.randrange(len(tokens))] = rng.choice(OBJECTS)
        predictions.append(tokens[: rng.choice([0, 1, 3, 20, 20, 20, 20])] * rng.choice([1, 1, 1, 2]))
    return predictions, references


@pytest.mark.parametrize("images", [1, 2, 60])
@pytest.mark.parametrize("seed", [1, 2])
def test_equal_to_the_reference_implementation(seed, images):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    predictions, references = corpus(seed, images)
    found = {row: [" ".join(tokens)] for row, tokens in enumerate(predictions)}
    given = {row: [" ".join(tokens) for tokens in group] for row, group in enumerate(references)}
    np.testing.assert_allclose(
        bleu(predictions, references), Bleu(4).compute_score(given, found, verbose=0)[0], atol=1e-9
    )
    assert rouge_l(predictions, references) == pytest.approx(Rouge().compute_score(given, found)[0], abs=1e-9)
    assert cider_d(predictions, references) == pytest.approx(Cider().compute_score(given, found)[0], abs=1e-9)


@pytest.mark.parametrize("lengths", [(6, 4), (4, 6)])
def test_of_two_references_as_close_the_shorter_one_counts(lengths: tuple[int, int]) -> None:
    """In whatever order they stand, as pycocoevalcap has it: five words are then not too short."""
    values = bleu([list("abcde")], [[list("abcdef")[:length] for length in lengths]])
    assert values[0] == pytest.approx(1.0)


def test_metrics_worked_out_by_hand():
    prediction, reference = list("abcd"), list("acdef")
    # Three of four words, one of three pairs (c d), no triple; one word too short.
    brevity = np.exp(1 - 5 / 4)
    values = bleu([prediction], [[reference]])
    np.testing.assert_allclose(values[:2], [brevity * 3 / 4, brevity * np.sqrt(3 / 4 / 3)], rtol=1e-6)
    assert values[2:] == [0.0, 0.0]
    precision, recall = 3 / 4, 3 / 5  # the common subsequence is a c d
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([prediction], [[reference]]) == pytest.approx(expected)


def test_a_right_caption_has_the_best_score():
    texts = ["红色背景上，左边有一只大猫。", "蓝色背景上有三个苹果", "绿色背景上，右边有两辆车", "黄色背景有太阳"]
    perfect = score(texts, [[text] for text in texts])
    for metrics in perfect.values():
        assert list(metrics) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"]
        assert metrics["bleu4"] == pytest.approx(1, abs=1e-6)
        assert metrics["rouge_l"] == pytest.approx(1)
        assert metrics["cider_d"] == pytest.approx(10)
    shuffled = score(texts[1:] + texts[:1], [[text] for text in texts])
    for level, metrics in shuffled.items():
        assert all(metrics[name] < perfect[level][name] - 0.1 for name in metrics)


def test_bleu_is_zero_where_nothing_is_right():
    assert bleu([list("ab")], [[list("cd")]]) == [0.0] * 4
    assert bleu([[]], [[list("cd")]]) == [0.0] * 4


def test_tokens_leave_out_punctuation_and_case():
    assert characters("一只 Cat，「好」!") == list("一只cat好")
    assert words("红色背景上，左边有两个苹果。") == ["红色", "背景", "上", "左边", "有", "两个", "苹果"]
    assert words("。，") == []
    assert characters("3＋4=7！") == list("3＋4=7"), "signs are no punctuation"


def test_jieba_says_nothing():
    code = "from src.metrics.captions import words; words('安静')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_a_thousand_captions_take_seconds_at_most():
    rng = random.Random(7)
    predictions = ["".join(caption(rng)) for _ in range(1000)]
    references = [["".join(caption(rng)) for _ in range(2)] for _ in range(1000)]
    words("词典")  # the dictionary is loaded once
    start = time.process_time()
    score(predictions, references)
    assert time.process_time() - start < 4  # about one second; slack for a busy machine


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no captions to score"),
        (["猫"], [["猫"], ["狗"]], "1 captions but references of 2 images"),
        (["猫", "狗"], [["猫"], []], "image 1 has no reference caption"),
        (["猫", "狗"], [["猫"], ["狗", "。"]], "image 1: reference caption '。' has no words"),
    ],
)
def test_unusable_input_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, references)


@pytest.mark.parametrize(
    ("text", "found"), [("。", False), ("？！ …", False), ("", False), ("。猫", True), ("3", True)]
)
def test_punctuation_alone_is_no_reference(text: str, found: bool) -> None:
    assert has_words(text) == found == bool(characters(text)) == bool(words(text))

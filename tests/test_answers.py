"""When answers are the same, what each is worth, and the accuracy of VQA v2 against its definition."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from src.data.answers import AnswerList, frequent_answers, normalise, scores, worth
from src.data.errors import DataError
from src.demo.questions import answers as demo_answers
from src.demo.questions import vocabulary as demo_vocabulary
from src.files import ROOT
from src.metrics.vqa import VqaAccuracy


def accuracy_by_definition(prediction: str, people: list[str]) -> float:
    """min(n / 3, 1) over every subset that leaves one person out, averaged."""
    found = []
    for left_out in range(len(people)):
        others = people[:left_out] + people[left_out + 1 :]
        found.append(min(sum(other == prediction for other in others) / 3, 1))
    return sum(found) / len(found)


@pytest.mark.parametrize("same", range(11))
def test_an_answer_is_worth_what_the_definition_says(same: int) -> None:
    people = ["cat"] * same + ["dog", "fish"] * 5
    assert worth(same, 10) == pytest.approx(accuracy_by_definition("cat", people[:10]), abs=1e-12)


def test_accuracy_of_random_people_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    score, total = VqaAccuracy(), 0.0
    for _ in range(200):
        people = rng.choice(["red", "blue", "green", "2"], 10, p=[0.5, 0.3, 0.1, 0.1]).tolist()
        prediction = str(rng.choice(["red", "blue", "2", "yellow"]))
        total += (expected := accuracy_by_definition(prediction, people))
        assert score.add("colour", prediction, people) == pytest.approx(expected, abs=1e-12)
    assert score.result()["accuracy"] == pytest.approx(total / 200)


def test_of_one_person_the_answer_is_right_or_wrong() -> None:
    assert scores(["一只"]) == {"1": 1.0}
    assert worth(1, 1) == 1 and worth(0, 1) == 0 and worth(2, 2) == 1


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Dog.", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("Two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("it's", "it's"),
        ("don’t know", "don't know"),
        ("it‘s", "it's"),
        ("well", "well"),
        ("its", "its"),
        ("12:30", "12:30"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("black/white", "black white"),
        ("yes, it is", "yes it is"),
        ("well-known", "well known"),
        ("on - off-white", "on offwhite"),  # a mark beside a space parts nothing, and goes everywhere in that answer
        ("  new\tyork\n", "new york"),
        ("红色。", "红色"),
        ("红 色", "红色"),
        ("「猫」、狗", "猫 狗".replace(" ", "")),
        ("ＡＢＣ", "abc"),
        ("两只", "2"),
        ("2 只", "2"),
        ("２", "2"),
        ("三", "3"),
        ("十", "10"),
        ("十二个", "12"),
        ("二十", "20"),
        ("三十五辆", "35"),
        ("一双", "一双"),  # that is two
        ("一百", "一百"),
        ("三角", "三角"),
        ("张", "张"),
        ("", ""),
        ("?", ""),
    ],
)
def test_answers_are_compared_in_a_normal_form(answer: str, form: str) -> None:
    assert normalise(answer) == form
    assert normalise(form) == form, "the form of a form is itself"


def test_accuracy_by_type_beside_the_best_constant_answer() -> None:
    score = VqaAccuracy()
    asked = [
        ("count", "two", ["2"] * 10),
        ("count", "1", ["2"] * 3 + ["1"] * 2 + ["3"] * 5),
        ("colour", "red", ["Red.", "red", "blue"] + ["green"] * 7),
    ]
    for kind, prediction, people in asked:
        score.add(kind, prediction, people)
    found = score.result()
    assert found["types"]["count"] == {
        "accuracy": pytest.approx((1 + 0.6) / 2),
        "majority": pytest.approx((1 + 0.9) / 2),
        "answer": "2",
        "questions": 2,
    }
    assert found["types"]["colour"]["answer"] == "green" and found["types"]["colour"]["accuracy"] == pytest.approx(0.6)
    assert found["accuracy"] == pytest.approx((1 + 0.6 + 0.6) / 3)
    assert found["majority"] == pytest.approx((1 + 0.9 + 1) / 3) and found["questions"] == 3
    assert VqaAccuracy().result() == {}
    for answer in ("red", "blue"):
        score.add("background", "green", [answer] * 10)
    assert score.result()["types"]["background"]["answer"] == "blue", "of equally good answers the first by alphabet"


def test_frequent_answers_come_first() -> None:
    questions = [["cat"] * 10, ["Cat", *["dog"] * 9], ["two"] * 10, ["2"] * 10, ["bird"], ["!"]]
    assert frequent_answers(questions, 9) == ["2", "cat", "bird", "dog"]
    assert frequent_answers(questions, 2) == ["2", "cat"]


def test_targets_are_classes_and_what_they_are_worth(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("\ufeffyes\r\ntwo\r\n红色\r\n", encoding="utf-8", newline="")  # as an editor on Windows saves it
    found = AnswerList(path)
    assert len(found) == 3 and found.answers[1] == "two"
    classes, values = found.targets(["Yes"] * 6 + ["2"] * 2 + ["maybe"] * 2, 4)
    assert classes.tolist() == [0, 1, 0, 0] and classes.dtype == np.int32
    assert values.tolist() == pytest.approx([1, 0.6, 0, 0]) and values.dtype == np.float32
    assert found.targets(["yes", "2", "红色"] * 3, 1)[1].tolist() == pytest.approx([worth(3, 9)])
    assert not found.targets(["no"], 4)[1].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"yes\nno\nYes.\n", "line 3 is the same answer as line 1: remove it"),
        (b"yes\n\nno\n", "line 2 holds no answer: remove it"),
        (b"", "holds no answer"),
        (b"\xff\xfe", "the answers are not UTF-8 text"),
        (None, "no such file of answers .model.answers.; make one by python tools/build_answers.py"),
    ],
)
def test_a_bad_list_is_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "answers.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        AnswerList(tmp_path / "answers.txt")
    assert "\n" not in str(caught.value) and "answers.txt" in str(caught.value)


def test_the_shipped_lists_are_those_of_the_demos_world() -> None:
    found = AnswerList(ROOT / "config" / "vqa" / "demo_answers.txt")
    assert found.answers == demo_answers()
    assert all(normalise(one) != normalise(other) for one, other in itertools.combinations(found.answers, 2))
    folder = ROOT / "config" / "vocab"
    tokens = (folder / "demo_vqa.txt").read_text(encoding="utf-8").splitlines()
    captions = (folder / "demo.txt").read_text(encoding="utf-8").splitlines()
    assert tokens == demo_vocabulary() and tokens[: len(captions)] == captions

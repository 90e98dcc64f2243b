"""Questions about the demo's scenes: right answers, held-out pairs, all in the vocabulary, prepared as a dataset."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpora import prepare, read

from src.data.answers import AnswerList
from src.data.errors import DataError
from src.data.tokenizer import Tokenizer
from src.demo.questions import KINDS, ask
from src.demo.world import Facts, Item, Scene, get_world, pair_split, sample_scenes
from src.files import ROOT

SCENE = Scene(Facts("蓝", (Item("左", 2, "大", "猫"), Item("右", 1, "", "苹果"))), 0, 5)
RIGHT = {
    "左边有几只猫？": "两只",
    "右边有几个苹果？": "一个",
    "左边是什么？": "猫",
    "右边是什么？": "苹果",
    "背景是什么颜色？": "蓝色",
    "猫在哪边？": "左边",
    "苹果在哪边？": "右边",
}


def test_every_question_of_a_scene_has_its_answer() -> None:
    found: dict[str, str] = {}
    for seed in range(40):
        asked = ask(Scene(SCENE.facts, 0, seed), 4)
        assert asked == ask(Scene(SCENE.facts, 1, seed), 4), "they follow from the scene"
        assert sorted(question.kind for _, question in asked) == sorted(KINDS)
        for text, question in asked:
            (answer,) = question.answers
            assert found.setdefault(text, answer) == answer
    assert found == RIGHT


@pytest.mark.parametrize("world", ["demo", "demo_full"])
def test_questions_and_answers_can_be_read_and_given(world: str) -> None:
    answers = AnswerList(ROOT / "config" / "vqa" / "demo_answers.txt")
    tokenizer = Tokenizer(ROOT / "config" / "vocab" / "demo_vqa.txt")
    kinds: Counter[str] = Counter()
    for scene in sample_scenes(world, "test", 300, 1):
        names = [item.name for item in scene.facts.items]
        assert all(pair_split(one, other) == "test" for one, other in zip(names, names[1:], strict=False))
        for text, question in ask(scene, 2):
            kinds[question.kind] += 1
            assert answers.targets(question.answers, 1)[1].tolist() == [1]
            spelt = [*tokenizer.tokens(text), *tokenizer.tokens(question.answers[0])]
            assert "[UNK]" not in spelt and len(tokenizer.tokens(text)) + 2 <= 16
    assert kinds.total() == 600 and min(kinds.values()) > 110, "no kind is rare"
    assert get_world(world).names


def test_a_dataset_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ("--scenes", 5, "--dev", 2, "--test", 3)
    prepare("demo", "--output", tmp_path / "q", *counts, "--questions", 3, "--no-speech")
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert ["train", "5", "0", "15"] in rows, "five scenes, no speech, fifteen silent texts"
    prepare("demo", "--output", tmp_path / "captions", *counts, "--no-speech")
    for split, count in (("train", 5), ("dev", 2), ("test", 3)):
        asked, told = read(tmp_path / "q", split), read(tmp_path / "captions", split)
        assert len(asked) == count and asked.keys() == told.keys()
        for key, scene in zip(asked, sample_scenes("demo", split, count, 1), strict=True):
            record = asked[key]
            assert list(zip(record.captions, record.questions, strict=True)) == ask(scene, 3)
            assert record.image == told[key].image and not told[key].questions
    with pytest.raises(DataError, match="--questions 5: give 1 to 4, or leave it out for captions"):
        prepare("demo", "--output", tmp_path / "none", "--questions", 5)


def test_every_kind_is_as_likely() -> None:
    scenes = [Scene(SCENE.facts, 0, seed) for seed in range(400)]
    first = Counter(ask(scene, 1)[0][1].kind for scene in scenes)
    assert first.keys() == set(KINDS) and np.ptp(list(first.values())) < 60

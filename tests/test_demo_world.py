"""The demo's world: what its scenes, captions, images and audio clips promise."""

import itertools
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli import Arguments, CommandParser
from src.config import AudioEncoderConfig
from src.data.errors import DataError
from src.data.store import Dataset
from src.demo import prepare as demo
from src.demo import speech
from src.demo import world as world_module
from src.demo.captions import SPECIAL_TOKENS, TEMPLATES, facts_right, parse, vocabulary, write_caption
from src.demo.render import SIDE, boxes, render, render_png
from src.demo.world import (
    BIG,
    COLOURS,
    LAYOUTS,
    Facts,
    Item,
    Scene,
    get_world,
    held_out_pairs,
    objects,
    pairs,
    sample_scenes,
)

ROOT = Path(__file__).resolve().parents[1]
WORLDS = ("demo", "demo_full")
CAT_AND_APPLES = Facts("红", (Item("左", 1, "", "猫"), Item("右", 2, "大", "苹果")))
needs_speech = pytest.mark.skipif(not speech.available(), reason="espeakng-loader is not installed")


def neighbours(scene: Scene) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in itertools.pairwise(scene.facts.items)]


def stand_together(scene: Scene) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in itertools.combinations([item.name for item in scene.facts.items], 2)}


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_have_their_size(world: str) -> None:
    assert len(objects(world)) == {"demo": 28, "demo_full": 86}[world]
    assert len(get_world(world).colours) == {"demo": 6, "demo_full": 8}[world]
    total = len(objects(world)) * (len(objects(world)) - 1) // 2
    held_out = held_out_pairs(world)
    assert 0.10 < sum(map(len, held_out.values())) / total < 0.14
    assert min(map(len, held_out.values())) > 0.05 * total
    assert set(held_out["dev"]).isdisjoint(held_out["test"])
    assert len(pairs(world, "train")) + len(held_out["dev"]) + len(held_out["test"]) == total


def test_pair_is_held_out_in_either_world_or_in_neither() -> None:
    for split, quick in held_out_pairs("demo").items():
        assert {frozenset(pair) for pair in quick} <= {frozenset(pair) for pair in held_out_pairs("demo_full")[split]}


@pytest.mark.parametrize("world", WORLDS)
def test_no_held_out_pair_in_training(world: str) -> None:
    held_out = {frozenset(pair) for pair in itertools.chain(*held_out_pairs(world).values())}
    scenes = sample_scenes(world, "train", 2000, seed=3)
    assert not set.union(*map(stand_together, scenes)) & held_out
    seen = {item.name for scene in scenes for item in scene.facts.items}
    assert seen == {thing.name for thing in objects(world)}
    assert {tuple(item.place for item in scene.facts.items) for scene in scenes} == {
        LAYOUTS[layout] for layout in get_world(world).layouts
    }


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("split", "other", "count"), [("dev", "test", 500), ("test", "dev", 1000)])
def test_evaluation_scenes_hold_pairs_of_their_split(world: str, split: str, other: str, count: int) -> None:
    scenes = sample_scenes(world, split, count, seed=1)
    held_out = {name: {frozenset(pair) for pair in some} for name, some in held_out_pairs(world).items()}
    for scene in scenes:
        assert len(scene.facts.items) >= 2
        assert all(frozenset(pair) in held_out[split] for pair in neighbours(scene))
        assert not stand_together(scene) & held_out[other]
    assert len({scene.facts for scene in scenes}) == len({write_caption(scene) for scene in scenes}) == count


def test_scenes_repeat_from_their_seed() -> None:
    assert sample_scenes("demo", "train", 50, 7) == sample_scenes("demo", "train", 80, 7)[:50]
    assert sample_scenes("demo", "train", 50, 7) != sample_scenes("demo", "train", 50, 8)


def test_unknown_world_is_an_error() -> None:
    with pytest.raises(DataError, match="world 'toys' is unknown: use demo or demo_full"):
        sample_scenes("toys", "train", 1, 1)


def test_more_scenes_than_the_world_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_sample_scene", lambda *_: Scene(CAT_AND_APPLES, 0, 0))
    assert len(sample_scenes("demo", "train", 3, 1)) == 3  # training may repeat itself
    with pytest.raises(DataError, match="too few held-out scenes for 2 of dev"):
        sample_scenes("demo", "dev", 2, 1)


@pytest.mark.parametrize("world", WORLDS)
def test_captions_state_all_facts(world: str) -> None:
    for scene in sample_scenes(world, "train", 600, seed=2):
        for template in range(get_world(world).templates):
            caption = write_caption(replace(scene, template=template))
            assert parse(caption, world) == parse(caption) == scene.facts
        assert len(write_caption(scene)) <= (22 if world == "demo" else 30)


def test_captions_read_well() -> None:
    captions = [write_caption(Scene(CAT_AND_APPLES, template, 0)) for template in range(len(TEMPLATES))]
    assert captions[:3] == [
        "红底，左边一只猫，右边两个大苹果",
        "一只猫在左边，两个大苹果在右边，红底",
        "左边一只猫，右边两个大苹果，红底",
    ]
    assert captions[3:] == [
        "红色背景上，左边有一只猫，右边有两个大苹果",
        "背景是红色，一只猫在左边，两个大苹果在右边",
        "左边是一只猫，右边是两个大苹果，背景是红色",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "红底",
        "左边一只猫，右边两个苹果",  # no background
        "红底，左边一只猫，右边两个",
        "红底，左边一只猫，右边二个苹果",
        "红底，左边一只猫，上面两个苹果",
        "红底，左边一只恐龙，右边两个苹果",
        "红底，左边一只猫，右边两个苹果和香蕉",
    ],
)
def test_other_text_has_no_facts(text: str) -> None:
    assert parse(text) is None


def test_parse_keeps_to_its_world_and_forgives_punctuation() -> None:
    assert parse("紫底 中间 一只熊猫。") == Facts("紫", (Item("中", 1, "", "熊猫"),))
    assert parse("紫底，中间一只熊猫", "demo") is None
    assert parse("红底,左边一个猫,右边两只大苹果") == CAT_AND_APPLES  # a wrong measure word is not a wrong fact


def test_facts_right_tells_the_kinds_apart() -> None:
    cat, apples = CAT_AND_APPLES.items
    every = dict.fromkeys(("objects", "counts", "sizes", "places", "colours"), True)
    changed = {
        "objects": (replace(cat, name="狗"), apples),
        "counts": (replace(cat, count=2), apples),
        "sizes": (replace(cat, size="小"), apples),
        "places": (replace(apples, place="左", count=1, size=""), replace(cat, place="右", count=2, size="大")),
    }
    assert facts_right(CAT_AND_APPLES, CAT_AND_APPLES) == every
    for kind, items in changed.items():
        assert facts_right(Facts("红", items), CAT_AND_APPLES) == every | {kind: False}
    assert facts_right(replace(CAT_AND_APPLES, colour="蓝"), CAT_AND_APPLES) == every | {"colours": False}
    assert facts_right(None, CAT_AND_APPLES) == dict.fromkeys(every, False)
    others = (replace(cat, name="狗", place="上"), replace(apples, name="梨", place="下"))
    assert not facts_right(Facts("红", others), CAT_AND_APPLES)["places"], "also where no object is shared"
    above = (replace(cat, place="上"), replace(apples, place="下"))
    assert not facts_right(Facts("红", above), CAT_AND_APPLES)["places"]


def test_all_kinds_right_exactly_for_equal_facts() -> None:
    facts = [scene.facts for scene in sample_scenes("demo", "test", 150, seed=5)]
    for pred, ref in itertools.product(facts, facts):
        assert all(facts_right(pred, ref).values()) == (pred == ref)


def test_vocabulary_is_the_committed_one() -> None:
    tokens = (ROOT / "config" / "vocab" / "demo.txt").read_text(encoding="utf-8").splitlines()
    assert tokens == vocabulary()
    assert tuple(tokens[:5]) == SPECIAL_TOKENS and len(set(tokens)) == len(tokens)
    scenes = sample_scenes("demo_full", "train", 3000, seed=9)
    said = {char for scene in scenes for char in write_caption(scene)}
    assert said == set(tokens[5:])  # nothing missing, nothing that is never said


@pytest.mark.parametrize("world", WORLDS)
def test_boxes_do_not_overlap(world: str) -> None:
    for scene in sample_scenes(world, "train", 300, seed=4):
        places = tuple(item.place for item in scene.facts.items)
        covered = np.zeros((192, 192), int)  # thirds of a pixel: boxes of a row are 21⅓ wide
        for item in scene.facts.items:
            for box in boxes(places, item):
                left, top, width, height = (round(3 * side) for side in box)
                covered[top : top + height, left : left + width] += 1
        assert covered.max() == 1


def test_images_repeat_and_vary() -> None:
    scene = Scene(CAT_AND_APPLES, 0, seed=11)
    image = render(scene)
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, render(replace(scene, template=2)))
    assert (image != render(replace(scene, seed=12))).any()


def covered_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs from the ground."""
    rows, columns = np.nonzero(np.abs(image.astype(int) - image[0, 0]).sum(axis=2) > 30)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("seed", range(4))
def test_sizes_are_seen(seed: int) -> None:
    sides = {}
    for size in ("小", "", "大"):
        left, top, right, bottom = covered_box(render(Scene(Facts("白", (Item("中", 1, size, "猫"),)), 0, seed)))
        sides[size] = max(right - left, bottom - top)
    assert 14 <= sides["小"] < sides[""] - 5 and sides[""] < sides["大"] - 8


def test_places_are_seen() -> None:
    halves = {"左": np.s_[:, :32], "右": np.s_[:, 32:], "上": np.s_[:32], "下": np.s_[32:]}
    for places in (("左", "右"), ("上", "下")):
        for seed in range(5):
            items = (Item(places[0], 1, "", "苹果"), Item(places[1], 2, BIG, "猫"))
            image = render(Scene(Facts("黑", items), 0, seed)).astype(int)
            lit = np.abs(image - image[0, 0] if places[0] == "左" else image - image[-1, 0]).sum(axis=2) > 40
            first, second = (lit[halves[place]].sum() for place in places)
            assert 150 < first < second


def test_colours_stay_apart() -> None:
    for first, second in itertools.combinations(COLOURS.values(), 2):
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 2 * 12  # of the jitter


def test_png_is_the_image(tmp_path: Path) -> None:
    scene = sample_scenes("demo", "train", 1, 1)[0]
    (tmp_path / "scene.png").write_bytes(render_png(scene))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "scene.png")), render(scene))


def failing_worker(failures: int, error: Exception):
    calls = []

    def worker(captions, audio, voice):
        calls.append(voice.name)
        if len(calls) <= failures:
            raise error
        return [np.zeros((5, audio.mels), np.uint8)] * len(captions)

    return worker, calls


def test_failed_chunk_gets_another_voice_then_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = subprocess.CalledProcessError(1, "worker", stderr=b"Traceback\nRuntimeError: no phoneme\n")
    worker, calls = failing_worker(1, crash)
    monkeypatch.setattr(speech, "run_worker", worker)
    (chunk,) = speech.speak(["一", "三"], AudioEncoderConfig(), (1, 0))
    assert len(set(calls)) == 2 and all(clip is not None for clip in chunk.audio)
    assert "no phoneme" in chunk.trouble

    worker, calls = failing_worker(2, subprocess.TimeoutExpired("worker", 1))
    monkeypatch.setattr(speech, "run_worker", worker)
    (chunk,) = speech.speak(["一", "三"], AudioEncoderConfig(), (1, 0))
    assert len(calls) == 2 and chunk.audio == [None, None] and "more than" in chunk.trouble


@needs_speech
def test_every_voice_repeats_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "CHUNK", 2)
    audio = AudioEncoderConfig()
    captions = ["红底，左边一只猫，右边两个大苹果", "紫底，中间一只熊猫"] * len(speech.VOICES)
    first, again = ([clip for chunk in speech.speak(captions, audio, (1, 0)) for clip in chunk.audio] for _ in range(2))
    assert len(first) == len(captions)
    for clip, repeated in zip(first, again, strict=True):
        assert clip.dtype == np.uint8 and clip.shape[1] == audio.mels
        np.testing.assert_array_equal(clip, repeated)
    for longer, shorter in zip(first[::2], first[1::2], strict=True):
        assert 0.8 < len(shorter) * audio.hop_ms / 1000 < len(longer) * audio.hop_ms / 1000 < 3.5
    assert len({clip.tobytes() for clip in first}) == len(first)  # no two voices alike


def arguments(folder: Path, *more: str) -> Arguments:
    parser = CommandParser()
    demo.add_arguments(parser)
    sizes = ["--scenes", "6", "--dev", "3", "--test", "4"]
    return parser.parse_intermixed_args(["--output", str(folder), *sizes, *more])


@needs_speech
def test_prepared_folder_holds_scenes_captions_and_audio(tmp_path: Path) -> None:
    demo.run(arguments(tmp_path / "data", "--seed", "5"))
    for split, count in (("train", 6), ("dev", 3), ("test", 4)):
        dataset = Dataset(tmp_path / "data", split)
        assert dataset.samples.shape == (count, 3)
        scenes = sample_scenes("demo", split, count, 5)
        for scene, record in zip(scenes, dataset.read(range(count)), strict=True):
            assert record.captions == (write_caption(scene),) and record.image == render_png(scene)
            assert record.audio[0].shape[0] > 40
        assert dataset.info["about"]["world"] == "demo" and dataset.info["about"]["speech"]


def test_without_synthesiser_there_is_a_hint_and_no_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(speech, "available", lambda: False)
    demo.run(arguments(tmp_path / "data"))
    assert "pip install espeakng-loader" in capsys.readouterr().out
    (record,) = Dataset(tmp_path / "data", "dev").read([0])
    assert record.audio == (None,)


def test_settings_say_how_audio_is_stored(tmp_path: Path) -> None:
    config = Path(__file__).parents[1] / "config" / "model" / "demo_full.yaml"
    words = ("--no-speech", "--config", str(config), "model.audio.mels=48")
    demo.run(arguments(tmp_path / "data", *words))
    stored = Dataset(tmp_path / "data", "dev").info["audio"]
    assert (stored["mels"], stored["max_frames"]) == (48, 208)


@pytest.mark.parametrize(
    ("failures", "rows", "told"),
    [
        (0, [["train", "6", "6", "0", "2", "0.39"], ["dev", "3", "3", "0", "1", "0.39"]], ""),
        (1, [["train", "6", "6", "0", "2", "0.39"], ["dev", "3", "3", "0", "1", "0.39"]], "spoken again"),
        (2, [["train", "6", "0", "6", "0", "0.00"], ["dev", "3", "3", "0", "1", "0.39"]], "6 captions stay silent"),
    ],
)
def test_what_was_spoken_is_counted_and_what_failed_is_told(
    failures: int,
    rows: list[list[str]],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A third of the clips of each split has the full length; train is spoken first."""
    silent, _ = failing_worker(failures, subprocess.TimeoutExpired("worker", 1))

    def worker(captions, audio, voice):
        clips = silent(captions, audio, voice)
        full = len(clips) // 3
        return [np.zeros((audio.max_frames, audio.mels), np.uint8)] * full + clips[full:]

    monkeypatch.setattr(speech, "available", lambda: True)
    monkeypatch.setattr(speech, "run_worker", worker)
    demo.run(arguments(tmp_path / "data", "model.audio.max_frames=48", "model.audio.hop_ms=20"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("train", "dev"))] == rows
    trouble = [line for line in lines if line.startswith("speech: ")]
    assert len(trouble) == bool(told) and all(line.endswith(f" s; {told}") for line in trouble)
    stored = Dataset(tmp_path / "data", "train")
    assert sum(record.audio[0] is not None for record in stored.read(range(6))) == int(rows[0][2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scenes", "0"), "--scenes 0: give at least one scene"),
        (("--dev", "0"), "--dev 0: give at least one scene"),
        (("--test", "-1"), "--test -1: give at least one scene"),
        (("--seed", "-1"), "--seed -1: give 0 or more"),
        (("model.audio.input=feature", "model.audio.feature_dim=8"), "model.audio.input=feature, but the demo makes"),
    ],
)
def test_what_no_demo_can_be_made_of_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        demo.run(arguments(tmp_path / "data", *words))
    assert not (tmp_path / "data").exists()

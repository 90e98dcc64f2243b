"""Zero-shot classes: metrics against counting by hand, labelled files in every layout, eval.py and infer.py on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import eval as evaluate
import infer
from src.config import Config, ConfigError
from src.data.errors import DataError
from src.files import ROOT
from src.inference import load
from src.inference.labelled import read_labelled, read_names, read_templates
from src.inference.library import Model
from src.metrics import classes
from src.training.trainer import Trainer
from tests.commands import Run, command, make_home, write_wave
from tests.conftest import png
from tests.oracles import run_mode

TEMPLATES = ["{}", "一只{}", "红色背景上有{}"]
NAMES = {"cat": "猫", "dog": "狗", "fish": "鱼", "apple": "苹果", "big": "大", "small": "小"}
SIZES = {"cat": 5, "dog": 3, "fish": 4, "apple": 2, "big": 1, "small": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """classes/: a folder for each class with images and, of all but the last, audio of the same name."""
    folder, rng = make_home(tmp_path_factory.mktemp("classes")), np.random.default_rng(4)
    for label, count in SIZES.items():
        place = folder / "classes" / label
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{number}.png").write_bytes(png(rng.integers(0, 256, (9, 8, 3), np.uint8)))
            if number < count - 1:
                write_wave(place / f"{number}.wav", rng)
    (folder / "classes" / "dog" / "broken.jpg").write_bytes(b"no image")
    (folder / "classes" / "notes").mkdir()
    (folder / "templates.txt").write_text("\n\n".join(TEMPLATES) + "\n", encoding="utf-8")
    rows = "".join(f"{label},{name}\n" for label, name in NAMES.items())
    (folder / "names.csv").write_text(f"\ufefflabel,name\n{rows}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[Model]:
    with run_mode("pynative"):
        yield load(home / "run", ["runtime.mode=pynative"])


SETTINGS = ("eval.zero_shot.templates=templates.txt", "eval.zero_shot.names=names.csv", "runtime.mode=pynative")


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(evaluate.main, home, monkeypatch, capsys) as call:
        yield lambda *arguments: call("--checkpoint", "run", "task=zero_shot", *arguments, *SETTINGS)


# metrics


def test_ranks_by_counting() -> None:
    rng = np.random.default_rng(0)
    scores, truths = rng.integers(0, 4, (50, 6)).astype(float), rng.integers(0, 6, 50)  # many are equal
    order = [sorted(range(6), key=lambda at, row=row: (-row[at], at)) for row in scores]
    expected = [1 + places.index(truth) for places, truth in zip(order, truths, strict=True)]
    np.testing.assert_array_equal(classes.ranks(scores, truths), expected)
    np.testing.assert_array_equal(classes.ranks(scores, truths) == 1, scores.argmax(1) == truths)


def test_confusion_and_chance() -> None:
    found = classes.confusion(np.array([0, 2, 2, 1]), np.array([0, 0, 2, 2]), 3)
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    assert classes.top_k(np.array([1, 5, 6, 2]), 8, 5) == {"top_5": 0.75, "chance_top_5": 0.625}
    assert classes.top_k(np.array([1, 3]), 3, 5) == {"top_5": 1.0, "chance_top_5": 1.0}, "of three classes five are all"


# labelled files


def test_a_folder_of_folders(home: Path, capsys: pytest.CaptureFixture) -> None:
    folder = home / "classes"
    found = read_labelled(folder, ("image",))
    assert [item.label for item in found] == sorted(item.label for item in found)
    counts = {label: sum(item.label == label for item in found) for label in SIZES}
    assert counts == SIZES | {"dog": 4}  # with the broken one
    both = read_labelled(folder, ("image", "audio"))
    assert len(both) == sum(SIZES.values()) - len(SIZES) and all(a.stem == b.stem for a, b in (i.files for i in both))
    assert "7 files have no image and audio of one name" in capsys.readouterr().err
    with pytest.raises(DataError, match="gallery holds no image in a folder of a class"):
        read_labelled(home / "gallery", ("image",))


def test_a_table(home: Path) -> None:
    table = home / "table.csv"
    table.write_text("path,label\nclasses/cat/0.png,cat\nclasses/dog/1.png, dog \n", encoding="utf-8")
    first, second = read_labelled(table, ("image",))
    assert first.files == (home / "classes/cat/0.png",) and (first.label, second.label) == ("cat", "dog")
    for text, message in (
        ("path\na.png\n", "its first line names no column label: expected path,label"),
        ("path,label\na.png,\n", "line 2: no label"),
        ("path,label\na.wav,cat\n", "line 2: a.wav is no image"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            read_labelled(table, ("image",))
    table.write_bytes("path,label\na.png,红色\n".encode("gb18030"))
    with pytest.raises(DataError, match="table.csv: not UTF-8 text$"):
        read_labelled(table, ("image",))
    with pytest.raises(DataError, match="no such folder or CSV"):
        read_labelled(home / "none", ("image",))


def test_prompts_and_names(home: Path, tmp_path: Path) -> None:
    assert read_templates(str(home / "templates.txt")) == TEMPLATES and read_templates("") == ["{}"]
    assert read_names(str(home / "names.csv"), ["dog", "cat"]) == ["狗", "猫"] and read_names("", ["x"]) == ["x"]
    (tmp_path / "bad.txt").write_text("{}\n一只\n", encoding="utf-8")
    with pytest.raises(DataError, match="bad.txt, line 2: no {}"):
        read_templates(str(tmp_path / "bad.txt"))
    (tmp_path / "bad.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.txt holds no template: write texts with {} in the label's place"):
        read_templates(str(tmp_path / "bad.txt"))
    (tmp_path / "bad.txt").write_bytes("红色的{}\n".encode("gb18030"))
    with pytest.raises(DataError, match="bad.txt: not UTF-8 text$"):
        read_templates(str(tmp_path / "bad.txt"))
    with pytest.raises(DataError, match="no name of the class 'bird'"):
        read_names(str(home / "names.csv"), ["bird"])


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "prompts").glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_prompts_are_usable(path: Path) -> None:
    found = read_templates(str(path))
    assert "{}" in found and len(set(found)) == len(found) > 4


# commands


def expected_metrics(model: Model, home: Path) -> dict[str, float]:
    """By hand: means of the prompts' vectors, cosines, counts."""
    labels = sorted(SIZES)
    prompts = [[template.replace("{}", NAMES[label]) for template in TEMPLATES] for label in labels]
    means = np.stack([model.embed_text(texts).astype(np.float64).mean(0) for texts in prompts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    hits, top5, recalls = [], [], []
    for at, label in enumerate(labels):
        vectors = model.embed_image(home / "classes" / label / f"{number}.png" for number in range(SIZES[label]))
        order = np.argsort(-(vectors.astype(np.float64) @ means.T), axis=1)
        hits += (order[:, 0] == at).tolist()
        top5 += (order[:, :5] == at).any(1).tolist()
        recalls.append((order[:, 0] == at).mean())
    return {"top_1": np.mean(hits), "top_5": np.mean(top5), "mean_recall": np.mean(recalls), "items": len(hits)}


@pytest.mark.parametrize("given", ["image", "image+audio"])
def test_an_evaluation_is_what_counting_by_hand_finds(run: Run, home: Path, model: Model, given: str) -> None:
    """Of one class no image has its audio: beside audio there are five classes."""
    output = "run/eval-zero_shot" if given == "image" else f"out-{given}"  # beside what was measured of a split
    place = () if given == "image" else ("--output", output)
    code, out, err = run("eval.zero_shot.path=classes", f"eval.zero_shot.given={given}", *place)
    assert code == 0 and "always the most frequent class" in out
    metrics = json.loads((home / output / "metrics.json").read_text(encoding="utf-8"))["zero_shot"]
    alone = given == "image"
    assert metrics["skipped"] == alone and ("skipped: classes/dog/broken.jpg" in err) == alone
    assert len(metrics["recall"]) == 6 - (not alone)
    assert metrics["chance_top_1"] == pytest.approx(1 / len(metrics["recall"]), abs=1e-5)
    if alone:
        expected = expected_metrics(model, home)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert metrics["majority"] == pytest.approx(5 / 18, abs=1e-5) and metrics["chance_top_5"] == pytest.approx(
            5 / 6, abs=1e-5
        )
        assert np.sum(metrics["confusion"]) == 18 and np.trace(metrics["confusion"]) == round(18 * metrics["top_1"])
    else:
        assert metrics["items"] == 12 and "top_5" not in metrics
    assert (home / output / "figures" / "classes.png").stat().st_size > 1000


def test_an_evaluation_of_which_nothing_can_be_read_is_one_line(run: Run, home: Path) -> None:
    for label in ("cat", "dog"):
        (home / "broken" / label).mkdir(parents=True)
        (home / "broken" / label / "0.png").write_bytes(b"none")
    code, _, err = run("eval.zero_shot.path=broken")
    assert code == 2 and err.count("skipped: broken/") == 2
    told = "error: broken: none of 2 items can be read; broken/cat/0.png: not a readable image"
    assert err.strip().splitlines()[-1].startswith(told)


def test_images_with_their_audio_are_the_sum_of_both(model: Model, home: Path) -> None:
    images = [home / "classes" / "cat" / f"{number}.png" for number in range(3)]
    clips = [path.with_suffix(".wav") for path in images]
    both = model.embed_image(images).astype(np.float64) + model.embed_audio(clips)
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_together(images, clips), expected, atol=1e-6)
    found = model.classify(images, ["猫", "狗"], TEMPLATES, clips)
    np.testing.assert_allclose(found.cosines, expected @ model.embed_labels(["猫", "狗"], TEMPLATES).T, atol=1e-6)


def test_inference_names_the_nearest_label(
    home: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with command(infer.main, home, monkeypatch, capsys) as call:
        arguments = ("--checkpoint", "run", SETTINGS[0], SETTINGS[2], "--classify", "猫", "苹果", "--input", "gallery")
        code, out, err = call(*arguments, "--output", "named")
        assert code == 0 and "skipped 1 of 7 files" in err and "a.WAV" in out
        found = json.loads((home / "named" / "classes.json").read_text(encoding="utf-8"))
        files = [home / "gallery" / f"{name}.png" for name in "abc"]
        expected = model.classify(files, ["猫", "苹果"], TEMPLATES).shares
        np.testing.assert_allclose([list(found[f"gallery/{name}.png"].values()) for name in "abc"], expected, atol=1e-4)
        assert len(found) == 6 and all(shares.keys() == {"猫", "苹果"} for shares in found.values())
        for words, message in (
            (("--classify", "猫"), "--classify goes with --input"),
            (("--classify", "猫", "eval.batch_size=3", "--input", "gallery"), "write key=value words before it"),
            (("--input", "gallery", "--classify", "猫", "猫"), "labels: give at least one, and each once"),
        ):
            code, _, err = call("--checkpoint", "run", *words)
            assert code == 2 and message in err.strip().splitlines()[-1]


def test_a_path_is_needed_and_nothing_is_trained(run: Run, tmp_path: Path) -> None:
    code, _, err = run()
    assert code == 2 and "eval.zero_shot.path is empty: name a folder" in err
    with pytest.raises(ConfigError, match="task=zero_shot is measured by eval.py, not trained"):
        Trainer(Config(task="zero_shot"))

"""Linear probes: the regression against PyTorch, average precision against counting, labels, splits, the command."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mindspore import Tensor
from scipy.sparse import csr_matrix

from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, SourceConfig, load_config
from src.data.errors import DataError
from src.data.labels import read_label_names, read_labels
from src.data.record import Record
from src.data.regions import Regions
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.store import Dataset
from src.data.writer import DatasetWriter
from src.demo.facts import FactMetric
from src.evaluation.linear_probe import LinearProbe, results_name
from src.evaluation.probe_data import (
    ProbeData,
    ProbeSplit,
    _assemble,
    _Found,
    _split,
    of_dataset,
    of_files,
    read_data,
)
from src.inference import engine, load, logistic, representations
from src.inference.library import Model
from src.inference.loading import load_model
from src.inference.media import Medium
from src.inference.representations import EMBEDDING, FUSED, RAW, Representations, name_of, raw_of, subsets
from src.metrics.classes import average_precision
from tests.commands import Run, command, make_home
from tests.conftest import edit_info, png
from tests.oracles import run_mode
from tools import linear_probe as tool

LABELS = ["a", "b", "c"]


# metrics and regression


def test_average_precision_by_counting() -> None:
    """At every threshold the precision times the gain of recall, counted anew for each; many scores are equal."""
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, (40, 5)).astype(float), rng.random((40, 5)) < 0.3
    truth[:, 4] = False
    expected = []
    for column, own in zip(scores.T[:4], truth.T[:4], strict=True):
        gained, before = 0.0, 0.0
        for threshold in sorted(set(column), reverse=True):
            chosen = column >= threshold
            recall = (chosen & own).sum() / own.sum()
            gained, before = gained + (recall - before) * (chosen & own).sum() / chosen.sum(), recall
        expected.append(gained)
    found = average_precision(scores, truth)
    np.testing.assert_allclose(found[:4], expected)
    assert np.isnan(found[4])
    np.testing.assert_allclose(average_precision(np.zeros((40, 5)), truth)[:4], truth.mean(0)[:4])
    assert average_precision(np.array([[3.0], [2.0], [1.0]]), np.array([[1], [0], [1]]))[0] == pytest.approx(5 / 6)


def minimised(features: np.ndarray, labels: np.ndarray, multiple: bool, strength: float) -> tuple[float, np.ndarray]:
    """The loss of the module's docstring by PyTorch in float64: its minimum and the scores there."""
    inputs = torch.tensor((features - features.mean(0)) / features.std(0).clip(1e-9))
    truth = torch.tensor(labels, dtype=torch.float64)
    weights = torch.zeros(features.shape[1], labels.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(labels.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        scores = inputs @ weights + bias
        if multiple:
            fit = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth, reduction="sum")
        else:
            fit = torch.nn.functional.cross_entropy(scores, truth.argmax(1), reduction="sum")
        return fit / len(inputs) + strength / 2 * (weights**2).sum()

    def step() -> torch.Tensor:
        solver.zero_grad()
        found = loss()
        found.backward()
        return found

    solver.step(step)
    return float(loss().detach()), (inputs @ weights + bias).detach().numpy()


@pytest.mark.parametrize("multiple", [True, False])
def test_the_regression_is_at_the_minimum(multiple: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of very different spread that hang together, one of them constant, and blocks that do not fill."""
    monkeypatch.setattr(logistic, "ROWS", 64)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) * np.logspace(-2, 2, 12) + 5
    features[:, 3] = 7.0
    features = features.astype(np.float32)
    scores = features @ rng.normal(size=(12, 4)) / 50 + rng.normal(size=(300, 4))
    labels = (scores > 1 + scores.mean(0)) if multiple else np.eye(4)[scores.argmax(1)]
    strengths = (0.3, 0.01)
    found = logistic.fit_path(features, csr_matrix(labels.astype(np.float32)), multiple, strengths)
    for one in found:
        loss, expected = minimised(features.astype(np.float64), labels, multiple, one.strength)
        found_scores = one.scores(features)
        if not multiple:  # what is added to all labels of an item changes nothing
            expected, found_scores = (scores - scores.mean(1, keepdims=True) for scores in (expected, found_scores))
        np.testing.assert_allclose(found_scores, expected, atol=0.02)
        assert one.scale[3] == 0, "a constant column says nothing"
    assert loss < minimised(features.astype(np.float64), labels, multiple, 0.3)[0]


def test_whole_numbers_are_as_good_as_floats() -> None:
    rng = np.random.default_rng(2)
    pixels, labels = rng.integers(0, 256, (50, 6), np.uint8), csr_matrix(np.eye(3, dtype=np.float32)[np.arange(50) % 3])
    (whole,) = logistic.fit_path(pixels, labels, False, (0.1,))
    (floats,) = logistic.fit_path(pixels.astype(np.float32), labels, False, (0.1,))
    np.testing.assert_allclose(whole.scores(pixels), floats.scores(pixels.astype(np.float32)), atol=1e-5)


def test_the_strength_is_the_best_of_dev() -> None:
    """Three columns of forty hold something of the answer, and thirty items would fit anything."""
    rng = np.random.default_rng(3)
    truth = np.eye(2, dtype=np.float32)[np.arange(60) % 2]
    noise = rng.normal(size=(60, 40)).astype(np.float32)
    noise[:, :3] += 0.8 * truth[:, :1]
    train, dev = (noise[:30], csr_matrix(truth[:30])), (noise[30:], csr_matrix(truth[30:]))
    strengths = (10.0, 1.0, 0.1, 1e-6)
    found, metric = logistic.fit(train, dev, False, strengths)
    each = [logistic.measure(one.scores(dev[0]), dev[1], False) for one in logistic.fit_path(*train, False, strengths)]
    assert metric == max(each) > min(each) and found.strength == strengths[int(np.argmax(each))]


def test_measures() -> None:
    scores = np.array([[3.0, 1, 0], [0, 2, 1], [1, 0, 2], [5, 1, 1]])
    labels = csr_matrix(np.eye(3)[[0, 1, 0, 0]])
    assert logistic.measure(scores, labels, False) == 0.75
    assert logistic.measure(scores, labels, True) == pytest.approx(np.mean([1.0, 1.0]))  # of c no item is


# labels


@pytest.mark.parametrize(("multiple", "kept"), [(False, [1, 3]), (True, [0, 1, 2, 3])])
def test_items_stay_with_their_labels(multiple: bool, kept: list[int]) -> None:
    """One without a label that counts is left out where each has one label, and is of no class otherwise."""
    part = _Found("train", [("rare",), ("b",), (), ("a",)], lambda at: {TEXT: at})
    split = _split(part, {"a": 0, "b": 1}, multiple)
    rows = np.array([[0, 0], [0, 1], [0, 0], [1, 0]])
    assert split.labels.toarray().tolist() == rows[kept].tolist()
    assert [split.read(at) for at in range(len(kept))] == [{TEXT: number} for number in kept]


def test_open_images_labels(tmp_path: Path) -> None:
    """A label that people deny, or a machine hardly sees, is none; an image of which only that is known has none."""
    table, names = tmp_path / "human.csv", tmp_path / "names.csv"
    table.write_text(
        "ImageID,Source,LabelName,Confidence\n"
        "1,verification,/m/cat,1\n1,verification,/m/dog,0\n2,crowdsource-verification,/m/dog,0\n"
        "3,machine,/m/cat,0.4\n3,machine,/m/fish,0.7\n3,machine,/m/bus,0.9\n9,verification,/m/cat,1\n1,verification,/m/cat,0\n"
    )
    found = read_labels([table], {"1", "2", "3"})
    assert found.of == {"1": ("/m/cat",), "2": (), "3": ("/m/fish", "/m/bus")}
    assert found.find("1/annotator") == ("/m/cat",) and found.find("4") is None and found.find("2") == ()
    for header in ("LabelName,DisplayName\n", ""):
        names.write_text(f'{header}/m/cat,Cat\n/m/fish,"Fish, small"\n/m/kit,Cat\n')
        assert read_labels([table], {"1", "2", "3"}, names).of == {
            "1": ("Cat (/m/cat)",),
            "2": (),
            "3": ("Fish, small",),
        }
    own = tmp_path / "own.csv"
    own.write_text("\ufeffid,label\na, 猫\na,狗\n\nb,猫\n", encoding="utf-8")
    assert read_labels([own, table], {"a", "b"}).of == {"a": ("猫", "狗"), "b": ("猫",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na,b\n", "its first line names neither id,label nor ImageID,LabelName,Confidence"),
        ("id,label\na\n", "line 2: 1 columns, the first line has 2"),
        ("id,label\na,b\n,c\n", "line 3: no id"),
        ("ImageID,LabelName,Confidence\n1,,1\n", "line 2: no LabelName"),
        ("ImageID,LabelName,Confidence\n1,/m/a,yes\n", "line 2: Confidence 'yes': expected a number from 0 to 1"),
        ("ImageID,LabelName,Confidence\n1,/m/a,nan\n", "line 2: Confidence 'nan'"),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"labels.csv(: |, ){message}"):
        read_labels([path], {"a", "1"})
    path.write_bytes(b"id,label\n\xff,b\n")
    with pytest.raises(DataError, match="labels.csv: not a readable CSV"):
        read_labels([path], {"a"})
    path.write_text("/m/a\n")
    with pytest.raises(DataError, match="line 1: expected LabelName,DisplayName"):
        read_label_names(path)


def test_objects_of_a_scene() -> None:
    world = FactMetric("demo")
    assert world.objects(["红底，左边一只猫，右边两个苹果", "背景是红色，一只猫在左边，两个苹果在右边"]) == (
        "猫",
        "苹果",
    )
    assert world.objects(["今天下雨"]) == ()


# features


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and files/: images of three classes with their audio, in train/, val/ and one folder more."""
    folder, rng = make_home(tmp_path_factory.mktemp("probe")), np.random.default_rng(5)
    for split, count in (("train", 12), ("val", 2)):
        for at, label in enumerate(LABELS):
            place = folder / "files" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                colour = np.full((9, 8, 3), 80 * at, np.uint8) + rng.integers(0, 60, (9, 8, 3), np.uint8)
                (place / f"{number}.png").write_bytes(png(colour))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[Model]:
    with run_mode("pynative"):
        yield load(home / "run", ["runtime.mode=pynative"], batch_size=4)


def test_the_fused_features_are_those_of_the_network(model: Model, home: Path) -> None:
    """Those of the whole encoder, of which the rows lack what is not given, whatever stands in its place."""
    texts, images = ["红色背景", "一只小狗", "鱼"], sorted((home / "gallery").glob("*.png"))
    clips = sorted((home / "gallery").glob("*.WAV"))
    given = {TEXT: texts, IMAGE: images, AUDIO: clips}
    network, names = model.engine.model, ("text", "image", "audio")
    items = {}
    for modality, own in given.items():
        (batch,) = model.embed_each(names[modality], own)
        items[modality] = model.engine.encode(batch.media)
    tokens, masks = ([Tensor(getattr(one, part)) for one in items.values()] for part in ("tokens", "mask"))
    for chosen in subsets(given):
        presence = Tensor(np.array([[int(modality in chosen) for modality in given]] * 3, np.int32))
        fused, _ = network.cross_encoder(*tokens, *masks, presence)
        found = model.engine.fusion.cls({modality: items[modality] for modality in chosen})
        np.testing.assert_allclose(found, fused.asnumpy()[:, 0], atol=1e-5)
    by_library = model.represent(text=texts, image=images, audio=clips)
    np.testing.assert_allclose(by_library, found, atol=1e-5)
    assert by_library.dtype == np.float32
    assert [name_of(chosen) for chosen in subsets(given)][2:5] == ["audio", "text+image", "text+audio"]
    with pytest.raises(DataError, match="represent: give one, two or three"):
        model.represent()


def test_features_stand_beside_each_other_and_bad_items_are_left_out(
    model: Model, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "ROWS", 4)
    images = sorted((home / "gallery").glob("*.png"))
    (batch,) = model.embed_each("image", images)
    heard = list(model.embed_each("audio", sorted((home / "gallery").glob("*.WAV"))))[0].media

    def item(number: int) -> dict:
        if number == 1:
            raise DataError("broken")
        return {IMAGE: batch.media[number % 3], AUDIO: heard[number % 3]}

    failed: dict[int, DataError] = {}
    found = Representations({"": model.engine}, (AUDIO, IMAGE), raw=True).read(10, item, failed.__setitem__, "")
    assert list(failed) == [1] and found.numbers.tolist() == [0, *range(2, 10)]
    both = found.of(EMBEDDING, (IMAGE, AUDIO))
    expected = np.concatenate([model.embed_image(images), model.embed_audio(heard)], 1)
    np.testing.assert_allclose(both[[0, 8]], expected[[0, 0]], atol=1e-6)
    np.testing.assert_allclose(found.of(FUSED, (IMAGE,))[1:3], model.represent(image=images)[[2, 0]], atol=1e-5)
    assert found.of(RAW, (IMAGE, AUDIO)).dtype == np.uint8 and (found.of(RAW, (IMAGE,)).std(0) > 0).any()


# what is probed


def demo_like(folder: Path, config: Config) -> Config:
    """Scenes of two objects; the first image of each split has two captions, of which one is spoken."""
    rng = np.random.default_rng(6)
    about = {"source": "demo", "world": "demo"}
    with DatasetWriter(folder, config.model.audio, about) as writer:
        for split, count in (("train", 6), ("dev", 3), ("test", 4)):
            for number in range(count):
                names = ("猫", "狗") if number % 2 else ("猫", "房子") if split == "train" else ("火箭", "猫")
                captions = (f"红底，左边一只{names[0]}，右边一只{names[1]}",) * (1 + (number == 0))
                clip = rng.integers(1, 255, (9, config.model.audio.mels), np.uint8)
                clips = (None, clip) if number == 0 else (clip,) if number < count - 1 else (None,)
                image = png(rng.integers(0, 256, (8, 8, 3), np.uint8))
                writer.add(split, Record(f"{split}/{number}", image, captions, clips))
    return config


def at(config: Config, folder: Path) -> Config:
    data = replace(config.data, path=str(folder))
    return replace(config, data=data, eval=replace(config.eval, split="test"))


def table_of(data: ProbeData, split: str) -> list[list[str]]:
    labels = getattr(data, split).labels.toarray()
    return [[data.labels[place] for place in np.flatnonzero(row)] for row in labels]


def test_a_dataset_with_labels_of_its_own_and_of_a_table(tmp_path: Path, model: Model) -> None:
    config = at(demo_like(tmp_path / "data", model.config), tmp_path / "data")
    data = of_dataset(config)
    assert data.modalities == (TEXT, IMAGE, AUDIO) and data.multiple
    assert data.labels == ["狗", "猫"] and data.left_out == 2, "训练 lacks one and the test the other"
    assert table_of(data, "train") == [["猫"], ["狗", "猫"]] * 2 + [["猫"]], "the last scene is not spoken"
    first = data.train.read(0)
    assert first[TEXT].content == "红底，左边一只猫，右边一只房子" and len(first[AUDIO].content) == 9
    assert len(of_dataset(config, (TEXT, IMAGE)).train) == 6 and len(of_dataset(config, most=3).train) == 2
    labels = tmp_path / "labels.csv"
    rows = [f"{split}/{number},{'ab'[number % 2]}\n" for split in ("train", "dev", "test") for number in (0, 1, 2)]
    labels.write_text("id,label\n" + "".join(rows))
    named = of_dataset(config, (IMAGE,), [labels])
    assert named.labels == ["a", "b"] and [len(split) for split in named.splits] == [3, 3, 3]
    with pytest.raises(DataError, match=r"no labels that 3 training items have and some of the test \(--min-items\)"):
        of_dataset(config, (IMAGE,), [labels], fewest=3)
    labels.write_text("id,label\n" + "".join(row for row in rows if not row.startswith("dev")))
    with pytest.raises(DataError, match=r"data, labels.csv: split 'dev' has no text with image of which labels are kn"):
        of_dataset(config, (IMAGE, TEXT), [labels])


def test_the_training_split_is_that_of_the_training_data(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside data.eval_path, of which the probe takes dev and test; of several sources it is the first."""
    config = at(demo_like(tmp_path / "data", model.config), tmp_path / "data")
    held_out = DatasetWriter(tmp_path / "held_out", config.model.audio, {"source": "demo", "world": "demo"})
    captions = ("红底，左边一只猫，右边一只狗",)
    with held_out as writer:
        for split in ("dev", "test"):
            writer.add(split, Record(f"{split}/x", png(np.zeros((8, 8, 3), np.uint8)), captions, (None,)))
    apart = replace(config, data=replace(config.data, eval_path=str(tmp_path / "held_out")))
    data = of_dataset(apart, (TEXT, IMAGE))
    assert [len(split) for split in data.splits] == [6, 1, 1] and data.labels == ["狗", "猫"]
    assert data.test.read(0)[TEXT].name == "test/x" and data.train.read(0)[TEXT].name == "train/0"
    assert data.about["data"]["path"] == str(tmp_path / "data")
    assert data.about["data"]["eval_path"] == str(tmp_path / "held_out")
    sources = (SourceConfig(str(tmp_path / "data")), SourceConfig(str(tmp_path / "held_out")))
    mixed = replace(config, data=replace(config.data, path="", sources=sources))
    assert not capsys.readouterr().err
    assert len(of_dataset(mixed, (IMAGE,)).train) == 6
    assert capsys.readouterr().err.startswith(
        f"note: the probe is fitted to {tmp_path / 'data'}, the first of 2 sources"
    )


def test_a_bad_record_of_the_training_split_is_passed_over(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to data.max_bad, as training does; one that would be measured ends the probe."""
    config = at(demo_like(tmp_path / "data", model.config), tmp_path / "data")
    spoil(tmp_path / "data", "train")
    assert len(of_dataset(config, (IMAGE,)).train) == 5
    assert capsys.readouterr().err.count("skipped: ") == 1
    with pytest.raises(DataError, match=r"record 2 \('train/2'\) is damaged"):
        of_dataset(replace(config, data=replace(config.data, max_bad=0)), (IMAGE,))
    spoil(tmp_path / "data", "test")
    with pytest.raises(DataError, match=r"record 2 \('test/2'\) is damaged"):
        of_dataset(config, (IMAGE,))


def spoil(folder: Path, split: str) -> None:
    """Changes a byte of the third record's image."""
    (record,) = Dataset(folder, split).read([2])
    shard = folder / f"{split}-00000.mindrecord"
    shard.write_bytes(shard.read_bytes().replace(record.image, record.image[:-9] + b"x" + record.image[-8:]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"names": Path("names.csv")}, "--names goes with --labels"),
        ({"path": Path("files"), "names": Path("names.csv")}, "--labels and --names go with a dataset: the files of"),
        ({"most": -1}, "--items -1, --min-items 1: expected 0 or more, and at least 1"),
        ({"fewest": 0}, "--items 0, --min-items 0: expected 0 or more, and at least 1"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_read(asked: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_data(Config(), **asked)


def test_of_a_model_of_regions_they_are_what_is_read(tmp_path: Path) -> None:
    """As the detector found them; there is nothing raw to compare with, nor is there of audio features."""
    base = Config().model
    config = replace(Config(), model=replace(base, image=replace(base.image, input="region", region_dim=4)))
    boxes = np.array([[0, 0, 50, 100], [50, 50, 100, 100]], np.float32)
    with DatasetWriter(tmp_path / "data", base.audio, {"source": "demo", "world": "demo"}) as writer:
        for number, split in enumerate(("train", "dev", "test")):
            features = np.full((2, 4), number, np.float16)
            regions = Regions(features, boxes, np.zeros(2, np.int32), np.zeros(2, np.float32), 100, 100)
            image = png(np.full((8, 8, 3), number, np.uint8))
            writer.add(split, Record(split, image, ("红底，左边一只猫，右边一只狗",), (None,), regions))
    data = of_dataset(at(config, tmp_path / "data"), (IMAGE,))
    read = [split.read(0)[IMAGE] for split in data.splits]
    assert [medium.content.features.tolist() for medium in read] == [[[float(number)] * 4] * 2 for number in range(3)]
    engine = SimpleNamespace(config=config)
    with pytest.raises(DataError, match="model.image.input=region: there are no pixels: compare with untrained alone"):
        raw_of(read[0], engine)
    audio = replace(base.audio, input="feature", feature_dim=4)
    engine = SimpleNamespace(config=replace(config, model=replace(base, audio=audio)))
    with pytest.raises(DataError, match="model.audio.input=feature: there are no log-mels: compare with untrained alo"):
        raw_of(Medium("a.npy", AUDIO, np.zeros((3, 4), np.float16)), engine)


def test_folders_of_classes(home: Path, tmp_path: Path, model: Model) -> None:
    """val is the test where there is none, and dev comes out of train; a folder without splits is divided."""
    split = of_files(model.config, home / "files")
    assert not split.multiple and split.labels == LABELS
    assert len(split.train) + len(split.dev) == 36 and 0 < len(split.dev) < 10 and len(split.test) == 6
    (tmp_path / "classes").mkdir()
    for name, label in (("train", "a"), ("car", "b"), ("dog", "c")):
        shutil.copytree(home / "files" / "train" / label, tmp_path / "classes" / name)
    assert of_files(model.config, tmp_path / "classes").labels == ["car", "dog", "train"], "vehicles are no split"
    whole = of_files(model.config, home / "files" / "train", most=4)
    assert len(whole.train) == 4 and min(map(len, whole.splits)) > 0
    assert table_of(split, "test") == [["a"]] * 2 + [["b"]] * 2 + [["c"]] * 2
    pictures = sorted((home / "files").rglob("*.png"))
    lines = [f"{path},{path.parent.name}\n" for path in pictures] + [f"{path},any\n" for path in pictures]
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(lines))
    both = of_files(model.config, tmp_path / "table.csv")
    assert both.multiple and both.labels == ["a", "any", "b", "c"]
    assert all("any" in row and len(row) == 2 for part in ("train", "dev", "test") for row in table_of(both, part))


def labelled(folder: Path, **splits: str) -> Path:
    """A folder with an image of each class of each split."""
    for split, names in splits.items():
        for at, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(png(np.full((9, 8, 3), 80 * at, np.uint8)))
    return folder


def test_a_split_of_which_nothing_is_left_is_named(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its labels do not count, or none of its files can be read."""
    files = labelled(tmp_path / "files", train="abc", dev="cd", test="ab")
    told = "files: no item of split 'dev' has a label that 1 training items and some of the test have"
    with pytest.raises(DataError, match=told):
        of_files(model.config, files)
    parts = [_Found(name, [own], lambda at: {}) for name, own in (("train", ("a",)), ("dev", ("z",)), ("test", ("a",)))]
    with pytest.raises(
        DataError, match="data: no item of split 'dev' has a label that 1 training items and some of th"
    ):
        _assemble("data", parts, (IMAGE,), 1, multiple=True)
    files = labelled(tmp_path / "other", train="abc", dev="abc", test="abc")
    for name in "abc":
        (files / "dev" / name / "0.png").write_bytes(b"none")
    probe = LinearProbe(model.engine, of_files(model.config, files), against=())
    with pytest.raises(DataError, match=r"other: nothing of split 'dev' can be read; .*/dev/a/0\.png: not a readable"):
        probe.run()
    said = capsys.readouterr().err
    assert [said.count(f"skipped: {files / 'dev' / name / '0.png'}: ") for name in "abc"] == [1, 1, 1]
    (files / "dev" / "a" / "0.png").write_bytes(png(np.zeros((9, 8, 3), np.uint8)))
    found = LinearProbe(model.engine, of_files(model.config, files), against=()).run()
    assert found["items"] == {"train": 3, "dev": 1, "test": 3}, "what was skipped is no item"


def test_the_weakest_penalty_that_was_tried_is_told(capsys: pytest.CaptureFixture) -> None:
    """Of each choice of modalities and kind of feature of which it was the best."""
    strengths = iter([*logistic.STRENGTHS[-2:], logistic.STRENGTHS[0], logistic.STRENGTHS[-1]])
    features = SimpleNamespace(numbers=[0], of=lambda kind, given: (kind, given))
    split = ProbeSplit("train", csr_matrix(np.eye(1)), lambda number: {})
    probe = SimpleNamespace(
        engine=SimpleNamespace(ema=False),
        data=ProbeData("files", ["a"], False, (IMAGE, AUDIO), split, split, split),
        representations=SimpleNamespace(kinds=(RAW, EMBEDDING), given=[(IMAGE,), (IMAGE, AUDIO)]),
        _read=lambda split: features,
        _fit=lambda *columns: {"strength": next(strengths)},
        chance=lambda labels: 0.5,
    )
    results = LinearProbe.run(probe)["results"]
    told = "a weaker penalty than any that was tried may be better"
    said = capsys.readouterr().err
    assert said.count("note: ") == 2
    assert said.splitlines()[-2:] == [f"note: image, raw: {told}", f"note: image+audio, raw: {told}"]
    assert results["image"][RAW]["strength"] == results["image+audio"][RAW]["strength"] == 1e-6


# the command


def test_results_take_the_place_of_no_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for each choice of files, of a dataset and its labels, and of modalities."""
    monkeypatch.chdir(home)
    own = load_config(None, ["data.path=corpora/mine"])
    for settings, path, labels, given, name in (
        ([], None, [], (), "linear_probe"),
        ([f"data.path={home}/corpora/mine/"], None, [], (TEXT, IMAGE), "linear_probe-text+image"),
        (["data.path=other/yours"], None, [], (), "linear_probe-yours"),
        (
            ["data.eval_path=yours"],
            None,
            ["a/train.csv", "b/test.csv"],
            (IMAGE,),
            "linear_probe-yours-train+test-image",
        ),
        (["data.path=other/yours", "data.eval_path=corpora/mine"], None, [], (), "linear_probe-yours"),
        (["data.path=other/yours"], "my/photos.v1", [], (), "linear_probe-photos.v1"),
        ([], "my/files.csv", [], (AUDIO,), "linear_probe-files-audio"),
    ):
        config = load_config(None, ["data.path=corpora/mine", *settings])
        asked = path and Path(path), [Path(file) for file in labels], given
        assert results_name(own, config, *asked) == name


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    for room in (representations, engine):
        monkeypatch.setattr(room, "ROWS", 8)  # batches that are hardly filled would take their time
    with command(tool.main, home, monkeypatch, capsys) as call:
        yield lambda *words: call("--checkpoint", "run", "runtime.mode=pynative", *words)


def test_the_command_measures_files(run: Run, home: Path, model: Model) -> None:
    """The classes differ in brightness, which pixels tell; the embedding's figure is that of the library's vectors."""
    (home / "files" / "val" / "a" / "broken.png").write_bytes(b"none")
    code, out, err = run("--input", "files", "--output", "probed")
    (home / "files" / "val" / "a" / "broken.png").unlink()
    assert code == 0 and "skipped: files/val/a/broken.png" in err, err
    assert "accuracy" in out and "untrained fused" in out and "chance" in out
    found = json.loads((home / "probed" / "linear_probe.json").read_text(encoding="utf-8"))
    assert list(found["results"]) == ["image"] and found["metric"] == "accuracy"
    assert found["results"]["image"]["raw"]["test"] == 1.0 and found["chance"] == pytest.approx(1 / 3, abs=1e-5)
    assert (home / "probed" / "linear_probe.png").stat().st_size > 5000
    data = of_files(model.config, home / "files")
    columns = []
    for split in data.splits:
        media = [split.read(number)[IMAGE] for number in range(len(split))]
        columns.append((model.embed_image(media), split.labels))
    fitted, on_dev = logistic.fit(*columns[:2], False)
    expected = {"dev": on_dev, "test": logistic.measure(fitted.scores(columns[2][0]), columns[2][1], False)}
    assert {key: found["results"]["image"]["embedding"][key] for key in expected} == pytest.approx(expected, abs=1e-5)


def test_the_command_measures_a_dataset(run: Run, home: Path, model: Model) -> None:
    demo_like(home / "scenes", model.config)
    settings = ("data.path=scenes", "eval.split=test", "--against", "none", "--given", "text+image")
    code, out, err = run(*settings, "--output", "seven")
    assert code == 0, err
    found = json.loads((home / "seven" / "linear_probe.json").read_text(encoding="utf-8"))
    assert list(found["results"]) == ["text", "image", "text+image"] and found["labels"] == ["狗", "猫"]
    assert found["results"]["text+image"]["embedding"]["numbers"] == 2 * model.dim
    assert set(found["results"]["text"]["fused"]["by_label"]) == {"狗", "猫"} and found["items"]["train"] == 6
    assert found["chance"] == pytest.approx((0.5 + 1.0) / 2, abs=1e-5), "the labels' shares of the test"
    for words, message in (
        (("--given", "image+sound"), "--given image+sound: 'sound' is none of text, image, audio"),
        (("--input", "files", "--given", "text"), "'text' is none of image, audio"),
        (("--input", "files", "--labels", "x.csv"), "--labels and --names go with a dataset"),
        (("--input", "none"), "--input=none: no such folder or CSV"),
        (("data.path=scenes", "eval.split=dev"), "three different splits"),
    ):
        code, _, err = run(*words)
        assert code == 2 and message in err.strip().splitlines()[-1], err
    edit_info(home / "scenes", {"about": {"source": "manifest"}})
    code, _, err = run(*settings)
    assert code == 2 and "the corpus knows no labels of its images: name a CSV of them by --labels" in err


def test_results_say_what_they_are_of_and_lie_with_it(run: Run, home: Path) -> None:
    config, network = load_model(home / "run")
    for step in (3, 5):
        save_checkpoint(home / "two" / "checkpoints", step, config, network, average={})
    demo_like(home / "views", config)
    rows = [f"{split}/{number},{'ab'[number % 2]}\n" for split in ("train", "dev", "test") for number in (0, 1, 2)]
    (home / "objects.csv").write_text("id,label\n" + "".join(rows))
    files = ("--input", "files")
    dataset = ("data.path=views", "eval.split=test", "--labels", "objects.csv", "--given", "image")
    digests = {split: Dataset(home / "views", split).digest() for split in ("train", "dev", "test")}
    known = {"path": "views", "sha256": digests}
    about_dataset = {"data": known, "label_files": ["objects.csv"], "names": None, "given": "image"}
    for checkpoint, words, folder, about in (
        ("two", files, "linear_probe-files", {"input": "files", "given": "image"}),
        ("two@3", (*files, "--ema"), "linear_probe-files-ema@step-00000003", {"weights": "ema.safetensors"}),
        ("two", dataset, "linear_probe-views-objects-image", about_dataset),
    ):
        code, out, err = run("--checkpoint", checkpoint, *words, "--against", "none")
        assert code == 0, err
        place = home / "two" / folder / "linear_probe.json"
        assert str(place.relative_to(home)) in out
        found = json.loads(place.read_text(encoding="utf-8"))
        step = f"two/checkpoints/step-0000000{checkpoint[4:] or 5}"
        expected = {"checkpoint": step, "weights": "model.safetensors"} | about
        assert {key: found[key] for key in expected} == expected


def test_chance_is_the_training_splits_commonest_label() -> None:
    """What the test split has most of, nobody knows beforehand."""
    train, test = (csr_matrix(np.eye(2)[labels]) for labels in ([0, 0, 0, 1], [1, 1, 1, 0]))
    probe = SimpleNamespace(data=SimpleNamespace(multiple=False))
    assert LinearProbe.chance(probe, (train, None, test)) == 0.25

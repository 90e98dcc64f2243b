"""What is unlike a model's training data is told: the distance, its limit, the file, and what the commands say."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

import export as exporting
import infer
from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import MODEL, OUTLIERS, CheckpointError
from src.checkpoints.places import locate
from src.config import SourceConfig
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.store import Dataset
from src.files import ROOT, digest
from src.inference import load, outliers
from src.inference.encode import Encoder, Items, encode_split
from src.inference.engine import Engine
from src.inference.loading import load_model
from src.inference.outliers import Inputs, Outliers, Usual, fit
from src.runtime import setup
from tests.commands import Run, command, make_home
from tools import measure_outliers

WIDTH = 6
BUNDLED = ROOT / "pretrained" / "opt_demo"


def inputs_of(rng: np.random.Generator, count: int, shift: float = 0.0) -> Inputs:
    """Means of 2 to 30 tokens, whose coordinates depend on one another and vary from 0.1 to 3."""
    mixing = np.random.default_rng(5).standard_normal((WIDTH, WIDTH)) * np.geomspace(0.1, 3, WIDTH)
    counts = rng.integers(2, 31, count)
    noise = rng.standard_normal((count, WIDTH)) @ mixing / np.sqrt(counts / 16)[:, None]
    return Inputs((noise + 1 + shift).astype(np.float32), counts)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_inputs_are_the_mean_of_the_tokens_that_are_there(rng: np.random.Generator) -> None:
    tokens, mask = rng.standard_normal((3, 5, WIDTH)).astype(np.float32), np.ones((3, 5), np.int32)
    mask[1, 2:] = 0
    found = Inputs.of(Items(tokens, mask, tokens[:, 0]))
    assert found.counts.tolist() == [5, 2, 5]
    np.testing.assert_allclose(found.means[0], tokens[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(found.means[1], tokens[1, :2].mean(0), atol=1e-6)


@pytest.mark.parametrize("alike", [True, False])
def test_the_distance_is_that_of_mahalanobis(alike: bool, rng: np.random.Generator) -> None:
    """With a covariance that is shrunk as the formula of Ledoit and Wolf says; an input weighs by its tokens."""
    found = inputs_of(rng, 40)
    if alike:
        found = replace(found, counts=np.full(40, 7))
    weights = (found.counts / found.counts.mean())[:, None]
    mean = (found.means.astype(np.float64) * weights).mean(0)
    centred = (found.means - mean) * np.sqrt(weights)
    sample = sum(np.outer(row, row) for row in centred) / 40
    target = np.trace(sample) / WIDTH * np.eye(WIDTH)
    error = sum(np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in centred) / 40**2
    share = error / np.linalg.norm(sample - target) ** 2
    assert 0.001 < share < 0.5
    inverse = np.linalg.inv(share * target + (1 - share) * sample)
    expected = [mahalanobis(row, np.zeros(WIDTH), inverse) for row in centred]
    usual = fit(found)
    np.testing.assert_allclose(usual.distances(found), expected, rtol=1e-4)
    longer = replace(found, counts=4 * found.counts)
    np.testing.assert_allclose(usual.distances(longer), 2 * np.array(expected), rtol=1e-4)


def test_short_inputs_are_no_farther_than_long_ones(rng: np.random.Generator) -> None:
    usual, others = fit(inputs_of(rng, 4000)), inputs_of(rng, 4000)
    distances = usual.distances(others)
    short = others.counts < 8
    assert (distances[short] ** 2).mean() == pytest.approx((distances[~short] ** 2).mean(), rel=0.1)
    assert (distances**2).mean() == pytest.approx(WIDTH, rel=0.25)  # less, as the covariance is shrunk
    assert usual.distances(inputs_of(rng, 500, shift=2.0)).mean() > 3 * distances.mean()


def test_fewer_inputs_than_coordinates_and_equal_ones_have_a_distance(rng: np.random.Generator) -> None:
    few = inputs_of(rng, 4)
    assert np.isfinite(fit(few).distances(few)).all()
    same = Inputs(np.ones((9, WIDTH), np.float32), np.full(9, 4))
    usual = fit(same)
    assert (usual.distances(same) == 0).all() and usual.distances(Inputs(same.means + 1, same.counts)).min() > 1e3


def test_remarks_name_what_lies_beyond(rng: np.random.Generator) -> None:
    tokens = np.zeros((8, 1, WIDTH), np.float32)
    tokens[:, 0, 0] = [1, 3, 5, 2, 4, 6, 7, 8.04]
    items = Items(tokens, np.ones((8, 1), np.int32), tokens[:, 0])
    found = Outliers({IMAGE: Usual(np.zeros(WIDTH), np.eye(WIDTH), 1.0, 3.0)})
    (line,) = found.remarks(IMAGE, list("abcdefgh"), items)
    assert "mean nothing: c (5.0), e (4.0), f (6.0), g (7.0), h (8.0); 99% of the images" in line
    assert line.endswith("of its own splits are within a distance of 3.0")
    wider = Outliers({IMAGE: replace(found.usual[IMAGE], limit=0.5)})
    assert (
        "a (1.0), b (3.0), c (5.0), d (2.0), e (4.0) and 3 more; " in wider.remarks(IMAGE, list("abcdefgh"), items)[0]
    )
    assert found.remarks(IMAGE, ["a"], items.take(slice(1))) == [] == found.remarks(AUDIO, list("abcdefgh"), items)


# a checkpoint's own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("outliers"))


@pytest.fixture(scope="module")
def engine(home: Path) -> Engine:
    config = load_checkpoint_config(locate(home / "run"))
    # as the commands do, before anything is computed
    setup(replace(config.runtime, distributed=False, mode="pynative"), config.seed)
    return Engine(*load_model(home / "run"))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "FEWEST", 5)


def test_the_limit_is_that_of_both_splits(engine: Engine) -> None:
    """Half of the training images are learned from; 99 % of the others and 99 % of the dev split lie within."""
    found, rows = outliers.measure(engine.encoder, engine.config)
    assert [row.modality for row in rows] == [TEXT, IMAGE, AUDIO] == list(found.usual)
    items = {split: encode_split(engine.encoder, Loader(engine.config, split)) for split in ("train", "dev")}
    for row in rows:
        train, dev = (items[split][row.modality] for split in ("train", "dev"))
        seen = np.isin(train.images, np.unique(train.images)[::2])
        usual = fit(Inputs.of(train.take(seen)))
        limits = [np.quantile(usual.distances(Inputs.of(group)), 0.99) for group in (train.take(~seen), dev)]
        assert found.usual[row.modality].limit == row.limit == pytest.approx(max(limits), rel=1e-3)
        assert row.fitted == seen.sum() and row.beyond.keys() == {"train", "dev"}
        assert 0 < max(row.beyond.values()) < 0.2, "of so few one is more than 1 %"


def test_halves_are_halves_whichever_images_were_read() -> None:
    numbers = np.array([8, 0, 4, 4, 2, 6, 0, 6])
    items = Items(np.zeros((8, 1, WIDTH)), np.ones((8, 1), int), np.zeros((8, WIDTH)), numbers, np.arange(8))
    ours, theirs = outliers.halve(items)
    assert ours.images.tolist() == [8, 0, 4, 4, 0] and theirs.images.tolist() == [2, 6, 6]
    assert theirs.samples.tolist() == [4, 5, 7]


def test_every_source_of_a_mixture_is_read(engine: Engine, tmp_path: Path) -> None:
    shutil.copytree(engine.config.data.path, tmp_path / "again")
    _, alone = outliers.measure(engine.encoder, engine.config)
    sources = (SourceConfig(engine.config.data.path), SourceConfig(str(tmp_path / "again"), 2.0))
    mixed = replace(engine.config, data=replace(engine.config.data, path="", sources=sources))
    _, both = outliers.measure(engine.encoder, mixed)
    assert [row.fitted for row in both] == [2 * row.fitted for row in alone]


def test_a_bad_record_of_the_training_split_is_passed_over(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(engine.config.data.path, tmp_path / "data"))
    record = next(record for record in Dataset(data, "train").read(range(9)) if record.image is not None)
    shard = data / "train-00000.mindrecord"
    shard.write_bytes(shard.read_bytes().replace(record.image, record.image[:-9] + b"x" + record.image[-8:]))
    config = replace(engine.config, data=replace(engine.config.data, path=str(data)))
    _, whole = outliers.measure(engine.encoder, engine.config)
    _, found = outliers.measure(engine.encoder, config)
    assert sum(row.fitted for row in found) < sum(row.fitted for row in whole)
    said = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(said) == 1 and record.key in said[0] and "is damaged" in said[0]
    with pytest.raises(DataError, match="is damaged"):
        outliers.measure(engine.encoder, replace(config, data=replace(config.data, max_bad=0)))


def test_only_some_samples_of_a_big_split_are_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly apart over the split, not its first."""
    whole = encode_split(engine.encoder, Loader(engine.config, "train"))
    chosen = encode_split(engine.encoder, Loader(engine.config, "train"), samples=np.array([1, 7, 12]))
    assert set(chosen[IMAGE].samples.tolist()) <= {1, 7, 12} and len(chosen[IMAGE])
    place = {sample: row for row, sample in enumerate(whole[IMAGE].samples.tolist())}
    rows = [place[sample] for sample in chosen[IMAGE].samples.tolist() if sample in place]
    np.testing.assert_allclose(chosen[IMAGE].embeddings[: len(rows)], whole[IMAGE].embeddings[rows], atol=1e-5)
    monkeypatch.setattr(outliers, "SAMPLES", 14)
    read = []
    monkeypatch.setattr(outliers, "encode_split", lambda *_, samples: read.append(samples.tolist()) or {})
    with pytest.raises(DataError, match="no modality has 5 inputs in half of split 'train' and in 'dev'"):
        outliers.measure(engine.encoder, engine.config)
    count = len(Loader(engine.config, "train").dataset)
    assert len(read[0]) == 14 and (read[0][0], read[0][-1]) == (0, count - 1)


def test_what_was_measured_is_read_again(engine: Engine, home: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "copy"
    checkpoint.mkdir()
    (checkpoint / MODEL).write_bytes((locate(home / "run") / MODEL).read_bytes())
    assert outliers.load(checkpoint) is None
    found, _ = outliers.measure(engine.encoder, engine.config)
    path = outliers.keep(checkpoint, checkpoint, found)
    again = outliers.load(checkpoint)
    for modality, usual in found.usual.items():
        for name in ("mean", "whitening", "tokens", "limit"):
            np.testing.assert_array_equal(getattr(again.usual[modality], name), getattr(usual, name))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"format":"1"', b'"format":"0"'))
    with pytest.raises(CheckpointError, match="another version of this project wrote it: delete it, or measure"):
        outliers.load(checkpoint)
    for damaged in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="does not hold what is usual of inputs"):
            outliers.load(checkpoint)
    path.write_bytes(whole)
    with (checkpoint / MODEL).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="was measured for other weights"):
        outliers.load(checkpoint)


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(infer.main, home, monkeypatch, capsys) as call:
        yield call
    (locate(home / "run") / OUTLIERS).unlink(missing_ok=True)


QUERY = ("--checkpoint", "run", "--query", "左边有一只猫", "--gallery", "gallery", "--top", "1")
DESCRIBE = ("--checkpoint", "run", "--input", "gallery", "runtime.mode=pynative")


def test_infer_tells_of_what_lies_beyond(run: Run, home: Path) -> None:
    """With a file every input beyond its limit, without one nothing."""
    folder = locate(home / "run")
    model = load_checkpoint_config(folder).model
    widths = {TEXT: model.text.width, IMAGE: model.image.width, AUDIO: model.audio.width}
    for limit, told in ((1e-6, True), (1e6, False), (None, False)):
        (folder / OUTLIERS).unlink(missing_ok=True)
        if limit is not None:
            usual = {kind: Usual(np.zeros(width), np.eye(width), 4.0, limit) for kind, width in widths.items()}
            outliers.keep(folder, folder, Outliers(usual))
        code, _, err = run(*QUERY)
        assert code == 0 and ("note: unlike what this model was trained on" in err) == told
        assert ("'左边有一只猫' (" in err) == told
        code, _, err = run(*DESCRIBE)
        assert code == 0 and err.count("note: unlike what this model was trained on") == 2 * told
        assert all((f"gallery/{name} (" in err) == told for name in ("a.png", "c.png", "a.WAV", "c.WAV"))
    outliers.keep(folder, folder, Outliers({}))
    (folder / OUTLIERS).write_bytes(b"nothing")
    code, _, err = run(*QUERY)
    assert code == 2 and "outliers.safetensors does not hold what is usual" in err.strip().splitlines()[-1]


def test_exported_weights_know_what_is_usual(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checkpoint, shipped = locate(home / "run"), home / "shipped"
    found = Outliers({TEXT: Usual(np.arange(4.0), np.eye(4), 7.0, 3.5)})
    outliers.keep(checkpoint, checkpoint, found)
    for _ in range(2):  # the second one replaces what the first has written
        with command(exporting.main, home, monkeypatch, capsys) as run:
            assert run("--checkpoint", "run", "--format", "WEIGHTS", "--output", "shipped")[0] == 0
        np.testing.assert_equal(vars(outliers.load(shipped).usual[TEXT]), vars(found.usual[TEXT]))
        found = Outliers({TEXT: replace(found.usual[TEXT], limit=4.5)})
        outliers.keep(checkpoint, checkpoint, found)
    assert digest(shipped / MODEL) != digest(checkpoint / MODEL), "half precision"
    outliers.keep(shipped, shipped, Outliers({}))
    assert load(shipped), "what is measured anew is no damage"
    (checkpoint / OUTLIERS).unlink()


def test_nothing_is_encoded_twice(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with the training data is then answered as it was encoded."""
    config, rows = load_checkpoint_config(locate(home / "run")), Counter()

    def counting(name: str) -> Callable[..., Items]:
        encode = getattr(Encoder, name)

        def count(self: Encoder, *inputs: np.ndarray) -> Items:
            rows[name] += len(inputs[0])
            return encode(self, *inputs)

        return count

    for name in ("text", "image", "audio"):
        monkeypatch.setattr(Encoder, name, counting(name))
    model = config.model
    widths = {TEXT: model.text.width, IMAGE: model.image.width, AUDIO: model.audio.width}
    usual = {kind: Usual(np.zeros(width), np.eye(width), 4.0, 1e-6) for kind, width in widths.items()}
    outliers.keep(locate(home / "run"), locate(home / "run"), Outliers(usual))

    def encoded(*asked: str) -> Counter:
        rows.clear()
        code, _, err = run(*asked)
        assert code == 0 and "note: unlike what this model was trained on" in err
        return Counter(rows)

    assert encoded(*DESCRIBE) == {"image": 3, "audio": 3}, "gallery/ has three of each"
    beside = ("--with-image", "gallery/a.png")
    assert encoded("--checkpoint", "run", "--input", "gallery/a.WAV", *beside) == {"image": 1, "audio": 1}
    # the query and the gallery's text; images and clips once for all, and again as candidates, whose tokens are read
    candidates = config.eval.rerank.top_k
    assert 0 < candidates < 3 and encoded(*QUERY) == {"text": 2, "image": 3 + candidates, "audio": 3 + candidates}
    asked = ("--classify", "左边", "右边")
    found = encoded("--checkpoint", "run", *asked, "--input", "gallery")
    assert found == {"text": 2 * 2, "image": 3, "audio": 3}, "labels once for images and once for clips"


def test_an_encoding_is_of_one_model(home: Path) -> None:
    """Another model, even of the same weights, encodes the medium itself."""
    one, other = (load(home / "run", ["runtime.mode=pynative"]) for _ in range(2))
    (batch,) = one.embed_each("text", ["左边有一只猫"])
    (known,) = one.encoded(batch.media)
    assert one.engine.encode([known]).tokens is not other.engine.encode([known]).tokens
    changed = replace(known, encoding=(one.engine, known.encoding[1].take([0]).with_ids(np.zeros((1, 1), np.int32))))
    assert one.engine.encode([changed]).ids.shape == (1, 1), "as it was encoded"
    assert other.engine.encode([changed]).ids.shape != (1, 1)


def test_the_card_holds_the_bundled_limits() -> None:
    text = (BUNDLED / "README.md").read_text(encoding="utf-8")
    told = re.search(
        r"limits are ([\d.]+) for texts, ([\d.]+) for images and ([\d.]+) for speech", " ".join(text.split())
    )
    usual = outliers.load(BUNDLED).usual
    assert told and [float(limit) for limit in told.groups()] == [round(usual[kind].limit, 2) for kind in range(3)]


def test_a_query_of_unknown_characters_is_told_in_one_line() -> None:
    """With the bundled checkpoint, to which such texts are also unlike its training data."""
    model = load("opt_demo", ["runtime.mode=pynative"])
    unknown = {"xyz": "x y z", "𠀀𠀁": "𠀀 𠀁", "🐱": "🐱", "红底，左边一只貔貅": "貅 貔"}
    (batch,) = model.embed_each("text", unknown)
    for medium in batch.media:
        (note,) = model.notes(medium)
        assert unknown[medium.content] in note and repr(medium.content) in note
        whole = medium.content[0] != "红"
        assert note.startswith("no token of ") == whole and note.startswith("not in the vocabulary: ") != whole
        assert not (whole and model.unlike([medium])), "a second line would say less"


def test_the_command_measures(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with command(measure_outliers.main, home, monkeypatch, capsys) as measure:
        code, out, _ = measure("--checkpoint", "run", "--output", "measured", "runtime.mode=pynative")
        assert code == 0
        assert "beyond, train" in out and "beyond, dev" in out and f"measured/{OUTLIERS}" in out
        assert out.splitlines()[2].startswith("texts") and not (locate("run") / OUTLIERS).exists()
        monkeypatch.setattr(outliers, "FEWEST", 100)
        code, _, err = measure("--checkpoint", "run")
    assert code == 2 and "too few to say what is usual" in err.strip().splitlines()[-1]

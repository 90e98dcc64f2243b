"""Features of a manifest's media: written in the format that prepare reads, resumed, and what is broken is named.

The whole path: a model that reads pixels and audio makes features, prepare reads them, and the paper's network trains
on them, is evaluated and exported.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import soundfile
from conftest import CHARACTERS, png

from src.checkpoints.checkpoint import load_weights, write_model
from src.cli import CommandParser
from src.config import Config, load_config
from src.data.audio import read_audio
from src.data.errors import DataError
from src.data.image import decode_image
from src.data.pipeline import Loader
from src.data.prepare import manifest
from src.data.regions import load_features, load_regions
from src.data.schema import AUDIO
from src.data.store import Dataset
from src.data.tokenizer import SPECIALS
from src.evaluation.run import Evaluation
from src.export.export import export_graphs
from src.inference import answers, feature_sources, features, vectors
from src.inference.engine import Engine
from src.inference.feature_manifest import named_files, read_manifest, safe_name, write_manifest
from src.inference.library import Model
from src.models.build import build_model
from src.models.opt import OPT
from src.tasks import registry
from src.training.trainer import Trainer
from tests.oracles import tiny_model
from tools import extract_features

ROOT = Path(__file__).resolve().parents[1]
ROWS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with media, two of them broken, and a checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *CHARACTERS]) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    media = folder / "media" / "deep"
    media.mkdir(parents=True)
    rows = []
    for number in range(ROWS):
        (media / f"{number}.png").write_bytes(png(rng.integers(0, 256, (10, 16, 3), np.uint8)))
        soundfile.write(media / f"{number}.wav", rng.uniform(-0.5, 0.5, 2000 + 1000 * number), 16000)
        name, split = f"deep/{number}", "dev" if number == 5 else "train"
        captions = ["一只猫", "两只狗"] if number == 0 else [f"{CHARACTERS[number]}猫"]
        clips = [f"{name}.wav", None] if number == 0 else f"{name}.wav"
        rows.append({"id": str(number), "image": f"{name}.png", "captions": captions, "audio": clips, "split": split})
    (media / "broken.png").write_bytes(b"no image")
    rows.append({"id": "b", "image": "deep/broken.png", "caption": "猫", "audio": "deep/absent.wav", "split": "train"})
    lines = [*(json.dumps(row, ensure_ascii=False) for row in rows), "{oops"]
    (folder / "media" / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    longer = replace(tiny_model().audio, max_frames=16)
    config = Config(model=replace(tiny_model(), audio=longer), eval=replace(Config().eval, batch_size=4))
    text = replace(config.model.text, vocab=str(folder / "vocab.txt"))
    config = replace(config, model=replace(config.model, text=text))
    (folder / "run").mkdir()
    write_model(folder / "run", config, build_model(config))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, home: Path, output: Path, *more: str) -> None:
    command = ["extract", "--input", str(home / "media" / "manifest.jsonl"), "--checkpoint", str(home / "run")]
    monkeypatch.setattr(features, "setup", lambda *_: None)  # this process has begun already
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output), *more])
    extract_features.main()


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """The features of the manifest, made once."""
    with pytest.MonkeyPatch.context() as patch:
        call(patch, home, home / "out")
    return home / "out"


def tokens(home: Path) -> tuple[Config, OPT]:
    config = load_config(home / "run" / "config.yaml")
    model = build_model(config)
    load_weights(model, home / "run")
    return config, model.set_train(False)


def test_files_hold_the_encoders_tokens(home: Path, made: Path) -> None:
    config, model = tokens(home)
    dim = config.model.image.width
    regions = load_regions(made / "regions" / "deep" / "1.png.npz", dim)
    assert (regions.width, regions.height, len(regions)) == (16, 10, 4)
    assert regions.boxes.tolist() == [[3, 0, 8, 5], [8, 0, 13, 5], [3, 5, 8, 10], [8, 5, 13, 10]]
    pixels = decode_image((home / "media" / "deep" / "1.png").read_bytes(), 8, "crop", "")
    expected = model.encode_image((ms.Tensor(pixels[None]),))[0].asnumpy()[0]
    np.testing.assert_allclose(regions.features, expected, rtol=2e-3, atol=2e-3)
    clip = read_audio(home / "media" / "deep" / "1.wav", config.model.audio)
    padded = np.zeros((1, 16, 4), np.uint8)
    padded[0, : len(clip)] = clip
    frames, mask = model.audio_encoder(ms.Tensor(padded), ms.Tensor(np.array([len(clip)], np.int32)))
    found = load_features(made / "audio" / "deep" / "1.wav.npy", config.model.audio.width)
    assert len(found) == int(mask.asnumpy().sum())
    np.testing.assert_allclose(found, frames.asnumpy()[0, : len(found)], rtol=2e-3, atol=2e-3)


def test_the_new_manifest_keeps_every_row(made: Path) -> None:
    lines = (made / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == ROWS + 2 and lines[-1] == "{oops"
    first, second, broken = (json.loads(lines[number]) for number in (0, 1, ROWS))
    assert first["audio"] == ["audio/deep/0.wav.npy", None] and second["audio"] == "audio/deep/1.wav.npy"
    assert second["regions"] == "regions/deep/1.png.npz" and (made / second["image"]).resolve().is_file()
    assert "regions" not in broken and broken["audio"] is None and broken["caption"] == "猫"


def test_several_recordings_of_a_caption(tmp_path: Path) -> None:
    clips = [["a.wav", "broken.wav", "b.wav"], "a.wav", ["broken.wav"], None]
    row = {"id": "1", "captions": ["一", "二", "三", "四"], "audio": clips}
    assert named_files(row, "audio") == ["a.wav", "broken.wav", "b.wav", "a.wav", "broken.wav"]
    made = {name: tmp_path / "audio" / f"{name}.npy" for name in ("a.wav", "b.wav")}
    write_manifest(tmp_path, [row], tmp_path, {"audio": made})
    (entry,) = read_manifest(tmp_path / "manifest.jsonl")
    assert entry["audio"] == [["audio/a.wav.npy", "audio/b.wav.npy"], "audio/a.wav.npy", None, None]
    (parsed,) = manifest.read_rows(tmp_path / "manifest.jsonl", tmp_path)
    assert parsed.captions == ("一", "一", "二", "三", "四") and not parsed.reason
    write_manifest(tmp_path, [row], tmp_path / "media", {})
    (entry,) = read_manifest(tmp_path / "manifest.jsonl")
    assert entry["audio"][0] == ["media/a.wav", "media/broken.wav", "media/b.wav"]


def test_regions_of_a_row_go_with_it_unless_its_image_has_features(tmp_path: Path) -> None:
    """Into a folder that is a link, out of which a ".." leads from where it points to."""
    rows = [
        {"id": "1", "image": "1.png", "regions": "r/1.npz", "audio": "1.wav"},
        {"id": "2", "image": "broken.png", "regions": "r/2.npz"},
        {"id": "3", "regions": "r/3.npz", "caption": "猫"},
        {"id": "4", "image": "", "regions": None, "audio": ""},  # left to the preparation
    ]
    (tmp_path / "media" / "r").mkdir(parents=True)
    for name in ("1.png", "r/1.npz", "broken.png", "r/2.npz", "r/3.npz"):
        (tmp_path / "media" / name).write_text(name)
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    output = tmp_path / "out"
    output.symlink_to(tmp_path / "disk" / "deep")

    def written(names: dict[str, dict[str, Path]]) -> list[dict]:
        write_manifest(output, rows, tmp_path / "media", names)
        return read_manifest(output / "manifest.jsonl")

    for names in ({}, {"audio": {"1.wav": output / "audio" / "1.wav.npy"}}):
        found = written(names)
        assert [(output / row["regions"]).read_text() for row in found[:3]] == ["r/1.npz", "r/2.npz", "r/3.npz"]
        assert [(output / row["image"]).read_text() for row in found[:2]] == ["1.png", "broken.png"]
    first, broken, alone, odd = written({"image": {"1.png": output / "regions" / "1.png.npz"}})
    assert first["regions"] == "regions/1.png.npz" and "regions" not in broken
    assert (output / alone["regions"]).read_text() == "r/3.npz" and odd == rows[3]


def test_what_is_there_is_not_made_again(
    home: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, gone = made / "regions" / "deep" / "1.png.npz", made / "audio" / "deep" / "2.wav.npy"
    before, content = kept.stat().st_mtime_ns, gone.read_bytes()
    gone.unlink()
    (gone.parent / f".writing-{gone.name}").write_bytes(b"cut")  # what a kill leaves
    with (made / "sources.jsonl").open("ab") as file:
        file.write(b'{"features": "regions/deep/1.png.npz", "sour')
    changed, copied = home / "media" / "deep" / "3.png", home / "media" / "deep" / "1.png"
    changed.write_bytes(png(np.full((10, 16, 3), 200, np.uint8)))
    for path in (changed, copied):
        os.utime(path, (1, 1))  # as a copy or an archive may leave it: older than the features
    call(monkeypatch, home, made)
    assert kept.stat().st_mtime_ns == before and gone.read_bytes() == content
    _, model = tokens(home)
    pixels = decode_image(changed.read_bytes(), 8, "crop", "")
    expected = model.encode_image((ms.Tensor(pixels[None]),))[0].asnumpy()[0]
    found = load_regions(made / "regions" / "deep" / "3.png.npz", 24).features
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    said = capsys.readouterr().out
    assert f"image: {ROWS} of {ROWS + 1} files" in said and "skipped files: 2" in said
    assert "model.image.input=region model.image.regions=4 model.image.region_dim=24" in said
    assert "model.audio.input=feature model.audio.feature_dim=8 model.audio.max_frames=4 model.audio.stride=1" in said


def test_what_cannot_be_read_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, home, tmp_path / "out", "--only", "image")
    said = capsys.readouterr().out
    assert "skipped: " in said and "broken.png: not a readable image" in said
    assert not (tmp_path / "out" / "audio").exists()
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (tmp_path / "out" / row["audio"]).resolve() == (home / "media" / "deep" / "1.wav").resolve()
    call(monkeypatch, home, tmp_path / "out", "--only", "audio")
    said = capsys.readouterr().out
    assert f"image: {ROWS} of {ROWS + 1} files" in said and "model.audio.stride=1 and what --only image printed" in said
    assert "note: rows of the others have no image: repeat --only image if it was interrupted or rows are new" in said
    assert "of the others have no audio" not in said, "what this call failed at, it has named"
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert row["regions"] == "regions/deep/1.png.npz", "what the call before has made"
    assert row["audio"] == "audio/deep/1.wav.npy"


def test_a_manifest_of_the_user_is_not_replaced(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = shutil.copytree(home / "media", tmp_path / "media")
    content = (media / "manifest.jsonl").read_bytes()
    with pytest.raises(
        DataError, match=r"--output .* would replace .*manifest\.jsonl, which is --input: choose another"
    ):
        features.extract_features(media / "manifest.jsonl", media, home / "run")
    (media / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"would replace .*manifest\.jsonl, which names no features"):
        features.extract_features(media / "rows.jsonl", media, home / "run")
    (media / "manifest.jsonl").rename(media / "other.jsonl")
    (media / "regions" / "deep").mkdir(parents=True)
    (media / "regions" / "deep" / "1.png.npz").write_bytes(b"a detector's")
    with pytest.raises(DataError, match=r"regions/deep/1\.png\.npz is there and was not extracted: choose another"):
        features.extract_features(media / "rows.jsonl", media, home / "run")
    assert (media / "other.jsonl").read_bytes() == content and not (media / "features.json").exists()


def test_features_of_other_media_are_refused(
    home: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose files have the same names."""
    other = shutil.copytree(home / "media", tmp_path / "media")
    (other / "deep" / "1.png").write_bytes(png(np.zeros((10, 16, 3), np.uint8)))
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    wanted = r"1\.png\.npz holds features of .*media/deep/1\.png, not of .*: choose another --output"
    with pytest.raises(DataError, match=wanted):
        call(monkeypatch, home, made, "--media", str(other))
    lines = (made / "sources.jsonl").read_bytes()  # in which the copies of the files before it have been noted
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before | {
        made / "sources.jsonl": lines
    }


def test_features_are_of_their_medium_wherever_it_lies(tmp_path: Path) -> None:
    """By content: also moved together with it, or where it is gone; those of earlier versions are taken as they are."""
    first, moved = tmp_path / "first", tmp_path / "moved"
    for name, content in (("media/1.wav", b"one"), ("media/2.wav", b"two"), ("out/1.wav.npy", b"made")):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_bytes(content)

    def found(place: Path, medium: str) -> bool:
        job = feature_sources.Job(place / medium, place / "out" / "1.wav.npy")
        return feature_sources.Sources(place / "out", begun=True).has_features(job)

    assert found(first, "media/1.wav") and len((first / "out" / "sources.jsonl").read_bytes().splitlines()) == 1
    with pytest.raises(DataError, match=r"1\.wav\.npy holds features of .*media/1\.wav, not of .*media/2\.wav"):
        found(first, "media/2.wav")
    shutil.copytree(first, moved)
    shutil.copytree(first / "media", moved / "copy")
    os.utime(moved / "copy" / "1.wav", (1, 1))
    assert found(moved, "media/1.wav") and found(moved, "copy/1.wav")
    (moved / "media" / "1.wav").write_bytes(b"new")
    assert not found(moved, "media/1.wav")
    (moved / "media" / "1.wav").unlink()
    assert found(moved, "media/1.wav")
    (moved / "copy" / "1.wav").unlink()
    with pytest.raises(DataError, match="holds features of"):
        found(moved, "copy/1.wav")


def test_errors_are_one_line(home: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"holds features of another image encoder: choose another --output"):
        _claim_with_other_weights(home, made)
    (tmp_path / "features.json").write_text("[1]")
    with pytest.raises(DataError, match=r"features\.json does not describe features"):
        call(monkeypatch, home, tmp_path)
    with pytest.raises(DataError, match="--media .*absent: no such folder"):
        call(monkeypatch, home, tmp_path / "x", "--media", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"--input .*none\.jsonl: no such file"):
        read_manifest(tmp_path / "none.jsonl")
    model = tiny_model()
    model = replace(model, image=replace(model.image, input="region"), audio=replace(model.audio, input="feature"))
    with pytest.raises(DataError, match="model.image.input=region and model.audio.input=feature: such an encoder"):
        features.usable(model, None)


def test_each_kind_of_features_keeps_its_encoder(home: Path, tmp_path: Path) -> None:
    """Also when the kinds are extracted one after the other (``--only``)."""
    config, model = tokens(home)
    for kind in ("image", "audio"):
        features.claim(tmp_path, model, config.model, [kind])
    about = (tmp_path / "features.json").read_text()
    source = replace(config.model, image=replace(config.model.image, init_from="elsewhere/vit", dropout=0.2))
    features.claim(tmp_path, model, source, ["image"])  # the same weights
    earlier = json.loads(about) | {"image": features.encoder_digest(model.image_encoder, source.image)}
    (tmp_path / "features.json").write_text(json.dumps(earlier))
    features.claim(tmp_path, model, source, ["image"])
    assert (tmp_path / "features.json").read_text() == about
    resized = replace(config.model, image=replace(config.model.image, resize="pad"))
    with pytest.raises(DataError, match="holds features of another image encoder"):
        features.claim(tmp_path, model, resized, ["image"])
    with pytest.raises(DataError, match="holds features of another image encoder"):
        _claim_with_other_weights(home, tmp_path)


def test_bars_of_a_padded_image_are_no_regions(tmp_path: Path) -> None:
    config = replace(tiny_model(), image=replace(tiny_model().image, size=16, patch=4, resize="pad"))
    (tmp_path / "wide.png").write_bytes(png(np.zeros((16, 32, 3), np.uint8)))
    extractor = features.ImageFeatures(build_model(Config(model=config)), config)
    _, beside = extractor.read(tmp_path / "wide.png")
    extractor.write(tmp_path / "wide.npz", np.zeros((16, 4)), beside)
    boxes = np.load(tmp_path / "wide.npz")["boxes"]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert areas.tolist() == [64.0] * 8, "two of four rows of patches show the image, at half its size"


def _claim_with_other_weights(home: Path, made: Path) -> None:
    config, model = tokens(home)
    parameter = model.image_encoder.project.weight
    parameter.set_data(parameter + 1.0)
    features.claim(made, model, config.model, ["image"])


@pytest.mark.parametrize("name", ["/etc/image.png", "../image.png", "a\nb.png"])
def test_no_file_is_written_outside_of_the_folder(name: str) -> None:
    assert safe_name(name).isalnum() and safe_name("a/b.png") == "a/b.png"


# the paper's settings at sizes in which no two widths agree
TINY = """
base: {base}
model:
  embed_dim: 12
  image_codes: false
  text: {{vocab: {vocab}, max_len: 7, width: 16, heads: 2, ffn: 20, dropout: 0}}
  image: {{regions: 3, region_dim: 24, region_classes: 5, width: 24, heads: 2, dropout: 0}}
  audio: {{feature_dim: 8, max_frames: 4, width: 8, heads: 2, dropout: 0}}
  cross: {{width: 20, layers: 1, heads: 2, ffn: 24, dropout: 0}}
  text_decoder: {{width: 14, layers: 1, heads: 2, ffn: 18, dropout: 0}}
data: {{path: {folder}/data, codes: "", batch_size: 4}}
objectives: {{weights: {{denoise_image: 0}}}}
optimizer: {{lr: 1.0e-2, warmup_steps: 1}}
train: {{output: {folder}/run, steps: 3, log_every: 1, eval_every: 0}}
"""


@pytest.fixture(scope="module")
def paper(home: Path, made: Path) -> Config:
    """The paper's network at a tiny size, and a dataset prepared of the features."""
    folder = home / "paper"
    folder.mkdir()
    base = ROOT / "config" / "pretrain" / "paper.yaml"
    settings = folder / "paper.yaml"
    settings.write_text(TINY.format(base=base, vocab=home / "vocab.txt", folder=folder), encoding="utf-8")
    parser = CommandParser()
    manifest.add_arguments(parser)
    command = ["--input", made / "manifest.jsonl", "--output", folder / "data", "--config", settings]
    command += ["--max-bad", "1", "--workers", "1"]
    manifest.run(parser.parse_args(list(map(str, command))))
    return load_config(settings)


def test_features_reach_the_batch_as_they_were_stored(paper: Config, made: Path) -> None:
    folder = Path(paper.data.path)
    rejected = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in rejected] == [ROWS + 1, ROWS + 2]
    loader = Loader(paper, "train")
    dataset = loader.dataset
    assert dataset.info["splits"]["train"]["regions"] == len(dataset) == ROWS
    batch = next(loader.batches(0))
    row = int(np.flatnonzero(batch["presence"][:, AUDIO])[0])
    record = next(dataset.read([int(dataset.samples[batch["sample_id"][row], 0])]))
    stored = load_regions(made / "regions" / "deep" / f"{record.key}.png.npz", 24)
    assert np.array_equal(batch["regions"][row], stored.features[:3]) and batch["regions"][row].any()
    assert np.array_equal(batch["region_boxes"][row], stored.box_vectors()[:3])
    clip = load_features(made / "audio" / "deep" / f"{record.key}.wav.npy", 8)
    assert batch["audio_frames"][row] == len(clip) and np.array_equal(batch["audio"][row, : len(clip)], clip)


def test_a_detectors_regions_are_prepared_beside_extracted_audio(
    home: Path,
    made: Path,
    paper: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    media = shutil.copytree(home / "media", tmp_path / "media")
    shutil.copy(made / "regions" / "deep" / "1.png.npz", media / "1.npz")
    row = {"id": "1", "image": "deep/1.png", "regions": "1.npz", "caption": "猫", "audio": "deep/1.wav"}
    (media / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    asked = ("--input", str(media / "rows.jsonl"))
    call(monkeypatch, home, tmp_path / "audio", *asked, "--only", "audio")
    assert "replace the regions" not in capsys.readouterr().out
    parser = CommandParser()
    manifest.add_arguments(parser)
    command = ["--input", tmp_path / "audio" / "manifest.jsonl", "--output", tmp_path / "data", "--workers", "1"]
    manifest.run(parser.parse_args(list(map(str, [*command, "--config", home / "paper" / "paper.yaml"]))))
    (record,) = Dataset(tmp_path / "data", "train").read([0])
    np.testing.assert_array_equal(record.regions.features, load_regions(media / "1.npz", 24).features)
    call(monkeypatch, home, tmp_path / "both", *asked)
    told = "note: features of the images replace the regions of rows: 1 (with --only audio they stay)"
    assert told in capsys.readouterr().out


def test_the_papers_network_trains_and_is_evaluated_and_exported(paper: Config, tmp_path: Path) -> None:
    trainer = Trainer(paper)
    before = {name: value.asnumpy().copy() for name, value in trainer.model.parameters_and_names()}
    trainer.run()
    lines = (Path(paper.train.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    assert [line["loss/mvm_feature"] > 0 for line in logged if "loss/mvm_feature" in line] == [True] * 3
    after = dict(trainer.model.parameters_and_names())
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name].asnumpy())}
    assert {"image_encoder.feature_project.weight", "image_encoder.box_project.weight"} <= moved
    assert {"audio_encoder.project.weight", "masked_image_head.project.weight"} <= moved
    evaluation = Evaluation(Engine(paper, trainer.model), registry.get(paper.task).evaluators)
    metrics = evaluation.run("train", tmp_path / "eval")
    directions = {"text_to_image", "image_to_text", "audio_to_image", "text_to_audio"}
    assert directions <= metrics["retrieval"].keys() and metrics["caption"]["images"] == ROWS - 1
    assert {"patch_cosine", "frame_cosine"} <= metrics["masked"].keys()
    assert (tmp_path / "eval" / "figures" / "captions.png").is_file()
    report = export_graphs(paper, trainer.model.set_train(False), tmp_path / "export", "MINDIR", 0)
    inputs = [port["name"] for port in report["graphs"]["image_encoder"]["inputs"]]
    assert inputs == ["regions", "region_boxes", "region_mask"] and report["max_abs_diff"] < 1e-4


def test_region_files_can_be_asked_for(
    home: Path, paper: Config, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(Engine(paper, build_model(paper).set_train(False), rows=4), "paper", 4)
    folder = made / "regions" / "deep"
    search = answers.read_search(str(folder / "1.png.npz"), folder, None, None, home / "run", paper)
    search.run(model, 3, made.parent / "query", None)
    assert "1.png.npz" in capsys.readouterr().out and (made.parent / "query" / "query-image.png").is_file()
    clips = answers.find_input(made / "audio" / "deep", paper)
    assert len(answers.describe(model, clips, made.parent / "described")) == ROWS
    with pytest.raises(DataError, match=r"1\.png: model.image.input=region reads regions \(\.npz\)"):
        answers.find_input(home / "media" / "deep" / "1.png", paper)
    with pytest.raises(DataError, match=r"1\.wav: model.audio.input=feature needs features \(\.npy, \.npz\)"):
        answers.find_input(home / "media" / "deep" / "1.wav", paper)


def test_regions_and_features_of_a_manifest_are_embedded(paper: Config, home: Path, made: Path, tmp_path: Path) -> None:
    """A row names the image as well; audio features may be an .npz, whose ending regions have too."""
    model = Model(Engine(paper, build_model(paper).set_train(False), rows=4), "paper", 4)
    clip = made / "audio" / "deep" / "1.wav.npy"
    np.savez(tmp_path / "1.npz", features=np.load(clip))
    row = json.loads((made / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert row["image"] and row["regions"] == "regions/deep/1.png.npz"
    rows = [row | {"audio": str(tmp_path / "1.npz")}, {"id": "2", "image": row["image"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    vectors.embed_input(model, home / "run", tmp_path / "rows.jsonl", tmp_path / "out.npy", media=made)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(one["kind"], one["name"]) for one in map(json.loads, lines)] == [
        ("text", row["captions"][0]),
        ("image", row["regions"]),
        ("audio", str(tmp_path / "1.npz")),
    ], "an image without regions is skipped"
    _, image, audio = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(image, model.embed_image([made / row["regions"]])[0], atol=1e-6)
    np.testing.assert_allclose(audio, model.embed_audio([clip])[0], atol=1e-6)
    pixels = vectors.read_entries(tmp_path / "rows.jsonl", made, only="image")
    assert [entry.about["name"] for entry in pixels] == [row["image"]] * 2

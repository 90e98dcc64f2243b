"""The evaluation command as a user calls it: on a dataset, with a query, on files, and with what can go wrong."""

import json
import re
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml

import eval as command
from src import cli
from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, EvalConfig, RerankConfig
from src.data.schema import IMAGE, TEXT
from src.evaluation.retrieval import TERMS
from src.inference import media
from src.inference.gallery import Gallery, keep
from src.models.build import build_model
from tests.conftest import CHARACTERS, png, tiny_dataset
from tests.oracles import tiny_model
from tools import tune_reranking

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/ (a checkpoint with a dataset) and gallery/ (images, audio clips, a text, a broken image)."""
    folder = tmp_path_factory.mktemp("eval")
    settings = EvalConfig(split="dev", batch_size=4, rerank=RerankConfig(top_k=2, likelihood=1.0))
    config = tiny_dataset(folder / "made", config=Config(model=tiny_model(), eval=settings))
    config = replace(config, runtime=replace(config.runtime, distributed=True))  # one process evaluates all the same
    save_checkpoint(folder / "run" / "checkpoints", 3, config, build_model(config))
    gallery = folder / "gallery"
    gallery.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (gallery / f"{name}.png").write_bytes(png(rng.integers(0, 256, (20, 30, 3), np.uint8)))
        _write_wave(gallery / f"{name}.WAV", rng)
    (gallery / "broken.jpg").write_bytes(b"no image")
    (gallery / "words.txt").write_text("一只猫\n", encoding="utf-8")
    (gallery / "notes.pdf").write_bytes(b"something else")
    return folder


def _write_wave(path: Path, rng: np.random.Generator, seconds: float = 0.2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.integers(-9000, 9000, int(8000 * seconds), np.int16).tobytes())


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    """Runs the command in the home folder: exit code, what it printed, and its errors."""
    before = ms.get_context("mode")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
        try:
            cli.run(command.main)
            code = 0
        except SystemExit as error:
            code = error.code
        streams = capsys.readouterr()
        return code, streams.out, re.sub(r".*it/s\]|.*\?it/s.*", "", streams.err)

    monkeypatch.chdir(home)
    yield call
    ms.set_context(mode=before)


def test_dataset(run: Run, home: Path) -> None:
    code, out, _ = run("--checkpoint", "run", "eval.captions=4")
    assert code == 0 and "text → image" in out and "transcripts of speech" in out
    metrics = json.loads((home / "run" / "eval-dev" / "metrics.json").read_text())
    assert metrics["split"] == "dev" and metrics["caption"]["images"] <= 4


def test_text_finds_images_audio_and_texts(run: Run, home: Path) -> None:
    long = CHARACTERS[:7] + "Ω"
    code, out, err = run("--checkpoint", "run/checkpoints/step-00000003", "--query", long, "--gallery", "gallery")
    assert code == 0
    assert "3 images" in out and "3 audio clips" in out and "1 texts" in out
    assert "broken.jpg" in err and "skipped 1 of 8 files" in err
    assert "first 5 tokens" in err and "does not know Ω" in err
    result = json.loads((home / "run" / "query" / "query.json").read_text())
    shares = [hit["share"] for hit in result["images"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    assert (home / "run" / "query" / "query-images.png").stat().st_size > 1000


def test_audio_finds_images(run: Run, home: Path) -> None:
    asked = ("--query", "gallery/a.WAV", "--gallery", "gallery", "--top", "2", "--output", "found")
    code, out, _ = run("--checkpoint", "run", *asked)
    assert code == 0
    result = json.loads((home / "found" / "query.json").read_text())
    assert len(result["images"]) == 2 and result["audio clips"][0]["file"] == "gallery/a.WAV"
    assert result["audio clips"][0]["cosine"] == pytest.approx(1, abs=1e-5), "an audio clip resembles itself most"


def test_an_index_answers_as_the_folder_does(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the query and what is ranked again is encoded; without a query the index is only written."""
    ask = ("--checkpoint", "run", "--query", "左边有一只猫")
    assert run(*ask, "--gallery", "gallery", "--output", "plain")[0] == 0
    code, out, _ = run("--checkpoint", "run", "--gallery", "gallery", "--save-index", "kept/gallery.index")
    assert code == 0 and "kept/gallery.index holds 7 files of gallery" in out
    encoded = []
    encode = media.encode
    monkeypatch.setattr(media, "encode", lambda *args: encoded.append(len(args[2])) or encode(*args))
    code, _, err = run(*ask, "--index", "kept/gallery.index", "--output", "indexed")
    assert code == 0 and encoded == [1, 3, 3], "the query, and of images and audio clips the best three"
    plain, indexed = (json.loads((home / name / "query.json").read_text()) for name in ("plain", "indexed"))
    for result in (plain, indexed):
        for hit in (hit for kind in ("texts", "images", "audio clips") for hit in result[kind]):
            hit["file"] = Path(hit["file"]).name  # the index knows where its folder is, from wherever it is asked
    assert indexed == plain
    assert "skipped 1 of 8 files" in err and "lacks 1 files as they are now, and holds 0" in err  # broken.jpg again


def test_an_index_follows_its_folder(run: Run, home: Path) -> None:
    """What is new or has changed is read, what is gone is not found, and the rest is as it was."""
    folder = home / "moving"
    folder.mkdir()
    for name, content in (("a.txt", "一只猫"), ("b.txt", "两只狗"), ("c.txt", "三条鱼")):
        (folder / name).write_text(content, encoding="utf-8")
    assert run("--checkpoint", "run", "--gallery", "moving", "--save-index", "moving.index")[0] == 0
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("两个大苹果", encoding="utf-8")
    (folder / "d.txt").write_text("小鱼", encoding="utf-8")
    ask = ("--checkpoint", "run", "--query", "两个大苹果", "--output", "moved")
    code, _, err = run(*ask, "--index", "moving.index", "--save-index", "moving.index")
    assert code == 0 and "lacks 2 files as they are now, and holds 1 that" in err
    hits = json.loads((home / "moved" / "query.json").read_text())["texts"]
    assert {Path(hit["file"]).name for hit in hits} == {"b.txt", "c.txt", "d.txt"}
    assert Path(hits[0]["file"]).name == "b.txt" and hits[0]["cosine"] == pytest.approx(1, abs=1e-5)
    folder.rename(home / "elsewhere")
    code, _, err = run(*ask, "--index", "moving.index")
    assert code == 2 and "its folder" in err and "say with --gallery where the files are" in err
    code, _, err = run(*ask, "--index", "moving.index", "--gallery", "elsewhere")
    assert code == 0 and "note: moving.index" not in err, "a folder may be moved"


def test_what_the_model_does_not_read_is_said(run: Run, home: Path) -> None:
    rng = np.random.default_rng(3)
    _write_wave(home / "long.wav", rng, seconds=3)
    code, _, err = run("--checkpoint", "run", "--query", "long.wav", "--gallery", "gallery", "--top", "1")
    assert code == 0 and "note: long.wav is cut to its first 0.5 s" in err
    code, _, err = run("--checkpoint", "run", "--query", "ΩΨ", "--gallery", "gallery", "--top", "1")
    assert code == 0 and "the model knows nothing of 'ΩΨ'" in err


def test_weights_are_chosen_on_another_split(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tune", "--checkpoint", "run", *arguments])
        try:
            cli.run(tune_reranking.main)
        except SystemExit as error:
            return error.code
        return 0

    assert call("eval.split=train", "eval.gallery=5", "--output", "tuned") == 0
    out = capsys.readouterr().out
    assert "best" in out and "likelihood alone" in out and "eval.rerank_likelihood=" in out
    tried = json.loads((home / "tuned" / "rerank.json").read_text())["tried"]
    best = yaml.safe_load((home / "tuned" / "rerank.yaml").read_text())["eval"]
    (found,) = [row for row in tried if all(row[name] == best[f"rerank_{name}"] for name in TERMS)]
    assert found["r1"] == max(row["r1"] for row in tried) and len(tried) == 5**3 - 4**3
    for arguments, message in (
        (["--split", "dev"], "--split dev: it is eval.split, which is reported"),
        (["eval.split=train", "eval.rerank=0"], "eval.rerank=0 ranks nothing again"),
        (["task=caption", "objectives.denoise_text=1"], "task=caption: retrieval alone is ranked again"),
    ):
        assert call(*arguments) == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


def test_descriptions(run: Run, home: Path) -> None:
    code, out, err = run("--checkpoint", "run", "--input", "gallery", "--output", "described")
    assert code == 0 and "a.png" in out and "a.WAV" in out and "skipped 1 of 7 files" in err
    entries = json.loads((home / "described" / "captions.json").read_text())
    assert len(entries) == 6 and all(entry.keys() == {"image_id", "caption"} for entry in entries)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["--checkpoint", "run", "--split", "tset"], "has no split 'tset': it has train, dev"),
        (["--checkpoint", "run", "eval.batchsize=3"], "did you mean eval.batch_size?"),
        (["--checkpoint", "run", "--config", "none.yaml"], "cannot read config none.yaml"),
        (["--checkpoint", "run", "--input", "none"], "none: no such file or folder"),
        (["--checkpoint", "run", "--input", "gallery/notes.pdf"], "gallery/notes.pdf: expected a file that ends in"),
        (["--checkpoint", "run", "--input", "gallery/broken.jpg"], "gallery/broken.jpg: not a readable image"),
        (["--checkpoint", "run", "--input", "empty"], "empty holds nothing to read"),
        (["--checkpoint", "run", "--query", "猫", "--gallery", "none"], "--gallery none: no such folder"),
        (["--checkpoint", "run", "--query", "a.png", "--gallery", "gallery"], "a.png: no such file"),
        (["--checkpoint", "run", "--query", " ", "--gallery", "gallery"], "--query is empty"),
        (["--checkpoint", "run", "--query", "gallery", "--gallery", "gallery"], "--query gallery is a folder"),
        (["--checkpoint", "run", "--query", "猫" * 400, "--gallery", "empty"], "empty holds nothing to read"),
        (["--checkpoint", "run", "--output", "gallery/a.png/x"], "gallery/a.png/x: Not a directory"),
        (["--checkpoint", "run", "--query", "猫"], "--query or --save-index goes together with --gallery or --index"),
        (["--checkpoint", "run", "--index", "x"], "--query or --save-index goes together with --gallery or --index"),
        (["--checkpoint", "run", "--query", "猫", "--gallery", "g", "--input", "g"], "exclude each other"),
        (["--checkpoint", "run", "--query", "猫", "--index", "none"], "--index none: no such file: make one with"),
        (["--checkpoint", "run", "--query", "猫", "--index", "gallery/a.png"], "is no index of a gallery"),
        (
            ["--checkpoint", "run", "--query", "猫", "--index", "other.index"],
            "checkpoint 000000000000 made it",
        ),
        (["--checkpoint", "run", "--query", "猫", "--gallery", "gallery", "--top", "0"], "--top must be at least 1"),
    ],
)
def test_mistakes_are_one_line(run: Run, home: Path, arguments: list[str], message: str) -> None:
    (home / "empty").mkdir(exist_ok=True)
    made = Gallery(home / "gallery", ["a.png"], np.zeros((1, 2), np.int64), np.zeros((1, 12), np.float32))
    keep(home / "other.index", made, "0" * 64)
    code, _, err = run(*arguments)
    assert code == 2 and message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_help_shows_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "--query 红底，中间一只猫 --gallery photos" in out


def test_files_are_told_by_their_endings(home: Path) -> None:
    names = [path.name for path in media.find_files(home / "gallery", (IMAGE, TEXT))]
    assert names == ["a.png", "b.png", "broken.jpg", "c.png", "words.txt"]
    images = media.read_files([home / "gallery" / "a.png"], tiny_model())
    assert images[0].content.shape == (8, 8, 3)

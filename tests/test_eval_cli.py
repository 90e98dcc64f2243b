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

import eval as command
from src import cli
from src.config import Config, EvalConfig
from src.data.schema import IMAGE, TEXT
from src.evaluation import media
from src.training.checkpoint import build_model, save_checkpoint
from tests.conftest import CHARACTERS, png, tiny_dataset
from tests.oracles import tiny_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/ (a checkpoint with a dataset) and gallery/ (pictures, sounds, a text, a broken picture)."""
    folder = tmp_path_factory.mktemp("eval")
    settings = EvalConfig(split="dev", batch_size=4, rerank=2, rerank_likelihood=1.0)
    config = tiny_dataset(folder / "made", config=Config(model=tiny_model(), eval=settings))
    config = replace(config, runtime=replace(config.runtime, distributed=True))  # one process evaluates all the same
    save_checkpoint(folder / "run" / "checkpoints", 3, config, build_model(config))
    gallery = folder / "gallery"
    gallery.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (gallery / f"{name}.png").write_bytes(png(rng.integers(0, 256, (20, 30, 3), np.uint8)))
        _write_wave(gallery / f"{name}.WAV", rng)
    (gallery / "broken.jpg").write_bytes(b"no picture")
    (gallery / "words.txt").write_text("一只猫\n", encoding="utf-8")
    (gallery / "notes.pdf").write_bytes(b"something else")
    return folder


def _write_wave(path: Path, rng: np.random.Generator) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.integers(-9000, 9000, 1600, np.int16).tobytes())


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
    assert metrics["split"] == "dev" and metrics["caption"]["pictures"] <= 4


def test_text_finds_pictures_sounds_and_texts(run: Run, home: Path) -> None:
    long = CHARACTERS[:7] + "Ω"
    code, out, err = run("--checkpoint", "run/checkpoints/step-00000003", "--query", long, "--gallery", "gallery")
    assert code == 0
    assert "3 pictures" in out and "3 sounds" in out and "1 texts" in out
    assert "broken.jpg" in err and "skipped 1 of 8 files" in err
    assert "first 5 tokens" in err and "does not know Ω" in err
    result = json.loads((home / "run" / "query" / "query.json").read_text())
    shares = [hit["share"] for hit in result["pictures"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    assert (home / "run" / "query" / "query-pictures.png").stat().st_size > 1000


def test_sound_finds_pictures(run: Run, home: Path) -> None:
    asked = ("--query", "gallery/a.WAV", "--gallery", "gallery", "--top", "2", "--output", "found")
    code, out, _ = run("--checkpoint", "run", *asked)
    assert code == 0
    result = json.loads((home / "found" / "query.json").read_text())
    assert len(result["pictures"]) == 2 and result["sounds"][0]["file"] == "gallery/a.WAV"
    assert result["sounds"][0]["cosine"] == pytest.approx(1, abs=1e-5), "a sound resembles itself most"


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
        (["--checkpoint", "run", "--input", "gallery/broken.jpg"], "gallery/broken.jpg: not a readable picture"),
        (["--checkpoint", "run", "--input", "empty"], "empty holds nothing to read"),
        (["--checkpoint", "run", "--query", "猫", "--gallery", "none"], "--gallery none: no such folder"),
        (["--checkpoint", "run", "--query", "a.png", "--gallery", "gallery"], "a.png: no such file"),
        (["--checkpoint", "run", "--query", " ", "--gallery", "gallery"], "--query is empty"),
        (["--checkpoint", "run", "--query", "gallery", "--gallery", "gallery"], "--query gallery is a folder"),
        (["--checkpoint", "run", "--query", "猫" * 400, "--gallery", "empty"], "empty holds nothing to read"),
        (["--checkpoint", "run", "--output", "gallery/a.png/x"], "gallery/a.png/x: Not a directory"),
        (["--checkpoint", "run", "--query", "猫"], "--query and --gallery go together"),
        (["--checkpoint", "run", "--query", "猫", "--gallery", "gallery", "--top", "0"], "--top must be at least 1"),
    ],
)
def test_mistakes_are_one_line(run: Run, home: Path, arguments: list[str], message: str) -> None:
    (home / "empty").mkdir(exist_ok=True)
    code, _, err = run(*arguments)
    assert code == 2 and message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_help_shows_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "--query 红底，中间一只猫 --gallery photos" in out


def test_files_are_told_by_their_endings(home: Path) -> None:
    names = [path.name for path in media.find_files(home / "gallery", (IMAGE, TEXT))]
    assert names == ["a.png", "b.png", "broken.jpg", "c.png", "words.txt"]
    pictures = media.read_files([home / "gallery" / "a.png"], tiny_model())
    assert pictures[0].content.shape == (8, 8, 3)

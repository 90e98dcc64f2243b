"""The inference command as a user calls it: with a query, on files, and with what can go wrong."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import infer
from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from src.config import load_config
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.inference import answers, media
from src.inference.answers import _was_trained, read_companion
from src.inference.encode import Encoder
from src.inference.gallery import Gallery, keep
from tests.commands import Run, command, make_home, write_wave
from tests.conftest import CHARACTERS
from tests.oracles import tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = make_home(tmp_path_factory.mktemp("infer"))
    (home / "folder.png").mkdir()
    shutil.copy(home / "gallery" / "a.png", home / "folder.png")
    return home


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(infer.main, home, monkeypatch, capsys) as call:
        yield call


def test_text_finds_images_audio_and_texts(run: Run, home: Path) -> None:
    long = CHARACTERS[:7] + "Ω"
    code, out, err = run("--checkpoint", "run/checkpoints/step-00000003", "--query", long, "--gallery", "gallery")
    assert code == 0
    assert "3 images" in out and "3 audio clips" in out and "1 texts" in out
    assert "broken.jpg" in err and "skipped 1 of 8 files" in err
    assert "first 6 tokens" in err and "not in the vocabulary: ω" in err
    result = json.loads((home / "run" / "query" / "query.json").read_text())
    shares = [hit["share"] for hit in result["image"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
    for modality in MODALITIES:
        assert (home / "run" / "query" / f"query-{modality}.png").stat().st_size > 1000


def test_audio_finds_images(run: Run, home: Path) -> None:
    asked = ("--query", "gallery/a.WAV", "--gallery", "gallery", "--top", "2", "--output", "found")
    code, out, _ = run("--checkpoint", "run", *asked)
    assert code == 0
    result = json.loads((home / "found" / "query.json").read_text())
    assert len(result["image"]) == 2 and result["audio"][0]["file"] == "gallery/a.WAV"
    assert result["audio"][0]["cosine"] == pytest.approx(1, abs=1e-5), "an audio clip resembles itself most"


def test_an_index_answers_as_the_folder_does(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the query and what is re-ranked is encoded; without a query the index is only written."""
    ask = ("--checkpoint", "run", "--query", "左边有一只猫")
    assert run(*ask, "--gallery", "gallery", "--output", "plain")[0] == 0
    code, out, _ = run("--checkpoint", "run", "--gallery", "gallery", "--save-index", "kept/gallery.index")
    assert code == 0 and "kept/gallery.index holds 7 files of gallery" in out
    encoded = []
    encode = Encoder._run
    monkeypatch.setattr(Encoder, "_run", lambda self, *given: encoded.append(len(given[1][0])) or encode(self, *given))
    code, _, err = run(*ask, "--index", "kept/gallery.index", "--output", "indexed")
    assert code == 0 and encoded == [1, 2, 2], "the query, and of images and audio clips the candidates"
    plain, indexed = (json.loads((home / name / "query.json").read_text()) for name in ("plain", "indexed"))
    for result in (plain, indexed):
        for hit in (hit for modality in MODALITIES for hit in result[modality]):
            hit["file"] = Path(hit["file"]).name  # the index knows where its folder is, from wherever it is asked
    assert indexed == plain
    assert "skipped 1 of 8 files" in err and "lacks 1 files as they are now, and holds 0" in err  # broken.jpg again


def test_an_index_follows_its_folder(run: Run, home: Path) -> None:
    """What is new or has changed is read, what is gone is not found, and the rest is as it was."""
    folder = home / "moving"
    folder.mkdir()
    for name, content in (("a.txt", "一只猫"), ("b.txt", "两只小黑狗"), ("c.txt", "三条鱼")):
        (folder / name).write_text(content, encoding="utf-8")
    assert run("--checkpoint", "run", "--gallery", "moving", "--save-index", "moving.index")[0] == 0
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("两个大苹果", encoding="utf-8")
    (folder / "d.txt").write_text("小鱼", encoding="utf-8")
    ask = ("--checkpoint", "run", "--query", "两个大苹果", "--output", "moved")
    code, _, err = run(*ask, "--index", "moving.index", "--save-index", "moving.index")
    assert code == 0 and "lacks 2 files as they are now, and holds 1 that" in err
    hits = json.loads((home / "moved" / "query.json").read_text())["text"]
    assert {Path(hit["file"]).name for hit in hits} == {"b.txt", "c.txt", "d.txt"}
    assert Path(hits[0]["file"]).name == "b.txt" and hits[0]["cosine"] == pytest.approx(1, abs=1e-5)
    os.chdir(folder)  # the index of a relative path is one of that folder all the same
    elsewhere = ("--checkpoint", home / "run", "--query", "两个大苹果", "--output", home / "moved")
    code, _, err = run(*elsewhere, "--index", home / "moving.index")
    assert code == 0 and "its folder" not in err
    os.chdir(home)
    folder.rename(home / "elsewhere")
    code, _, err = run(*ask, "--index", "moving.index")
    assert code == 2 and "its folder" in err and "say with --gallery where the files are" in err
    code, _, err = run(*ask, "--index", "moving.index", "--gallery", "elsewhere")
    assert code == 0 and "note: moving.index" not in err, "a folder may be moved"


def test_what_the_model_does_not_read_is_said(run: Run, home: Path) -> None:
    rng = np.random.default_rng(3)
    write_wave(home / "long.wav", rng, seconds=3)
    code, _, err = run("--checkpoint", "run", "--query", "long.wav", "--gallery", "gallery", "--top", "1")
    assert code == 0 and "note: long.wav is cut to its first 0.5 s" in err
    code, _, err = run("--checkpoint", "run", "--query", "ΩΨ", "--gallery", "gallery", "--top", "1")
    assert code == 0 and "no token of 'ΩΨ' is in the vocabulary" in err


def test_captions_and_transcripts(run: Run, home: Path) -> None:
    code, out, err = run("--checkpoint", "run", "--input", "gallery", "--output", "described")
    assert code == 0 and "a.png" in out and "a.WAV" in out and "skipped 1 of 7 files" in err
    entries = json.loads((home / "described" / "captions.json").read_text())
    assert len(entries) == 6 and all(entry.keys() == {"image_id", "caption"} for entry in entries)
    code, _, _ = run("--checkpoint", "run", "--input", "gallery/a.png")
    assert code == 0 and (home / "run" / "captions" / "captions.json").exists(), "beside the run, as other answers"


def test_the_image_of_clips_may_stand_beside_other_files(home: Path) -> None:
    """One clip among the files is enough; none is a mistake."""
    image, config = home / "gallery" / "a.png", load_checkpoint_config(locate(home / "run"))
    files = [home / "gallery" / "a.WAV", image]
    for order in (files, files[::-1], files[:1]):
        assert read_companion(image, order, config).modality == IMAGE
    with pytest.raises(DataError, match="--with-image .*--input holds no audio clip that it could belong to"):
        read_companion(image, [image], config)


def test_pictures_of_an_earlier_answer_do_not_stay(run: Run, home: Path) -> None:
    ask = ("--checkpoint", "run", "--query", "猫", "--output", "twice", "--gallery")
    (home / "images").mkdir()
    shutil.copy(home / "gallery" / "a.png", home / "images")
    (home / "twice").mkdir()
    (home / "twice" / "query-mine.png").write_bytes(b"a user's")
    for gallery, kinds in (("gallery", {"image", "audio", "text"}), ("images", {"image"})):
        assert run(*ask, gallery)[0] == 0
        assert {path.stem.removeprefix("query-") for path in (home / "twice").glob("*.png")} == kinds | {"mine"}


def test_an_index_that_cannot_be_written_costs_no_answer(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "kept.index")

    monkeypatch.setattr("src.inference.gallery.keep", full)
    asked = ("--query", "猫", "--gallery", "gallery", "--save-index", "kept.index", "--output", "answered")
    code, out, err = run("--checkpoint", "run", *asked)
    assert code == 2 and "kept.index: No space left on device" in err
    assert "3 images" in out and (home / "answered" / "query.json").exists()


@pytest.mark.parametrize(
    ("settings", "untrained"),
    [
        ([], {IMAGE, AUDIO}),
        (["objectives.weights.denoise_text=1"], set()),
        (["objectives.weights.denoise_text=1", "objectives.denoise_text.given=[image]"], {AUDIO}),
        (["objectives.weights.denoise_text=1", "objectives.denoise_text.given=[image+audio]"], set()),
        (["train.init_from=elsewhere"], set()),
    ],
)
def test_texts_of_a_decoder_that_was_never_trained_are_told(
    tmp_path: Path, settings: list[str], untrained: set[int]
) -> None:
    (tmp_path / "config.yaml").write_text("")
    config = load_config(tmp_path / "config.yaml", settings)
    assert {kind for kind in (IMAGE, AUDIO) if not _was_trained(config, kind)} == untrained


RUN = ["--checkpoint", "run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere", "--input", "gallery"], "no checkpoint in nowhere"),
        ([*RUN, "--input", "gallery", "eval.batchsize=3"], "did you mean eval.batch_size?"),
        ([*RUN, "--input", "gallery", "--config", "none.yaml"], "cannot read config none.yaml"),
        ([*RUN, "--input", "gallery", "--output", "gallery/a.png/x"], "gallery/a.png/x: Not a directory"),
        ([*RUN, "--input", "none"], "none: no such file or folder"),
        ([*RUN, "--query", "folder.png", "--gallery", "gallery"], "--query folder.png is a folder: expected a text"),
        ([*RUN, "--gallery", "gallery", "--save-index", "gallery"], "--save-index gallery is a folder: name a file"),
        ([*RUN, "--input", "gallery/notes.pdf"], "gallery/notes.pdf: expected a file that ends in"),
        ([*RUN, "--input", "gallery/broken.jpg"], "gallery/broken.jpg: not a readable image"),
        ([*RUN, "--input", "empty"], "empty holds nothing to read"),
        ([*RUN, "--query", "猫", "--gallery", "none"], "--gallery none: no such folder"),
        ([*RUN, "--query", "a.png", "--gallery", "gallery"], "a.png: no such file"),
        ([*RUN, "--query", " ", "--gallery", "gallery"], "--query is empty"),
        ([*RUN, "--query", "gallery", "--gallery", "gallery"], "--query gallery is a folder"),
        ([*RUN, "--query", "猫" * 400, "--gallery", "empty"], "empty holds nothing to read"),
        ([*RUN, "--query", "猫"], "--query or --save-index goes together with --gallery or --index"),
        ([*RUN, "--index", "x"], "--query or --save-index goes together with --gallery or --index"),
        (RUN, "give one of --query (or --save-index), --input, --generate"),
        ([*RUN, "--query", "猫", "--gallery", "g", "--input", "g"], "give one of --query"),
        ([*RUN, "--query", "猫", "--index", "none"], "--index none: no such file: make one with"),
        ([*RUN, "--query", "猫", "--index", "gallery/a.png"], "is no index of a gallery"),
        ([*RUN, "--query", "猫", "--index", "other.index"], "checkpoint 000000000000 made it"),
        ([*RUN, "--query", "猫", "--gallery", "gallery", "--top", "0"], "--top must be at least 1"),
        ([*RUN, "--query", "猫", "--gallery", "g", "--with-image", "a.png"], "--with-image goes with --input"),
        ([*RUN, "--input", "gallery", "--samples", "2"], "--samples goes with --generate"),
        ([*RUN, "--generate", "猫", "--samples", "0"], "--samples goes with --generate and must be at least 1"),
        (
            [*RUN, "--input", "gallery", "--classify", "猫", "--with-image", "a.png"],
            "--classify goes without --with-image",
        ),
        ([*RUN, "--input", "gallery", "--ask", "猫？", "--with-image", "a.png"], "--ask goes without --classify and"),
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
    assert code == 0 and "--query 红底，左边一只猫 --gallery photos" in out


def test_files_are_told_by_their_endings(home: Path) -> None:
    names = [path.name for path in media.find_files(home / "gallery", (IMAGE, TEXT))]
    assert names == ["a.png", "b.png", "broken.jpg", "c.png", "words.txt"]
    assert media.read_file(home / "gallery" / "a.png", tiny_model()).content.shape == (8, 8, 3)


def test_no_picture_of_an_earlier_answer_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve, then of four; what is no picture of ours does."""
    monkeypatch.setattr(answers, "read_closely", lambda model, subjects: subjects)
    settings = SimpleNamespace(eval=SimpleNamespace(image_generation=SimpleNamespace(rank_by="embedding")))
    (tmp_path / "generated-by-hand.png").touch()
    for count in (12, 4):
        scores = [1 - rank / 20 for rank in range(count)]
        found = SimpleNamespace(
            images=[np.zeros((8, 8, 3), np.uint8)] * count, scores=np.array(scores), known_scores=scores
        )
        model = SimpleNamespace(config=settings, generate_image=lambda _, made=found: [made])
        answers.generate(model, SimpleNamespace(name="一只猫"), tmp_path)
        numbered = {f"generated-{rank}.png" for rank in range(1, count + 1)}
        assert {path.name for path in tmp_path.glob("*.png")} == {*numbered, "generated.png", "generated-by-hand.png"}

"""Speech to text and text to image: trained from a pre-trained checkpoint, evaluated, and asked."""

import json
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mindspore as ms
import numpy as np
import pytest
from test_board import images

import eval as eval_command
import infer as infer_command
from src import cli
from src.checkpoints.checkpoint import read_state, save_checkpoint
from src.checkpoints.places import locate
from src.config import (
    Config,
    ConfigError,
    DecodingConfig,
    DenoiseTextConfig,
    EvalConfig,
    ImageGenerationConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
)
from src.data.image_codes import tokenizer_fingerprint, write_codes
from src.data.store import Dataset
from src.inference.image_codes import Encode, encode_split
from src.models.build import build_model
from src.models.image_tokenizer import ImageTokenizer
from src.runtime import setup
from src.training.trainer import Trainer
from tests.conftest import CHARACTERS, png, tiny_dataset
from tests.oracles import randomise, run_mode, tiny_model

TASKS = {
    "speech_to_text": ObjectivesConfig(
        weights=WeightsConfig(contrastive=0, denoise_text=1),
        denoise_text=DenoiseTextConfig(given=("audio", "image+audio")),
    ),
    "text_to_image": ObjectivesConfig(weights=WeightsConfig(contrastive=0, denoise_image=1)),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A dataset with codes, the tokenizer that made them, and a pre-trained checkpoint, all in one folder."""
    setup(RuntimeConfig(), 1)  # as the command will: the device is named before the first graph runs
    folder = tmp_path_factory.mktemp("tasks")
    settings = EvalConfig(
        split="dev",
        batch_size=4,
        image_generation=ImageGenerationConfig(max_items=4, samples=2),
        decoding=DecodingConfig(beam_size=2),
    )
    config = tiny_dataset(folder, config=replace(Config(model=tiny_model()), seed=1))
    tokenizer = ImageTokenizer(config.model.image_tokenizer)
    randomise(tokenizer, spread=0.3)
    save_checkpoint(folder / "tokenizer" / "checkpoints", 1, replace(config, task="image_tokenizer"), tokenizer)
    datasets = {name: Dataset(config.data.path, name) for name in ("train", "dev")}
    with run_mode("graph"):
        encode = Encode(tokenizer)
        codes = {name: encode_split(encode, dataset, config.model, 5) for name, dataset in datasets.items()}
    fingerprint = tokenizer_fingerprint(folder / "tokenizer")
    write_codes(Path(config.data.path), config.model, fingerprint, datasets, codes)
    config = replace(config, data=replace(config.data, codes=str(folder / "tokenizer")), eval=settings)
    save_checkpoint(folder / "pretrained" / "checkpoints", 1, config, build_model(config))
    rng = np.random.default_rng(0)
    (folder / "image.png").write_bytes(png(rng.integers(0, 256, (20, 30, 3), np.uint8)))
    with wave.open(str(folder / "said.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.integers(-9000, 9000, 1600, np.int16).tobytes())
    return config


@pytest.fixture(scope="module")
def home(config: Config) -> Path:
    return Path(config.data.path).parent


@pytest.fixture(scope="module")
def trained(config: Config, home: Path) -> dict[str, Path]:
    """A run of each task."""
    runs = {}
    with run_mode("graph"):
        for task, objectives in TASKS.items():
            runs[task] = home / task
            train = TrainConfig(
                output=str(runs[task]), init_from=str(home / "pretrained"), steps=2, eval_every=2, log_every=1
            )
            optimizer = OptimizerConfig(warmup_steps=1)
            Trainer(replace(config, task=task, objectives=objectives, train=train, optimizer=optimizer)).run()
    return runs


@pytest.fixture(autouse=True)
def mode_is_kept() -> Iterator[None]:
    before = ms.get_context("mode")
    yield
    ms.set_context(mode=before)


def call(monkeypatch: pytest.MonkeyPatch, command: ModuleType, *arguments: str | Path) -> int:
    """eval.py or infer.py, without compiling: it is asked only few things."""
    monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *map(str, arguments), "runtime.mode=pynative"])
    try:
        cli.run(command.main)
    except SystemExit as error:
        return error.code
    return 0


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.e2e
def test_speech_is_transcribed(
    trained: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = trained["speech_to_text"]
    assert lines(run)[0].keys() >= {"loss/denoise_text"} and not any("loss/contrastive" in line for line in lines(run))
    logged = lines(run)[-1]
    rates = [logged[f"eval/transcription{name}_characters_right"] for name in ("", "_with_image")]
    assert locate(run).name == "step-00000002" and (run / "checkpoints" / "best").exists()
    assert read_state(locate(run))["best"] == pytest.approx(np.mean(rates))
    assert call(monkeypatch, eval_command, "--checkpoint", run) == 0
    assert "transcripts of speech with its image" in capsys.readouterr().out
    metrics = json.loads((run / "eval-dev" / "metrics.json").read_text())
    assert "retrieval" not in metrics and "caption" not in metrics
    for name in ("transcription", "transcription_with_image"):
        assert {"character_error_rate", "word_error_rate"} <= metrics[name].keys() and metrics[name]["clips"] > 0
    assert metrics["transcription_with_image"]["clips"] < metrics["transcription"]["clips"], "one has no image"
    for extra in ([], ["--with-image", home / "image.png"]):
        assert call(monkeypatch, infer_command, "--checkpoint", run, "--input", home / "said.wav", *extra) == 0
        assert "said.wav" in capsys.readouterr().out


@pytest.mark.e2e
def test_images_are_generated_from_text_and_from_speech(
    trained: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = trained["text_to_image"]
    assert lines(run)[0].keys() >= {"loss/denoise_image"} and "eval/generated_text_R@1" in lines(run)[-1]
    assert {"evaluation/generated", "evaluation/generated_album"} <= images(run).keys()
    assert call(monkeypatch, eval_command, "--checkpoint", run, "eval.image_generation.rank_by=matching") == 0
    assert "text found by the image generated from" in capsys.readouterr().out
    metrics = json.loads((run / "eval-dev" / "metrics.json").read_text())
    assert metrics["image_generation"].keys() == {"text", "speech"} and "retrieval" not in metrics
    assert all(0 < found["chance_R@1"] < 1 for found in metrics["image_generation"].values())
    assert (run / "eval-dev" / "figures" / "generated.png").stat().st_size > 1000
    for subject in (CHARACTERS[:4], home / "said.wav"):
        output = home / "generated"
        options = ("--generate", subject, "--samples", 3, "--output", output)
        assert call(monkeypatch, infer_command, "--checkpoint", run, *options) == 0
        made = json.loads((output / "generated.json").read_text(encoding="utf-8"))
        scores = [image["score"] for image in made["images"]]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True) and made["subject"] == str(subject)
        assert all((output / image["file"]).stat().st_size > 50 for image in made["images"])
        assert (output / "generated.png").stat().st_size > 1000
        assert "generated-1.png" in capsys.readouterr().out


def test_mistakes_are_one_line(
    config: Config, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretrained = ("--checkpoint", home / "pretrained")
    image, nothing = home / "image.png", "eval.image_generation.max_items=0"
    for arguments, message in (
        (("--generate", " "), "--generate is empty"),
        (("--generate", home), "is a folder: expected a text, an image or an audio clip"),
        (("--generate", image), "is an image: expected a text or an audio clip"),
        (("--generate", "猫", "--input", image), "give one of --query (or --save-index), --input, --generate"),
        (("--samples", "2"), "--samples goes with --generate"),
        (("--generate", "猫", "model.image_codes=false", nothing), "model.image_codes=false"),
        (("--generate", "猫", "data.codes=''", nothing), "data.codes is empty"),
        (("--with-image", image), "--with-image goes with --input"),
        (("--input", image, "--with-image", image), "holds no audio clip that it could belong to"),
        (("--input", home / "said.wav", "--with-image", home), "is a folder: expected an image"),
        (("--input", home / "said.wav", "--with-image", home / "none.png"), "none.png: no such file"),
    ):
        assert call(monkeypatch, infer_command, *pretrained, *arguments) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_configuration_is_checked(config: Config) -> None:
    for change, message in (
        ({"task": "speech_to_text"}, "objectives.weights.denoise_text: task=speech_to_text needs it"),
        ({"task": "text_to_image"}, "objectives.weights.denoise_image: task=text_to_image needs it"),
        (
            {"task": "speech_to_text", "objectives": ObjectivesConfig(weights=WeightsConfig(denoise_text=1))},
            "reads nothing but audio, image.audio",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)

"""Waveforms from the stored sample to the trained step and to features, with an image's [CLS] on the way."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from mindspore import Tensor

from src.checkpoints.files import read_tensors
from src.checkpoints.places import locate
from src.config import Config, DataConfig, ObjectivesConfig, OptimizerConfig, TrainConfig, WeightsConfig, to_yaml
from src.data.errors import DataError
from src.data.record import Record
from src.data.tokenizer import SPECIALS
from src.data.writer import DatasetWriter
from src.inference import features
from src.models.audio_encoder import AUDIO_ENCODERS
from src.training.trainer import Trainer
from tests.conftest import png
from tests.networks import AUDIO, IMAGE, vit, wav2vec2
from tests.oracles import run_mode, tiny_model
from tools import extract_features

CHARACTERS = "红绿蓝一二三猫狗鱼"


def wave(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3000, length).astype(np.int16)


def test_silence_is_no_danger() -> None:
    encoder = AUDIO_ENCODERS["wav2vec2"](AUDIO)
    waves = np.zeros((3, AUDIO.length), np.int16)
    tokens, mask = encoder(Tensor(waves), Tensor(np.array([0, 1, AUDIO.length], np.int32)))
    assert np.isfinite(tokens.asnumpy()).all()
    assert mask.asnumpy().sum(1).tolist() == [0, 1, encoder.tokens]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus of waveforms and a model that reads them; its images have a [CLS]."""
    folder = tmp_path_factory.mktemp("waves")
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *CHARACTERS]), encoding="utf-8")
    model = tiny_model()
    image = replace(model.image, cls_token=True)
    model = replace(model, text=replace(model.text, vocab=str(folder / "vocab.txt")), image=image, audio=AUDIO)
    rng = np.random.default_rng(0)
    with DatasetWriter(folder / "data", AUDIO, {}) as writer:
        for index in range(16):
            pixels = png(rng.integers(0, 256, (8, 8, 3), np.uint8))
            caption = "".join(rng.choice(list(CHARACTERS), 3))
            clip = wave(index, int(rng.integers(400, AUDIO.length))) if index % 4 else None
            writer.add("train", Record(str(index), pixels, (caption,), (clip,)))
    objectives = ObjectivesConfig(
        weights=WeightsConfig(mam_feature=1.0, mam_contrastive=1.0, mvm_feature=1.0, denoise_text=1.0)
    )
    return Config(
        model=model,
        data=DataConfig(path=str(folder / "data"), batch_size=8),
        objectives=objectives,
        optimizer=OptimizerConfig(warmup_steps=1),
        train=TrainConfig(output=str(folder / "run"), steps=3, log_every=1),
    )


def test_a_run_on_waveforms_learns(config: Config) -> None:
    with run_mode("graph"):
        trainer = Trainer(config)
        before = {name: p.asnumpy().copy() for name, p in trainer.model.parameters_and_names()}
        trainer.run()
    lines = (Path(config.train.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines) and len(lines) >= 3
    after = read_tensors(locate(config.train.output) / "model.safetensors")
    still = {name for name, value in before.items() if np.array_equal(value, after[name])}
    assert not [name for name in still if name.startswith(("audio_encoder", "image_encoder.cls"))]


def test_features_of_vit_and_wav2vec2(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = wav2vec2().eval()
    theirs.save_pretrained(tmp_path / "wav2vec2")
    vit().save_pretrained(tmp_path / "vit")
    samples = wave(1, 1500)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    (tmp_path / "a.png").write_bytes(png(np.full((16, 16, 3), 90, np.uint8)))
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "image": "a.png", "audio": "a.wav", "caption": "猫"}\n')
    parts = {
        "image": replace(IMAGE, init_from=str(tmp_path / "vit")),
        "audio": replace(AUDIO, init_from=str(tmp_path / "wav2vec2")),
    }
    (tmp_path / "c.yaml").write_text(to_yaml(replace(config, model=replace(config.model, **parts))), encoding="utf-8")
    command = ["extract", "--input", str(tmp_path / "manifest.jsonl"), "--config", str(tmp_path / "c.yaml")]
    command += ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(features, "setup", lambda *_: None)  # this process has begun already
    extract_features.main()
    found = np.load(tmp_path / "out" / "audio" / "a.wav.npy")
    padded = np.zeros((1, AUDIO.length), np.float32)
    padded[0, :1500] = (samples - samples.mean(dtype=np.float64)) / samples.std(dtype=np.float64)
    mask = torch.from_numpy((np.arange(AUDIO.length) < 1500).astype(np.int64))[None]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(padded), attention_mask=mask).last_hidden_state[0, : len(found)].numpy()
    assert len(found) == (1500 - 400) // 320 + 1
    np.testing.assert_allclose(found, expected, atol=5e-3)
    monkeypatch.setattr(sys, "argv", [*command, "model.image.init_from="])
    with pytest.raises(DataError, match="model.image.init_from is empty"):
        extract_features.main()

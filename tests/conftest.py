"""A tiny dataset that other tests build on."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.config import (
    AudioEncoderConfig,
    Config,
    CrossEncoderConfig,
    ImageEncoderConfig,
    ModelConfig,
    TextDecoderConfig,
    TextEncoderConfig,
)
from src.data.record import Record
from src.data.tokenizer import SPECIALS
from src.data.writer import DatasetWriter
from src.training.log import RunLog
from src.training.trainer import Trainer

SMALL = {"width": 16, "layers": 1, "heads": 2, "ffn": 32}
MODEL_CONFIG = ModelConfig(
    embed_dim=8,
    text=TextEncoderConfig(max_len=12, **SMALL),
    image=ImageEncoderConfig(size=32, patch=16, **SMALL),
    audio=AudioEncoderConfig(max_frames=32, mels=16, **SMALL),
    cross=CrossEncoderConfig(**SMALL),
    text_decoder=TextDecoderConfig(**SMALL),
)
CHARACTERS = "红绿蓝黄色背景上左右边有一二三只个大小猫狗鱼苹果，。"


ms.runtime.launch_blocking()  # as runtime.setup does on a CPU: pynative tests take a tenth of the time


def pytest_runtest_setup() -> None:
    """Before any fixture: no test finds another's mode, and what it draws, as first weights, is always the same."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_seed(0)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_record(rng: np.random.Generator, index: int, audio: AudioEncoderConfig, size: int) -> Record:
    """A coloured image, a caption (every fourth record two) and their audio clips; some records lack something.

    Of eight records one has no audio, one no text, one no image, and one with two captions one audio only.
    """
    colours = rng.integers(0, 256, (2, 2, 3), np.uint8)
    image = png(np.kron(colours, np.ones((size // 2, size // 2, 1), np.uint8)))

    def caption() -> str:
        return "".join(rng.choice(list(CHARACTERS), rng.integers(4, 12)))

    def clip() -> np.ndarray:
        return rng.integers(1, 256, (rng.integers(8, audio.max_frames + 1), audio.mels), np.uint8)

    captions = tuple(caption() for _ in range(1 + (index % 4 == 3)))
    clips: tuple[np.ndarray | None, ...] = tuple(clip() for _ in captions)
    match index % 8:
        case 0:
            clips = (None,)
        case 1:
            captions = ()
        case 2:
            image = None
        case 7:
            clips = (clips[0], None)
    return Record(f"tiny-{index}", image, captions, clips)


def tiny_dataset(folder: Path, records: int = 24, config: Config | None = None) -> Config:
    """Writes a dataset (train, and dev of half the size) with its vocabulary; returns a config that reads it."""
    config = config or Config()
    vocab = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    vocab.write_text("\n".join([*SPECIALS, *CHARACTERS]) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    with DatasetWriter(folder / "data", config.model.audio, {"name": "tiny"}, shard_records=10) as writer:
        for split, count in (("train", records), ("dev", records // 2)):
            for index in range(count):
                writer.add(split, tiny_record(rng, index, config.model.audio, config.model.image.size))
    model = replace(config.model, text=replace(config.model.text, vocab=str(vocab)))
    data = replace(config.data, path=str(folder / "data"), batch_size=8, prefetch=2)
    return replace(config, model=model, data=data)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config on a tiny dataset that is made once; nobody may change its files."""
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def edit_info(folder: Path, change: dict) -> None:
    """Changes keys of a dataset's dataset.json."""
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def kill_after(whole: Path, step: int, folder: Path) -> None:
    """Copies a finished run as a kill soon after its checkpoint of ``step`` leaves it, in the middle of a line."""
    shutil.copytree(whole, folder)
    checkpoints = folder / "checkpoints"
    kept = f"step-{step:08d}"
    for place in checkpoints.glob("step-*"):
        if place.name > kept:
            shutil.rmtree(place)
    for pointer in ("latest", "best"):
        if (checkpoints / pointer).exists():
            (checkpoints / pointer).write_text(kept + "\n", encoding="utf-8")
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    later = [line for line in lines if json.loads(line)["step"] > step]
    path.write_text("".join(lines[: lines.index(later[1])]) + later[1][:15], encoding="utf-8")


def unlisted(folder: Path) -> Path:
    """A checkpoint as earlier versions wrote it, whose files nobody compares with a manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


def save(trainer: Trainer) -> None:
    """As at the end of a run."""
    trainer._save(RunLog(trainer.folder, 0, 1, False), evaluation_due=False, needed=True)

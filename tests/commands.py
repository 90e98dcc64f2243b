"""Commands as a user calls them: a folder with a run and a gallery, and a call that gives exit code and output."""

import re
import sys
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src import cli
from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, EvalConfig, RerankConfig
from src.models.build import build_model
from tests.conftest import png, tiny_dataset
from tests.oracles import tiny_model

Run = Callable[..., tuple[int, str, str]]


def make_home(folder: Path) -> Path:
    """Fills a folder with run/ (a checkpoint with a dataset) and gallery/ (images, audio, a text, a broken image)."""
    settings = EvalConfig(split="dev", batch_size=4, rerank=RerankConfig(top_k=2, likelihood=1.0))
    config = tiny_dataset(folder / "made", config=Config(model=tiny_model(), eval=settings))
    config = replace(config, runtime=replace(config.runtime, distributed=True))  # one process evaluates all the same
    save_checkpoint(folder / "run" / "checkpoints", 3, config, build_model(config))
    gallery = folder / "gallery"
    gallery.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (gallery / f"{name}.png").write_bytes(png(rng.integers(0, 256, (20, 30, 3), np.uint8)))
        write_wave(gallery / f"{name}.WAV", rng)
    (gallery / "broken.jpg").write_bytes(b"no image")
    (gallery / "words.txt").write_text("一只猫\n", encoding="utf-8")
    (gallery / "notes.pdf").write_bytes(b"something else")
    return folder


def write_wave(path: Path, rng: np.random.Generator, seconds: float = 0.2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.integers(-9000, 9000, int(8000 * seconds), np.int16).tobytes())


@contextmanager
def command(
    main: Callable[[], None], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Run]:
    """Runs a command in the home folder: exit code, what it printed, and its errors."""
    before = ms.get_context("mode")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command.py", *map(str, arguments)])
        try:
            cli.run(main)
            code = 0
        except SystemExit as error:
            code = error.code
        streams = capsys.readouterr()
        return code, streams.out, re.sub(r".*it/s\]|.*\?it/s.*", "", streams.err)

    monkeypatch.chdir(home)
    yield call
    ms.set_context(mode=before)

"""Two CPU ranks train as one process does on their joint batch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_dataset
from test_training import MODEL_CONFIG

from src.config import Config, ObjectivesConfig, OptimizerConfig, TrainConfig, to_yaml
from src.training.checkpoint import MODEL, locate, read_tensors

ROOT = Path(__file__).parent.parent
STEPS = 3


def write_config(folder: Path, name: str, base: Config, batch_size: int) -> Path:
    """A run whose losses do not depend on how the joint batch is cut."""
    config = replace(
        base,
        objectives=ObjectivesConfig(contrastive=1.0, denoise_text=1.0),
        data=replace(base.data, batch_size=batch_size),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1, clip_norm=100.0),
        train=TrainConfig(output=str(folder / name), steps=STEPS, log_every=1, save_every=STEPS),
    )
    path = folder / f"{name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


@pytest.mark.e2e
def test_two_ranks_equal_one_process(tmp_path):
    base = tiny_dataset(tmp_path, config=Config(model=MODEL_CONFIG))
    two, one = write_config(tmp_path, "two", base, 4), write_config(tmp_path, "one", base, 8)
    environment = os.environ | {"DEVICE_TARGET": "CPU", "RANK_SIZE": "2", "CONFIG": str(two), "PYTHON": sys.executable}
    launcher = ["bash", str(ROOT / "scripts" / "run_distributed_ascend.sh")]
    done = subprocess.run(launcher, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    command = [sys.executable, "train.py", "--config", str(one)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

    expected = read_tensors(locate(tmp_path / "one") / MODEL)
    found = read_tensors(locate(tmp_path / "two") / MODEL)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5, err_msg=name)

"""Runs on several ranks of this machine, for tests that compare them with one process.

Such a file is marked ``pytestmark = pytest.mark.ranks``: ranks that share one core take minutes to find each other.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from mindspore import nn

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import OPTIMIZER, read_tensors
from src.checkpoints.places import locate
from src.config import Config, to_yaml
from src.files import ROOT
from src.models.build import build_model


def launch(config: Config, folder: Path, *arguments: str) -> None:
    """Two ranks, as a user starts them."""
    path = folder / "two.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    environment = os.environ | {"DEVICE_TARGET": "CPU", "RANK_SIZE": "2", "CONFIG": str(path), "PYTHON": sys.executable}
    launcher = ["bash", str(ROOT / "scripts" / "run_distributed_ascend.sh"), *arguments]
    _run(launcher, environment, folder)


def start_ranks(script: str, folder: Path, ranks: int) -> None:
    """Runs a script, whose main function ``cli.run`` calls, with a folder on several ranks."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, str(ROOT / "tools" / "launch_ranks.py"), "--log_dir", str(folder / "logs")]
    launcher += ["--worker_num", str(ranks), "--master_port", str(port)]
    _run([*launcher, script, str(folder)], environment, folder)


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def saved_start(folder: Path, config: Config, model: nn.Cell | None = None) -> str:
    """A checkpoint that all runs of a test start from: seeds give each process other weights."""
    save_checkpoint(folder / "checkpoints", 0, config, model or build_model(config))
    return str(folder / "checkpoints" / "step-00000000")


def assert_same_files(run: Path, expected: dict[str, dict[str, np.ndarray]]) -> None:
    """The latest checkpoint of a run holds these tensors, by file."""
    for file, arrays in expected.items():
        found = read_tensors(locate(run) / file)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            near = {"rtol": 0, "atol": 1e-5} if file != OPTIMIZER else {"rtol": 1e-3, "atol": 1e-6}
            np.testing.assert_allclose(found[name], array, err_msg=name, **near)

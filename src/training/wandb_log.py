"""Weights & Biases, for those who want a run there (train.wandb): it is imported only then, and never ends a run."""

import importlib.util
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Config, ConfigError
from src.data.decoding import brief
from src.files import write_text
from src.report.diagnosis import Finding
from src.training.board import Shown

NAME = "wandb-run.txt"  # in the run folder: the id by which a resumed run goes on as the same one
PATIENCE = 60  # seconds that the end of a run waits for what is still to be sent


def require_wandb(config: Config) -> None:
    """Before anything is built, on every rank.

    Raises:
        ConfigError: train.wandb is set, and the package is not installed.
    """
    if not config.train.wandb:
        return
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder of that name, as the package itself leaves one, is no package
        raise ConfigError(
            f"train.wandb={config.train.wandb}: Weights & Biases is not installed: "
            "pip install -r requirements-wandb.txt, or leave train.wandb empty"
        )


class WandbLog:
    """A run of Weights & Biases. Whatever fails is said once, and the training goes on without it.

    Args:
        config: the run's; train.wandb is the project.
        say: tells the user a line.
        begins: whether the run begins: it is then another one than what was begun before in its folder.
    """

    def __init__(self, config: Config, say: Callable[[str], None], begins: bool) -> None:
        self.say, self.run = say, None
        self._attempt(self._begin, config, begins)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers by name. Steps before the last one, which a resumed run takes again, are not taken a second time."""
        if self.run is not None:
            self._attempt(self.run.log, dict(metrics), step=step)

    def show(self, step: int, shown: Shown) -> None:
        """Images alone: texts are in TensorBoard."""
        if self.run is not None and shown.images:
            self._attempt(self._show, step, shown.images)

    def warn(self, found: Finding) -> None:
        if self.run is not None:
            self._attempt(self.run.alert, title=found.name, text=f"step {found.step}: {found.figure}")

    def close(self) -> None:
        """Ends the run; without a connection it waits a minute at most, and what was not sent stays on the disk."""
        if self.run is None:
            return
        run = self.run
        ending = threading.Thread(target=self._attempt, args=(run.finish,), name="wandb", daemon=True)
        ending.start()
        ending.join(PATIENCE)
        if ending.is_alive():
            self.say(f"not all is sent to Weights & Biases after {PATIENCE} s: wandb sync {run.dir}")

    def _begin(self, config: Config, begins: bool) -> None:
        import wandb

        folder = Path(config.train.output)
        known = folder / NAME
        if begins or not known.exists():
            write_text(known, secrets.token_hex(4))
        self.image = wandb.Image
        self.run = wandb.init(
            project=config.train.wandb,
            name=folder.name,
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=asdict(config),
        )

    def _show(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.run.log({tag: self.image(pixels) for tag, pixels in images.items()}, step=step)

    def _attempt(self, action: Callable[..., object], *args: Any, **options: Any) -> None:
        try:
            action(*args, **options)
        except Exception as error:  # no connection, no account, a full disk, another version of it
            self.run = None
            self.say(f"not logged to Weights & Biases: {brief(error)}: training goes on")

"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard's events, a progress bar. None of them ends it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.cli import CarelessStream
from src.config import Config
from src.data.decoding import brief
from src.files import json_line, write_bytes
from src.report.diagnosis import Finding, Watch
from src.report.log_lines import read_lines
from src.training.board import Shown, write_points
from src.training.wandb_log import WandbLog

MOST_EVENTS = 256 << 20  # bytes of a run's events at which no more images are added to them


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """PyTorch cannot be imported meanwhile, unless it is there already.

    TensorBoard's library would import it where it is installed, for more than a second, to name a type of no use here.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]


class RunLog:
    """Writes the metrics of a run; on ranks other than 0 it is silent.

    Args:
        folder: run folder.
        first_step, steps: where the run begins and ends; later records of an interrupted run are dropped.
        active: False on every rank but the first.
        config: of the run; with it, what goes wrong in what is logged is said (:mod:`src.report.diagnosis`), and
            Weights & Biases has it all if train.wandb is set.
        evaluates_again: the evaluation after ``first_step`` will be repeated: what it logged is dropped as well.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        steps: int,
        active: bool,
        config: Config | None = None,
        evaluates_again: bool = False,
    ) -> None:
        self.active = active
        if not active:
            return
        self.watch = Watch(config) if config else None
        self.path = folder / "metrics.jsonl"
        self._keep_until(first_step, evaluates_again)
        self.waiting: list[bytes] = []  # lines that are not written yet
        self.failing = self.full = False
        with _without_torch():
            from src.training.events import Events  # here: only training needs it

        self.events = Events(folder / "tensorboard", first_step)
        # the first step compiles its graphs, about a minute: the bar says so, and counts the rate from then on
        shown = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "file": CarelessStream(sys.stderr)}
        self.bar = tqdm(total=steps, initial=first_step, **shown)
        self.bar.set_description("compiling")
        self.compiling = True
        self.wandb = WandbLog(config, self.say, first_step == 0) if config and config.train.wandb else None

    def _keep_until(self, step: int, evaluates_again: bool) -> None:
        """Drops what a killed run logged behind the checkpoint from which it goes on; what cannot be read is told."""
        if not self.path.exists():
            return
        lines, damaged = read_lines(self.path.read_bytes() if step else b"")
        kept = [
            line
            for line in lines
            if line.content["step"] < step
            or (line.content["step"] == step and ("loss" in line.content or not evaluates_again))
        ]
        write_bytes(self.path, b"".join(line.raw for line in kept))
        for line in kept:
            self._find(line.content)  # it was said when it was logged
        if damaged:
            print(f"note: {self.path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)

    def advance(self) -> None:
        if self.active:
            if self.compiling:
                self.compiling = False
                self.bar.set_description_str("training", refresh=False)
                self.bar.initial = self.bar.n + 1
                self.bar.unpause()  # as if it had begun now
            self.bar.update()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs; a disk that does not take it is told once, and costs the run nothing but TensorBoard's record."""
        if not self.active:
            return
        if "loss" in metrics:
            self.bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
        line = {"step": step, **metrics}
        self.waiting.append(json_line(line) + b"\n")
        self._write_out(step, metrics)
        if self.wandb:
            self.wandb.log(step, metrics)
        for found in self._find(line):
            self.say(f"step {found.step}: warning: {found.name}: {found.figure}. {found.advice}")
            if self.wandb:
                self.wandb.warn(found)

    def _find(self, line: dict[str, Any]) -> list[Finding]:
        """What goes wrong by this line; a mistake in looking for it costs a run its warnings alone."""
        if self.watch is None:
            return []
        try:
            return self.watch.add(line)
        except Exception as error:
            print(f"note: no more warnings: {brief(error)}", file=CarelessStream(sys.stderr), flush=True)
            self.watch = None
            return []

    def _write_out(self, step: int, metrics: dict[str, Any]) -> None:
        try:
            self._write_lines()
            self.events.scalars(step, metrics)
        except OSError as error:
            if not self.failing:
                self.say(f"step {step}: cannot log in {self.path.parent} ({brief(error)}): training goes on")
            self.failing = True
            return
        if self.failing:
            self.say(f"step {step}: {self.path} is whole again")
        self.failing = False

    def _write_lines(self) -> None:
        """Appends what waits. Where not all of it finds room nothing is left of it, so that no line is cut."""
        # opened for each line: a mount that went and came back has another file
        with open(self.path, "ab", buffering=0) as file:
            end, data = file.seek(0, os.SEEK_END), b"".join(self.waiting)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise
        self.waiting.clear()

    def show(self, step: int, shown: Shown) -> None:
        """Images, texts and embeddings in TensorBoard; a run that has filled its part of the disk adds no more images.

        What cannot be written is told, and lost.
        """
        if not self.active:
            return
        if self.wandb:
            self.wandb.show(step, shown)
        folder = self.events.folder
        try:
            if self.events.size < MOST_EVENTS:
                self.events.shown(step, shown)
            elif not self.full:
                self.full = True
                self.say(f"step {step}: {folder} holds {MOST_EVENTS >> 20} MiB: no more images and texts in it")
            if shown.points is not None:
                write_points(folder, shown.points)
        except Exception as error:  # also an image that cannot be encoded
            self.say(f"step {step}: not shown in {folder}: {brief(error)}")

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text, file=CarelessStream(sys.stdout))

    def close(self) -> None:
        if self.active:
            if self.wandb:
                self.wandb.close()
            self.bar.close()
            self.events.close()

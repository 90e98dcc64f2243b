"""Kills a training at random moments, lets it go on, and compares all its losses with an uninterrupted run's.

    python -m benchmarks.kill --times 100
    python -m benchmarks.kill --times 10 --ranks 1

Each run is a real ``train.py`` on a small corpus, with dropout, an average of the weights, checkpoints every 3 steps
and evaluations every 6. It is started again with ``--resume=auto`` until it is through, and then the next run begins;
runs on one rank and on two take turns. SIGKILL hits all processes at once, as when a machine dies, at a moment that is
uniform over the time that a start takes. A loss that differs in its last bit is an error.
"""

import argparse
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import cli
from src.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
    to_yaml,
)
from src.config.model import AudioEncoderConfig, CrossEncoderConfig, ImageEncoderConfig, TextEncoderConfig
from src.config.paths import path_setting
from src.data.record import Record
from src.data.tokenizer import SPECIALS
from src.data.writer import DatasetWriter
from src.files import ROOT
from src.launch.processes import descendants, is_alive, send
from src.report.tables import table
from src.training.pace import TIMINGS

RECORDS, FRAMES, MELS, SIDE = 26, 24, 8, 16
CHARACTERS = "红蓝猫狗左右一二"
GRACE = 120.0  # seconds in which a start that is not killed must be through


class KillError(RuntimeError):
    """A run that a kill has changed or ended."""


@dataclass
class Tally:
    """What kills have cost."""

    kills: int = 0
    runs: int = 0
    steps_lost: int = 0  # taken, and taken again
    checkpoints_lost: int = 0  # the latest one was not usable
    in_saving: int = 0  # kills that left an unfinished checkpoint behind

    def row(self, ranks: int) -> list[str]:
        numbers = (self.kills, self.runs, self.steps_lost, self.in_saving, self.checkpoints_lost)
        return [f"{ranks} rank{'s' * (ranks > 1)}", *map(str, numbers)]


@dataclass
class Victim:
    """A training that is killed again and again.

    Args:
        config: its YAML file.
        ranks: 1, or that many through the launcher.
        folder: where it runs; its run folder is ``run`` below.
    """

    config: Path
    ranks: int
    folder: Path
    tally: Tally = field(default_factory=Tally)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self) -> subprocess.Popen:
        self.folder.mkdir(exist_ok=True)
        words = ["--resume=auto", path_setting("train.output", self.run)]
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(self.config), *words]
        environment = dict(os.environ)
        if self.ranks > 1:
            command = ["bash", str(ROOT / "scripts" / "run_distributed_ascend.sh"), *words]
            environment |= {"CONFIG": str(self.config), "RANK_SIZE": str(self.ranks)}
            environment |= {"DEVICE_TARGET": "CPU", "PYTHON": sys.executable}
        output = open(self.folder / "output.txt", "ab")  # noqa: SIM115 - closed with the process
        options = {"stdout": output, "stderr": output, "cwd": self.folder, "env": environment}
        # who runs in a shell's background is deaf to SIGINT, and its children with it
        hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with output:
            return subprocess.Popen(command, start_new_session=True, preexec_fn=hear, **options)

    def losses(self) -> list[dict[str, object]]:
        """Every logged line, but what depends on the clock."""
        if not (self.run / "metrics.jsonl").exists():
            return []
        lines = (self.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:  # the kill cut it short
                continue
        return [{name: value for name, value in line.items() if name not in TIMINGS} for line in found]

    def finish(self) -> list[dict[str, object]]:
        """Runs to the end without a kill; its losses.

        Raises:
            KillError: it does not get there.
        """
        process = self.start()
        try:
            code = process.wait(GRACE * self.ranks)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            code = "none in time"
        if code:
            raise KillError(f"exit code {code}:\n{(self.folder / 'output.txt').read_text(errors='replace')[-2000:]}")
        return self.losses()

    def kill_after(self, seconds: float) -> bool:
        """Starts it and kills it; False if it was through, and exits well, before.

        Raises:
            KillError: it failed by itself.
        """
        process = self.start()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            self._count()
            return True
        if code:
            raise KillError(f"exit code {code}:\n{(self.folder / 'output.txt').read_text(errors='replace')[-2000:]}")
        return False

    def _count(self) -> None:
        tally, checkpoints = self.tally, self.run / "checkpoints"
        tally.kills += 1
        tally.in_saving += any(checkpoints.glob(".writing-*"))
        latest = checkpoints / "latest"
        saved = int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0
        tally.steps_lost += max(0, max([int(line["step"]) for line in self.losses()], default=0) - saved)

    def compare(self, expected: Sequence[dict[str, object]]) -> None:
        """Raises KillError unless the finished run's losses are the uninterrupted one's; makes room for the next."""
        found = self.losses()
        for ours, theirs in zip(found, expected, strict=False):
            if ours != theirs:
                raise KillError(f"a killed run differs from the uninterrupted one:\n{ours}\n{theirs}")
        if len(found) != len(expected):
            raise KillError(f"a killed run logged {len(found)} lines, the uninterrupted one {len(expected)}")
        output = (self.folder / "output.txt").read_text(errors="replace")
        self.tally.checkpoints_lost += output.count("is used instead")
        self.tally.runs += 1
        shutil.rmtree(self.run)
        (self.folder / "output.txt").unlink()


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, whatever sessions they have made for themselves."""
    process.send_signal(signal.SIGSTOP)  # so that it starts nothing more
    pids = {process.pid, *descendants(process.pid)}
    send(pids, signal.SIGKILL)
    process.wait()
    while any(map(is_alive, pids)):
        time.sleep(0.02)


def small_model(vocab: str) -> ModelConfig:
    """A network that is trained in moments, with dropout."""
    section = {"width": 8, "heads": 2, "ffn": 16, "layers": 1, "dropout": 0.1}
    return ModelConfig(
        embed_dim=8,
        text=TextEncoderConfig(**section, vocab=vocab, max_len=10),
        image=ImageEncoderConfig(**section, size=SIDE, patch=8),
        audio=AudioEncoderConfig(**section, mels=MELS, max_frames=FRAMES, stride=4),
        cross=CrossEncoderConfig(**section),
    )


def make_corpus(folder: Path) -> Path:
    """Writes a small corpus and the configuration of a run on it; returns the latter's file."""
    rng, vocab = np.random.default_rng(0), folder / "vocab.txt"
    vocab.write_text("\n".join([*SPECIALS, *CHARACTERS]) + "\n", encoding="utf-8")
    model = small_model(str(vocab))
    with DatasetWriter(folder / "data", model.audio, {"name": "kill"}, shard_records=10) as writer:
        for split, count in (("train", RECORDS), ("dev", 8)):
            for index in range(count):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
                caption = "".join(rng.choice(list(CHARACTERS), 6))
                clip = rng.integers(1, 256, (FRAMES, MELS), np.uint8)
                writer.add(split, Record(f"{split}-{index}", buffer.getvalue(), (caption,), (clip,)))
    # without pictures for TensorBoard, which would take most of the time of so small a run
    settings = {"steps": 24, "log_every": 1, "save_every": 3, "eval_every": 6, "ema_decay": 0.9, "log_samples": False}
    config = Config(
        task="retrieval",
        model=model,
        data=DataConfig(path=str(folder / "data"), batch_size=4, workers=1, eval_split="dev"),
        objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, mlm=1.0)),
        optimizer=OptimizerConfig(warmup_steps=2),
        runtime=RuntimeConfig(mode="pynative"),
        train=TrainConfig(**settings),
    )
    path = folder / "kill.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def kill_runs(folder: Path, times: int, ranks: Sequence[int], seed: int = 0) -> dict[int, Tally]:
    """Kills ``times`` times, by turns with so many ranks.

    Raises:
        KillError: a run did not come through, or not with the same losses.
    """
    rng, config = random.Random(seed), make_corpus(folder)
    victims, expected, seconds = {}, {}, {}
    for count in ranks:
        place = folder / f"{count}"
        place.mkdir()
        victims[count] = victim = Victim(config, count, place)
        began = time.monotonic()
        expected[count] = victim.finish()
        seconds[count] = time.monotonic() - began
        if len(expected[count]) < 24:
            raise KillError(f"the uninterrupted run logged {len(expected[count])} lines only")
        victim.compare(expected[count])
        victim.tally.runs = 0
    with tqdm(total=times, unit="kill") as bar:
        turn = 0
        while sum(victim.tally.kills for victim in victims.values()) < times:
            victim = victims[ranks[turn % len(ranks)]]
            turn += 1
            if victim.kill_after(rng.uniform(0, seconds[victim.ranks])):
                bar.update()
            else:
                victim.compare(expected[victim.ranks])
    for victim in victims.values():  # those that are still under way
        victim.finish()
        victim.compare(expected[victim.ranks])
    return {count: victim.tally for count, victim in victims.items()}


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, metavar="N", help="kills in all (default: 20)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], metavar="N", help="by turns (default: 1 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tallies = kill_runs(Path(folder), args.times, args.ranks, args.seed)
    head = ["", "kills", "runs", "steps lost", "while saving", "checkpoints lost"]
    print(table([tally.row(count) for count, tally in tallies.items()], head))
    print("every run's losses, metrics and rates are those of the uninterrupted one, to the last bit")


if __name__ == "__main__":
    cli.run(main)

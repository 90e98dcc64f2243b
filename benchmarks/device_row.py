"""What the rows of :mod:`benchmarks.device_step` share: a job from the standard input, an outcome into a file.

A row's process loads its framework first and then waits for its job, so that it can be started while the row before it
is timed.
"""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from src.config import Config, load_config

MIB_A_GIB, LONGEST = 1024, 150
QUERY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Job:
    """One row, or (``saves``) the weights and the batch that the rows of a size start from."""

    path: str  # of the configuration
    settings: tuple[str, ...]  # its key=value changes
    folder: str  # of the size's weights and batch
    outcome: str  # file for an Outcome or an error, as JSON
    device: str = "CPU"
    precision: str = "fp32"
    tf32: bool = False
    compiled: bool = False
    warm_up: int = 5
    rounds: int = 20
    saves: bool = False

    @property
    def weights(self) -> Path:
        return Path(self.folder, "weights.npz")

    @property
    def batch(self) -> Path:
        return Path(self.folder, "batch.npz")

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "GPU" else "cpu"

    def config(self, *more: str) -> Config:
        """The run's configuration, with more ``key=value`` changes."""
        return load_config(self.path, (*self.settings, *more))


@dataclass(frozen=True)
class Prepared:
    """A step that returns its total loss when the device is done, and the most bytes that tensors have taken."""

    step: Callable[[], float]
    allocated: Callable[[], int]


@dataclass(frozen=True)
class Outcome:
    """What a row found."""

    first: float  # seconds of the first step, compilation included
    step: float  # seconds of a step, median
    loss: float  # total, of the first step
    allocated: float = 0.0  # GiB of tensors at most; 0 where unknown
    held: float = 0.0  # GiB of the device that the process holds, libraries included; 0 where unknown


def measure(prepare: Callable[[Job], Prepared], job: Job) -> Outcome:
    """The first step, steps that are not counted, and the rounds."""
    before = used_memory(job.device)
    prepared = prepare(job)
    seconds = []
    for number in range(1 + job.warm_up + job.rounds):
        began = time.perf_counter()
        loss = prepared.step()
        seconds.append(time.perf_counter() - began)
        if number == 0:
            first = loss
    held = used_memory(job.device) - before  # neither framework gives back what it has taken
    return Outcome(seconds[0], median(seconds[1 + job.warm_up :]), first, prepared.allocated() / 2**30, held)


def used_memory(device: str) -> float:
    """GiB in use on the first GPU by all processes; 0 on a CPU or where no nvidia-smi answers."""
    if device != "GPU":
        return 0.0
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0.0
    return float(answer.split()[0]) / MIB_A_GIB


def main(prepare: Callable[[Job], Prepared], save_start: Callable[[Job], None] | None = None) -> None:
    """Reads a job, runs it, and leaves what it found, or the error in one line."""
    line = sys.stdin.readline()
    if not line:  # the row is not wanted any more
        return
    job = Job(**json.loads(line))
    try:
        if job.saves:
            save_start(job)
            found = {}
        else:
            found = asdict(measure(prepare, job))
    except Exception as error:  # whatever it is costs a line of the table
        traceback.print_exc()
        found = {"error": shorten(f"{type(error).__name__}: {error}")}
    Path(job.outcome).write_text(json.dumps(found))


def shorten(message: str) -> str:
    """The beginning of a message on one line."""
    message = " ".join(message.split())
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"

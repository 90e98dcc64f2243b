"""What each switch of the training step costs: time, peak memory and compilation, beside the plain step.

    python -m benchmarks.switches
    python -m benchmarks.switches --config config/pretrain/demo.yaml --rounds 20 data.batch_size=32

Every row is a process of its own. All are compiled first, one after the other, and then take turns, so that whatever
else the machine does meets them alike; a time is the median of the rounds.
"""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median

import numpy as np

from benchmarks.batch import PARTS, make_batch
from benchmarks.rounds import PEAK_SIZE, WARM_UP
from src import cli
from src.errors import UserError
from src.report.tables import table

SWITCHES = {
    "plain": (),
    "train.accumulate=2": ("train.accumulate=2",),
    "train.accumulate=4": ("train.accumulate=4",),
    "train.ema_decay=0.999": ("train.ema_decay=0.999",),
    "runtime.recompute=true": ("runtime.recompute=true",),
    "dropout of 0.1 in every part": tuple(f"model.{part}.dropout=0.1" for part in PARTS),
    "optimizer.name=adamw": ("optimizer.name=adamw",),
    "runtime.precision=fp16": ("runtime.precision=fp16",),
}


@dataclass(frozen=True)
class Compiled:
    """The first step of a row: seconds, and its total loss."""

    seconds: float
    loss: float


def run_row(path: str, settings: tuple[str, ...], channel: Connection) -> None:
    """Compiles a step, then takes one whenever it is asked to; runs in a process of its own."""
    from benchmarks.mindspore_step import training_step
    from src import runtime
    from src.config import load_config
    from src.models.build import build_model

    try:
        config = load_config(path, settings)
        runtime.setup(config.runtime, config.seed)
        step, batch = training_step(build_model(config), config), make_batch(config)
    except UserError as error:
        channel.send(error)
        return

    def take() -> tuple[float, float]:
        began = time.perf_counter()
        step(batch)
        loss = step.result().losses["total"]
        return time.perf_counter() - began, loss

    channel.send(Compiled(*take()))
    while channel.recv():
        channel.send(take()[0])
    channel.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


@contextmanager
def row(path: str, settings: tuple[str, ...]) -> Iterator[tuple[Connection, Compiled]]:
    """A compiled row that waits for its turns.

    Raises:
        UserError: the configuration does not allow it.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_row, args=(path, settings, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found = ours.recv()
        if isinstance(found, UserError):
            raise found
        yield ours, found
    finally:
        process.join(timeout=10)


def matrix_product() -> float:
    """GFLOP/s of NumPy."""
    square = np.random.default_rng(0).standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32)
    began = time.perf_counter()
    square @ square
    return 2 * PEAK_SIZE**3 / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--config", default="config/pretrain/demo.yaml", metavar="FILE", help="of the step")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each row that are counted")
    parser.add_settings()
    args = parser.parse_intermixed_args()
    with ExitStack() as stack:
        rows = {}
        for name, settings in SWITCHES.items():
            rows[name] = stack.enter_context(row(args.config, (*args.settings, *settings)))
            print(f"{name}: compiled", flush=True)
        times: dict[str, list[float]] = {name: [] for name in rows}
        products = []
        for number in range(WARM_UP + args.rounds):
            for name, (channel, _) in rows.items():
                channel.send(True)
                seconds = channel.recv()
                if number >= WARM_UP:
                    times[name].append(seconds)
            products.append(matrix_product())
        lines, plain = [], median(times["plain"])
        for name, (channel, compiled) in rows.items():
            channel.send(False)
            taken = median(times[name])
            lines.append(
                (name, f"{compiled.seconds:.0f}", f"{compiled.loss:.4f}", f"{1e3 * taken:.0f}", f"{taken / plain:.2f}")
                + (f"{channel.recv():.2f}",)
            )
    heads = ("switch", "first step (s)", "first loss", "step (ms)", "of plain", "peak memory (GiB)")
    print(f"\n{table(lines, heads)}\n{args.rounds} rounds; matrix product {median(products):.0f} GFLOP/s")


if __name__ == "__main__":
    cli.run(main)

"""Times a pre-training step on an accelerator, in MindSpore and in PyTorch, in several precisions.

    python -m benchmarks.device_step
    python -m benchmarks.device_step --sizes demo --rows mindspore,eager
    python -m benchmarks.device_step --device CPU --sizes demo --rounds 3

Every row is a process of its own that loads one framework alone, for their CUDA libraries differ. The rows of a size
start from the same weights and the same batch, and run one after another, alone on the device; on a GPU the next row's
process meanwhile loads its framework. A row that fails or takes too long costs its line.

Both frameworks copy the batch to the device in every step, read the loss in every step and update with AdamW; the
clock is read when the device is done. PyTorch chooses its attention kernels freely.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.batch import LARGER, PARTS
from benchmarks.device_row import Job, Outcome, shorten
from src import cli
from src.config import load_config
from src.errors import UserError
from src.report.tables import table

DEMO = "config/pretrain/demo.yaml"
BASE_BATCH = 32
# what the PyTorch twin lacks of base.yaml
PLAIN = tuple(f"model.{part}.dropout=0" for part in PARTS)
PLAIN += ("model.text.norm=pre", "model.text.eps=1e-5", "model.image.eps=1e-5", "model.image.cls_token=false")
SIZES = {
    "demo": (DEMO, ()),
    "larger": (DEMO, LARGER),
    "base": ("config/pretrain/base.yaml", (*PLAIN, f"data.batch_size={BASE_BATCH}")),
}
NOTE = (
    "AdamW throughout; base: pre-norm, no dropout, no [CLS] beside the patches. First: seconds of the first step, "
    "compilation included. Tensors: what the framework's allocator handed out at most. Device: what the process took "
    "of the device, libraries and reserves included."
)
HEADERS = ("size", "step", "samples/s", "ms", "first s", "tensors GiB", "device GiB", "first loss", "row s", "failure")


@dataclass(frozen=True)
class Row:
    """A framework and how it computes."""

    name: str
    module: str  # the program that times it
    precision: str = "fp32"
    tf32: bool = False
    compiled: bool = False
    on_cpu: bool = False  # is worth a CPU's time


MINDSPORE, PYTORCH = "benchmarks.mindspore_step", "benchmarks.torch_step"
ROWS = (
    Row("MindSpore fp32", MINDSPORE, on_cpu=True),
    Row("PyTorch eager fp32", PYTORCH, on_cpu=True),
    Row("MindSpore TF32", MINDSPORE, tf32=True),
    Row("PyTorch eager TF32", PYTORCH, tf32=True),
    Row("MindSpore fp16", MINDSPORE, "fp16"),
    Row("PyTorch eager fp16", PYTORCH, "fp16"),
    Row("PyTorch eager bf16", PYTORCH, "bf16", on_cpu=True),
    Row("PyTorch compiled fp16", PYTORCH, "fp16", compiled=True),
    Row("PyTorch compiled TF32", PYTORCH, tf32=True, compiled=True),
    Row("PyTorch compiled fp32", PYTORCH, compiled=True, on_cpu=True),
)


def environment(module: str) -> dict[str, str]:
    """The variables of a row's process: PyTorch must not find the CUDA libraries that MindSpore needs."""
    variables = dict(os.environ)
    if module == PYTORCH:
        variables.pop("CUDA_HOME", None)
        folders = variables.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
        kept = [folder for folder in folders if folder and not any(Path(folder).glob("libcublas.so.11*"))]
        if kept:
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    return variables


class Process:
    """A row's program: loads its framework, waits for :meth:`run`."""

    def __init__(self, module: str, log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(module),
                start_new_session=True,  # the compiler's helpers can then be ended with it
            )

    def run(self, job: Job, seconds: float) -> dict[str, Any]:
        """What the row found, or ``error``: why it found nothing.

        Args:
            seconds: after which it is ended.
        """
        try:
            self.process.communicate(f"{json.dumps(asdict(job))}\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        finally:
            self.end()
        try:
            return json.loads(Path(job.outcome).read_text())
        except FileNotFoundError:  # it died
            said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            why = f"exit code {self.process.returncode}: {said[-1] if said else 'it said nothing'}"
            return {"error": shorten(why)}

    def end(self) -> None:
        """Ends it with everything that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self.process.stdin.close()
        self.process.wait()


def job_of(row: Row, size: str, folder: Path, device: str, rounds: int) -> Job:
    """What is asked of a row's process; its weights lie in ``folder``."""
    path, settings = SIZES[size]
    outcome = folder / f"{log_name(size, row)}.json"
    job = Job(path, settings, str(folder), str(outcome), device, row.precision, row.tf32, row.compiled, rounds=rounds)
    return replace(job, warm_up=min(job.warm_up, rounds))


def log_name(size: str, row: Row) -> str:
    return f"{size}-{row.name.replace(' ', '-')}"


def save_start(size: str, folder: Path, logs: Path, seconds: float) -> str | None:
    """Has the weights and the batch of a size written to ``folder``; says what went wrong."""
    path, settings = SIZES[size]
    folder.mkdir()
    job = Job(path, settings, str(folder), str(folder / "start.json"), saves=True)
    return Process(MINDSPORE, logs / f"{size}-start.log").run(job, seconds).get("error")


def measure(
    tasks: Sequence[tuple[str, Row]], root: Path, logs: Path, args: argparse.Namespace
) -> Iterator[tuple[str, Row, Outcome | str, float]]:
    """Size, row, what it found, and the seconds that it took, one after another."""
    end = time.monotonic() + args.total
    waiting: dict[int, Process] = {}  # by place in tasks
    failures: dict[str, str | None] = {}

    def take(place: int) -> Process:
        size, row = tasks[place]
        return waiting.pop(place, None) or Process(row.module, logs / f"{log_name(size, row)}.log")

    try:
        for place, (size, row) in enumerate(tasks):
            began = time.monotonic()
            if size not in failures:
                failures[size] = save_start(size, root / size, logs, min(args.seconds, max(0, end - began)))
            limit = min(args.seconds, end - time.monotonic())
            found: Outcome | str
            if limit <= 0:
                found = "not run: no time left of --total"
            elif failures[size]:
                found = f"no weights: {failures[size]}"
            else:
                current = take(place)
                if args.device == "GPU" and place + 1 < len(tasks):  # a CPU has no time for two
                    waiting[place + 1] = take(place + 1)
                answer = current.run(job_of(row, size, root / size, args.device, args.rounds), limit)
                found = answer.get("error") or Outcome(**answer)
            yield size, row, found, time.monotonic() - began
    finally:
        for left in waiting.values():
            left.end()


def cells(size: str, row: Row, found: Outcome | str, seconds: float) -> list[str]:
    """A row of the table."""
    if isinstance(found, str):
        return [size, row.name, *[""] * 6, f"{seconds:.0f}", found]
    samples = load_config(SIZES[size][0], SIZES[size][1]).data.batch_size / found.step
    memory = [f"{value:.2f}" if value else "" for value in (found.allocated, found.held)]
    times = [f"{samples:.1f}", f"{1e3 * found.step:.1f}", f"{found.first:.1f}"]
    return [size, row.name, *times, *memory, f"{found.loss:.5f}", f"{seconds:.0f}", ""]


def chosen(sizes: str, rows: str, device: str) -> list[tuple[str, Row]]:
    """Sizes and rows in their order.

    Args:
        rows: parts of names, comma between them; empty: all that the device is for.
    """
    parts = [part.strip().lower() for part in rows.split(",") if part.strip()]
    names = [size.strip() for size in sizes.split(",")]
    unknown = [size for size in names if size not in SIZES]
    if unknown:
        raise UserError(f"--sizes {unknown[0]}: there are {', '.join(SIZES)}")
    taken = [row for row in ROWS if any(part in row.name.lower() for part in parts)]
    if not parts:
        taken = [row for row in ROWS if device == "GPU" or row.on_cpu]
    if not taken:
        raise UserError(f"--rows {rows}: there are {', '.join(row.name for row in ROWS)}")
    return [(size, row) for size in names for row in taken]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="rows: " + ", ".join(row.name for row in ROWS),
    )
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"which, in this order (default: {','.join(SIZES)})")
    parser.add_argument("--rows", default="", help="parts of rows' names, comma between them (default: all)")
    parser.add_argument("--device", choices=("GPU", "CPU"), default="GPU", help="where the step runs (default: GPU)")
    parser.add_argument("--rounds", type=int, default=20, help="how often a step is timed (default: 20)")
    parser.add_argument("--seconds", type=float, default=120, help="limit of a row (default: 120)")
    parser.add_argument("--total", type=float, default=3600, help="seconds after which no row goes on (default: 3600)")
    parser.add_argument("--logs", metavar="FOLDER", help="keep there what the rows say")
    return parser.parse_args()


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # rows are ended on the way out
    tasks = chosen(args.sizes, args.rows, args.device)
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(args.logs or temporary)
        logs.mkdir(parents=True, exist_ok=True)
        for result in measure(tasks, Path(temporary), logs, args):
            lines.append(cells(*result))
            print("  ".join(filter(None, lines[-1])), flush=True)
    print(f"\n{table(lines, HEADERS)}\n\n{NOTE} {args.rounds} rounds on a {args.device}.")


if __name__ == "__main__":
    cli.run(main)

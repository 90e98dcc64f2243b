"""Times a pre-training step beside the same step in PyTorch: all losses, each of them left out, and beside FLAVA.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --larger

Both frameworks start from the same weights, see the same batch and do the same arithmetic; their losses are compared
before anything is timed. A row of the table is a process of its own, in which all take turns, so that whatever else
the machine does meets them alike. A result is the median of the rounds.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import mindspore as ms
import numpy as np
import torch
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.anf_ir_pb2 import ModelProto
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flava, torch_network, torch_twin
from benchmarks.batch import LARGER, Batch, make_batch
from benchmarks.mindspore_step import mindspore_step
from benchmarks.rounds import PEAK_SIZE, WARM_UP, run_apart
from benchmarks.torch_step import torch_step
from src import cli, runtime
from src.config import OBJECTIVES, Config, load_config
from src.models.build import build_model
from src.objectives.table import active_objectives, needed_fields
from src.report.tables import table

LOSS_TOLERANCE = 1e-3  # relative; two frameworks' float32 sums in different orders

BOOKKEEPING = {"Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem"}  # nodes of a graph that compute nothing

# Images and text alone, as FLAVA has them: what is left of the audio is two frames and a layer.
IMAGE_TEXT = ("contrastive", "mlm", "mvm_code")
NO_AUDIO = (
    "objectives.masking.batch_share=1",
    "model.audio.max_frames=8",
    "model.audio.stride=4",
    "model.audio.layers=1",
)


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    settings: tuple[str, ...]  # key=value changes of the configuration
    stock: bool = False  # MindSpore's own operators in place of the CPU backward
    peer: bool = False  # images and text alone, beside FLAVA
    environment: tuple[tuple[str, str], ...] = ()  # variables that must be set before MindSpore is loaded


@dataclass(frozen=True)
class Result:
    """Seconds of every round (of FLAVA none but beside its peer), and what a step consists of."""

    mindspore: list[float]
    pytorch: list[float]
    matrix_product: list[float]
    flava: list[float]
    gflop: float  # of the matrix products
    operators: int  # of the compiled graph of a step


def measure(variant: Variant, path: str, rounds: int) -> Result:
    """Builds a step in both frameworks and lets them take turns; runs in a process of its own."""
    # MindSpore leaves OMP_NUM_THREADS=1 to the processes that are started from its own: PyTorch would take one core
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = load_config(path, variant.settings)
    runtime.setup(config.runtime, config.seed)
    with patch.object(runtime, "is_cpu", lambda: not variant.stock):
        model = build_model(config)
    twin = torch_network.OPT(config.model, model.vocab_size)
    weights = {key: torch.from_numpy(np.array(value.asnumpy())) for key, value in model.parameters_and_names()}
    twin.load_state_dict(weights)
    batch = make_batch(config, audio=not variant.peer)
    pytorch, gflop = pytorch_step(twin, config, batch)
    step = mindspore_step(model, config)

    def mindspore() -> float:
        step(batch)
        return step.result().losses["total"]

    ours, theirs = mindspore(), pytorch()
    if not abs(ours - theirs) <= LOSS_TOLERANCE * abs(theirs):
        raise RuntimeError(f"{variant.name}: the total loss is {ours} in MindSpore but {theirs} in PyTorch")
    square = torch.randn(PEAK_SIZE, PEAK_SIZE)
    runners = [mindspore, pytorch, lambda: square @ square]
    if variant.peer:
        runners.append(flava_step(config, model.vocab_size, batch))
    return Result(*take_turns(runners, rounds), gflop, count_operators(step.graph))


def take_turns(runners: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of every round of each of four, the last of which may be missing."""
    seconds: list[list[float]] = [[] for _ in range(4)]
    for number in range(WARM_UP + rounds):
        for run, times in zip(runners, seconds, strict=False):
            began = time.perf_counter()
            run()
            if number >= WARM_UP:
                times.append(time.perf_counter() - began)
    return seconds


def count_operators(cell: ms.nn.Cell) -> int:
    """Nodes of a Cell's compiled graph that compute something."""
    graph = ModelProto()
    graph.ParseFromString(_cell_graph_executor.get_optimize_graph_proto(cell))
    return sum(node.op_type not in BOOKKEEPING for node in graph.graph.node)


def pytorch_step(twin: torch.nn.Module, config: Config, batch: Batch) -> tuple[Callable[[], float], float]:
    """The step, and the GFLOP of its matrix products, forward and backward."""
    objectives = torch_twin.Objectives(twin, config)
    tensors = {name: torch.from_numpy(batch[name]) for name in needed_fields(config.objectives)}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objectives(tensors).backward()
    return torch_step(twin, config, lambda: objectives(tensors)), counter.get_total_flops() / 1e9


def flava_step(config: Config, vocab_size: int, batch: Batch) -> Callable[[], float]:
    model = flava.build(config.model, vocab_size)
    return torch_step(model, config, flava.loss_of(model, batch))


def plan(path: str, settings: tuple[str, ...]) -> list[Variant]:
    """The rows of the table."""
    fused = Variant(
        "all losses, graph kernel",
        (*settings, "runtime.graph_kernel=true"),
        environment=(("OMP_WAIT_POLICY", "PASSIVE"),),  # active waiting makes fused kernels twice as slow
    )
    losses = active_objectives(load_config(path, settings).objectives)
    others = [f"objectives.weights.{name}={int(name in IMAGE_TEXT)}" for name in OBJECTIVES]
    return [
        Variant("all losses", settings),
        Variant("all losses, stock operators", settings, stock=True),
        fused,
        *(Variant(f"without {name}", (*settings, f"objectives.weights.{name}=0")) for name in losses),
        Variant("images and text alone", (*settings, *others, *NO_AUDIO), peer=True),
    ]


def measure_apart(variant: Variant, path: str, rounds: int) -> Result:
    """Measures in a new process, in the variant's environment."""
    with patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)  # with the project's own PyTorch takes half as long again
        os.environ.update(variant.environment)
        return run_apart(measure, variant, path, rounds)


def report(results: Mapping[str, Result], size: int) -> str:
    """The table, FLAVA's time, and the peak that the shares are of."""
    peak = 2 * PEAK_SIZE**3 / min(min(result.matrix_product) for result in results.values()) / 1e9
    rows, below = [], f"matrix products at best {peak:.0f} GFLOP/s"
    for name, result in results.items():
        ours, theirs = median(result.mindspore), median(result.pytorch)
        share, ratio = f"{100 * result.gflop / ours / peak:.0f} %", f"{ours / theirs:.2f}"
        row = [name, f"{1e3 * ours:.0f}", f"{size / ours:.0f}", share, result.operators, f"{1e3 * theirs:.0f}", ratio]
        rows.append(row)
        if result.flava:
            peer = median(result.flava)
            below += f"; FLAVA for images and text alone {1e3 * peer:.0f} ms, {ours / peer:.2f} of it here"
    headers = ["step", "ms", "samples/s", "of peak", "operators", "PyTorch ms", "ratio"]
    return f"{table(rows, headers)}\n\n{below}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", default="config/pretrain/demo.yaml", metavar="FILE")
    parser.add_argument("--larger", action="store_true", help="width 256, four layers in every part, batch 32")
    parser.add_argument("--rounds", type=int, default=15, help="how often each step is timed (default: 15)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration")
    args = parser.parse_intermixed_args()
    settings = (*(LARGER if args.larger else ()), *args.settings)
    size = load_config(args.config, settings).data.batch_size
    results = {}
    for variant in plan(args.config, settings):
        results[variant.name] = measure_apart(variant, args.config, args.rounds)
        ours, theirs = median(results[variant.name].mindspore), median(results[variant.name].pytorch)
        print(f"{variant.name}: {1e3 * ours:.0f} ms, PyTorch {1e3 * theirs:.0f} ms", flush=True)
    print(f"\n{report(results, size)}; batch {size}, {args.rounds} rounds")


if __name__ == "__main__":
    cli.run(main)

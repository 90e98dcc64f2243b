"""Trains a few steps at real size on generated samples, saves, resumes and exports, each in a process of its own.

    python -m benchmarks.base_step
    python -m benchmarks.base_step --layers 2 --output /tmp/base
    python -m benchmarks.base_step --config config/pretrain/demo.yaml --batch 96 runtime.recompute=false

Printed are the losses of every step beside those of a guess, seconds, and the peak of a process' memory without what
Python and its libraries take. Every step sees the same batch, so that the losses fall. The resumed process repeats the
last step, with the same masks of dropout.
"""

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.batch import PARTS, make_batch
from benchmarks.rounds import run_apart
from src import cli, runtime
from src.config import Config, load_config

CONFIG, BATCH, STEPS, WARM_UP = "config/pretrain/base.yaml", 2, 6, 3


def peak_memory() -> float:
    """GiB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def prepare(config: Config):
    """The step of a new network."""
    from benchmarks.mindspore_step import training_step
    from src.models.build import build_model

    runtime.setup(config.runtime, config.seed)
    model = build_model(config)
    return model, training_step(model, config)


def advance(step, batch) -> dict[str, float]:
    began = time.perf_counter()
    step(batch)
    losses = step.result().losses
    shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    print(f"{shown}  ({time.perf_counter() - began:.1f} s)", flush=True)
    return losses


def train(config: Config, folder: Path) -> dict[str, float]:
    """All steps; the checkpoint is written before the last one. Returns the last losses."""
    from mindspore import Tensor

    from src.checkpoints.checkpoint import save_checkpoint
    from src.models.opt import count_parameters

    before = peak_memory()
    model, step = prepare(config)
    sizes = {"V": model.vocab_size, "K": config.model.image_tokenizer.codes}
    guesses = ", ".join(f"ln {name} = {math.log(size):.2f}" for name, size in sizes.items())
    print(f"{count_parameters(model)['total'] / 1e6:.0f} M parameters, batch {config.data.batch_size}; {guesses}")
    batch = make_batch(config)
    built = peak_memory()
    step.graph.compile(*[Tensor(batch[name]) for name in step.fields])
    compiled = peak_memory() - built
    for _ in range(1, config.train.steps):
        advance(step, batch)
    peak = peak_memory() - before
    print(f"peak {peak:.2f} GiB, of which the compiler took {compiled:.2f}", flush=True)
    began, trained = time.perf_counter(), peak_memory()
    save_checkpoint(folder / "checkpoints", config.train.steps - 1, config, model, step.state())
    print(f"saved in {time.perf_counter() - began:.0f} s, {peak_memory() - trained:.2f} GiB more", flush=True)
    return advance(step, batch)


def resume(config: Config, folder: Path) -> dict[str, float]:
    """The last step again, from the checkpoint."""
    from src.checkpoints.checkpoint import load_weights
    from src.checkpoints.files import OPTIMIZER, read_tensors, set_parameters
    from src.checkpoints.places import locate

    before, place = peak_memory(), locate(folder)
    model, step = prepare(config)
    load_weights(model, place)
    step.number = config.train.steps - 1  # dropout's masks follow from it
    set_parameters(step.state(), read_tensors(place / OPTIMIZER), place / OPTIMIZER)
    found = advance(step, make_batch(config))
    print(f"resumed; peak {peak_memory() - before:.2f} GiB", flush=True)
    return found


def export(config: Config, folder: Path) -> None:
    from src.export.export import export_graphs
    from src.inference.loading import load_model

    before, began = peak_memory(), time.perf_counter()
    runtime.setup(config.runtime, config.seed)
    stored, model = load_model(folder)
    difference = export_graphs(stored, model, folder / "export", "MINDIR", 1)["max_abs_diff"]
    seconds, peak = time.perf_counter() - began, peak_memory() - before
    print(f"exported in {seconds:.0f} s, off by {difference:.1e} at most; peak {peak:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.base_step", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"samples of a step (default: {BATCH})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"at least 2 (default: {STEPS})")
    parser.add_argument("--layers", type=int, help="of every part (default: the configuration's)")
    parser.add_argument("--output", type=Path, help="keep checkpoint and export here (default: a temporary folder)")
    parser.add_argument("--only-train", action="store_true", help="neither resume nor export")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration")
    args = parser.parse_intermixed_args()
    settings = [f"data.batch_size={args.batch}", f"train.steps={args.steps}", f"optimizer.warmup_steps={WARM_UP}"]
    settings += [f"model.{part}.layers={args.layers}" for part in PARTS if args.layers]
    config = load_config(args.config, [*settings, "runtime.recompute=true", *args.settings])
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        last = run_apart(train, config, folder)
        if args.only_train:
            return
        again = run_apart(resume, config, folder)
        print(f"the last step's loss: {last['total']:.6f}, resumed {again['total']:.6f}")
        run_apart(export, config, folder)


if __name__ == "__main__":
    cli.run(main)

"""Computes again a batch at which a training step was not finite: which loss, which gradients, which samples.

python tools/rerun_batch.py runs/mine/bad_batches/step-00001234-rank-0.npz
python tools/rerun_batch.py runs/mine/bad_batches/step-00001234-rank-0.npz --checkpoint runs/mine@step-00001000

A run keeps such batches beside bad_batches.jsonl. Used are the weights of the latest checkpoint before that step, with
the masks of dropout that it had. If the batch is finite with them, the weights of then are the cause, not the data:
resume with a lower optimizer.lr or clip_norm. If it is not, each sample is tried alone.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

import numpy as np
from tqdm import tqdm

from src import cli
from src.checkpoints.checkpoint import load_checkpoint_config, read_state
from src.checkpoints.files import STATE, CheckpointError
from src.checkpoints.places import locate, saved
from src.data.errors import DataError
from src.inference.loading import load_model
from src.objectives.peers import ALONE
from src.report.tables import table
from src.runtime import setup
from src.tasks import registry
from src.training import bad_batches
from src.training.unfed import without


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("batch", type=cli.user_path, metavar="FILE", help="bad_batches/step-….npz of a run folder")
    parser.add_argument(
        "--checkpoint", type=cli.user_path, metavar="DIR", help="run or checkpoint (default: the latest before it)"
    )
    args = parser.parse_args()
    batch, step, rank = bad_batches.read(args.batch)
    folder = locate(args.checkpoint or before(args.batch.absolute().parents[1], step))
    config = load_checkpoint_config(folder)
    config = replace(config, runtime=replace(config.runtime, mode="pynative", distributed=False))
    setup(config.runtime, config.seed)
    _, model = load_model(folder)
    task, state = registry.get(config.task), read_state(folder) if (folder / STATE).exists() else {}
    absent = {"absent": state.get("absent", ())} if task.weighs else {}
    objectives = task.objectives(model, without(config, state.get("left_out", ())), ALONE, **absent)
    rerun = bad_batches.Rerun(objectives, (config.seed, rank, step - 1))
    print(f"step {step}, rank {rank}, with the weights of {folder}\n")
    print(table([(name, *shown(array)) for name, array in batch.items()], ["batch", "shape", "from", "to", "finite"]))
    found = rerun(batch)
    print("\n" + table([(name, f"{value:.6g}") for name, value in found.losses.items()], ["loss", ""]))
    count = len(found.gradients)
    names = f": {', '.join(found.gradients[:8])}{', …' if count > 8 else ''}" if count else ""
    print(f"\ngradients that are not finite: {count} of {found.trained}{names}")
    if found.finite:
        print("the batch is finite with these weights: those of then are the cause, not its data")
        return
    rows = tqdm(rerun.rows(batch), total=len(batch["sample_id"]), desc="each sample alone", leave=False)
    bad = [row for row, finite in enumerate(rows) if not finite]
    if len(bad) == len(batch["sample_id"]):
        print("no sample alone is finite: the weights are the cause, not the data")
        return
    print("samples that are not finite alone: " + (", ".join(named(task, config, batch, bad)) or "none"))


def before(run: Path, step: int) -> Path:
    """The latest checkpoint of a run before a step."""
    places = [place for place in saved(run) if read_state(place)["step"] < step]
    if not places:
        raise CheckpointError(f"{run} has no checkpoint before step {step}: name one by --checkpoint")
    return max(places, key=lambda place: read_state(place)["step"])


def shown(array: np.ndarray) -> tuple[str, ...]:
    """Shape, range and whether all is finite."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    ends = (f"{end(values[finite]):.6g}" for end in (np.min, np.max)) if finite.any() else ("", "")
    return str(list(array.shape)), *ends, "yes" if finite.all() else f"but {(~finite).sum()}"


def named(task, config, batch: dict[str, np.ndarray], rows: list[int]) -> list[str]:
    """Samples by the names of their records, where the data is still there."""
    ids = batch["sample_id"][rows]
    try:
        sources = task.loader(config, config.data.train_split).sources
        names = [name for name, _ in sources.read(sources.samples[ids, 0])]
    except DataError:
        names = ["of data that is not there"] * len(ids)
    return [f"{number} ({name})" for number, name in zip(ids, names, strict=True)]


if __name__ == "__main__":
    cli.run(main)

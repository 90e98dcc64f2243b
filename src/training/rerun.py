"""A kept batch, computed again: which loss is not finite, which gradients, which samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from tqdm import tqdm

from src.checkpoints.checkpoint import load_checkpoint_config, read_state
from src.checkpoints.files import STATE
from src.checkpoints.places import latest_before, locate
from src.config import Config
from src.data.errors import DataError
from src.inference.loading import load_model
from src.models.dropout import set_key
from src.objectives.peers import ALONE
from src.report.tables import table
from src.runtime import setup
from src.tasks import registry
from src.training import bad_batches
from src.training.bad_batches import BatchError
from src.training.graphs import Gradients
from src.training.layer_rates import unfrozen
from src.training.optimizer import trained_parameters
from src.training.unfed import unfed_parts, without

Arrays = dict[str, np.ndarray]
SHOWN = 8  # names of parameters


@dataclass
class Found:
    """What a batch gives.

    Attributes:
        losses: the total and each loss, by name.
        gradients: names of the parameters whose gradients are not finite.
        trained: how many have one.
    """

    losses: dict[str, float]
    gradients: list[str]
    trained: int

    @property
    def finite(self) -> bool:
        return not self.gradients and all(map(np.isfinite, self.losses.values()))


class _Trained(NamedTuple):
    """In place of an optimiser: what is trained. Gradients stay one a parameter."""

    parameters_: ParameterTuple

    @staticmethod
    def pack(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return gradients


class Rerun:
    """Computes losses and gradients of batches, outside of the compiled graph.

    Args:
        objectives: of the run, for one rank.
        parameters: that it trains.
        mask_seed: of dropout: the run's seed, the rank, and how many steps were taken before.
    """

    def __init__(self, objectives: nn.Cell, parameters: Sequence[Parameter], mask_seed: tuple[int, ...]) -> None:
        self.objectives, self.parameters, self.mask_seed = objectives, parameters, mask_seed
        self.gradients = Gradients(objectives, _Trained(ParameterTuple(parameters)))
        self.gradients.set_train()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Found:
        ms.set_context(mode=ms.PYNATIVE_MODE)
        set_key(*self.mask_seed)
        prepare = getattr(self.objectives, "before_step", None)
        batch = {**batch, **(prepare(batch) if prepare else {})}
        missing = [name for name in self.objectives.fields if name not in batch]
        if missing:
            raise BatchError(f"the batch has no {', '.join(missing)}: a run of another task or configuration kept it")
        tensors = [Tensor(batch[name]) for name in self.objectives.fields]
        losses, gradients, _ = self.gradients(Tensor(1.0, ms.float32), *tensors)
        names = ("total", *self.objectives.names, *getattr(self.objectives, "metrics", ()))
        pairs = zip(self.parameters, gradients, strict=True)
        bad = [parameter.name for parameter, found in pairs if not np.isfinite(found.asnumpy()).all()]
        return Found(dict(zip(names, losses.asnumpy().tolist(), strict=True)), bad, len(self.parameters))

    def rows(self, batch: Mapping[str, np.ndarray]) -> Iterator[bool]:
        """Of each row, whether a batch of nothing but that row is finite."""
        for row in range(len(batch["sample_id"])):
            alone = {name: np.repeat(array[row : row + 1], len(array), 0) for name, array in batch.items()}
            yield self(alone).finite


def rerun(path: Path, checkpoint: Path | None = None) -> None:
    """Computes a kept batch again, and prints what it finds.

    Args:
        checkpoint: whose weights are used; by default the latest of the batch's run before its step.

    Raises:
        BatchError, CheckpointError: there is no such batch or checkpoint, or they do not fit.
    """
    batch, step, rank = bad_batches.read(path)
    folder = locate(checkpoint) if checkpoint else latest_before(path.absolute().parents[1], step)
    config = load_checkpoint_config(folder)
    setup(replace(config.runtime, mode="pynative", distributed=False), config.seed)
    again = _load(config, folder, (config.seed, rank, step - 1))
    print(f"step {step}, rank {rank}, with the weights of {folder}\n")
    print(table([(name, *_shown(array)) for name, array in batch.items()], ["batch", "shape", "from", "to", "finite"]))
    found = again(batch)
    print("\n" + table([(name, f"{value:.6g}") for name, value in found.losses.items()], ["loss", ""]))
    names = ", ".join(found.gradients[:SHOWN]) + (", …" if len(found.gradients) > SHOWN else "")
    print(f"\ngradients that are not finite: {len(found.gradients)} of {found.trained}{names and f': {names}'}")
    print(_verdict(again, found, batch, config))


def _load(config: Config, folder: Path, mask_seed: tuple[int, ...]) -> Rerun:
    """What the run of a checkpoint trains, with its weights."""
    _, model = load_model(folder)
    state = read_state(folder) if (folder / STATE).exists() else {}
    left_out, absent = state.get("left_out", ()), state.get("absent", ())
    objectives = registry.get(config.task).build(model, without(config, left_out), ALONE, absent)
    unfed = unfed_parts(left_out, absent)
    parameters = unfrozen(trained_parameters(model, objectives), config.optimizer.freeze, unfed)
    return Rerun(objectives, parameters, mask_seed)


def _verdict(again: Rerun, found: Found, batch: Arrays, config: Config) -> str:
    if found.finite:
        return "the batch is finite with these weights: those of then are the cause, not its data"
    rows = tqdm(again.rows(batch), total=len(batch["sample_id"]), desc="each sample alone", leave=False)
    bad = [row for row, finite in enumerate(rows) if not finite]
    if len(bad) == len(batch["sample_id"]):
        return "no sample alone is finite: the weights are the cause, not the data"
    return "samples that are not finite alone: " + (", ".join(_named(config, batch, bad)) or "none")


def _shown(array: np.ndarray) -> tuple[str, ...]:
    """Shape, range and whether all is finite."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    ends = (f"{end(values[finite]):.6g}" for end in (np.min, np.max)) if finite.any() else ("", "")
    return str(list(array.shape)), *ends, "yes" if finite.all() else f"but {(~finite).sum()}"


def _named(config: Config, batch: Arrays, rows: list[int]) -> list[str]:
    """Samples by the names of their records, where the data is still there."""
    ids = batch["sample_id"][rows]
    try:
        sources = registry.get(config.task).loader(config, config.data.train_split).sources
        names = [name for name, _ in sources.read(sources.samples[ids, 0])]
    except DataError:
        names = ["of data that is not there"] * len(ids)
    return [f"{number} ({name})" for number, name in zip(ids, names, strict=True)]

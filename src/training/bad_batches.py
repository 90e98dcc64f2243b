"""Batches whose losses or gradients were not finite: told in bad_batches.jsonl, kept, and computed again.

A step that meets one updates nothing (:mod:`src.training.graphs`); what made it so is in the batch or in the weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from src.errors import UserError
from src.files import json_line
from src.models.dropout import set_key
from src.objectives.views import name_tensors

BOOK, FOLDER = "bad_batches.jsonl", "bad_batches"  # of a run folder
MOST_KEPT = 20  # batches of a rank, so that a run which meets nothing else does not fill the disk
ABOUT = ("step", "rank")  # in a kept batch, beside its fields


class BatchError(UserError):
    """A kept batch that cannot be computed again; its message is one line."""


def note(run: Path, step: int, rank: int, batch: Mapping[str, np.ndarray]) -> Path | None:
    """Adds a line to the book of a run folder, and keeps the batch beside it.

    Returns:
        Where the batch is; None where enough of them are kept.

    Raises:
        OSError: it cannot be written.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    place: Path | None = folder / f"step-{step:08d}-rank-{rank}.npz"
    if not place.exists() and len(list(folder.glob(f"*-rank-{rank}.npz"))) >= MOST_KEPT:
        place = None
    else:
        beside = place.with_name(f".writing-{place.name}")
        with open(beside, "wb") as file:
            np.savez(file, step=step, rank=rank, **batch)
        beside.replace(place)
    line = {"step": step, "rank": rank, "samples": batch["sample_id"].tolist(), "batch": place and place.name}
    with open(run / BOOK, "ab") as file:  # ranks share it: a line is one write
        file.write(json_line(line) + b"\n")
    return place


def read(path: Path) -> tuple[dict[str, np.ndarray], int, int]:
    """A kept batch, its step and its rank.

    Raises:
        BatchError: it is none.
    """
    try:
        with np.load(path) as file:
            batch = {name: file[name] for name in file.files}
        return batch, *(int(batch.pop(name)) for name in ABOUT)
    except Exception as error:  # numpy raises anything about a damaged file
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BatchError(f"{path} is no batch that a run has kept ({said})") from None


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


class Rerun:
    """Computes losses and gradients of batches, outside of the compiled graph.

    Args:
        objectives: of the run, for one rank.
        mask_seed: of dropout: the run's seed, the rank, and how many steps were taken before.
    """

    def __init__(self, objectives: nn.Cell, mask_seed: tuple[int, ...]) -> None:
        self.objectives, self.mask_seed = objectives, mask_seed
        objectives.set_train()
        self.parameters = [parameter for parameter in objectives.trainable_params() if parameter.requires_grad]
        self.has_statistics = getattr(objectives, "after_update", None) is not None
        self.gradient = ops.value_and_grad(self._forward, None, ParameterTuple(self.parameters), has_aux=True)

    def _forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        found = self.objectives(name_tensors(self.objectives.fields, tensors))
        losses = ops.stack(found[0] if self.has_statistics else found)
        return losses[0], losses

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Found:
        ms.set_context(mode=ms.PYNATIVE_MODE)
        set_key(*self.mask_seed)
        prepare = getattr(self.objectives, "before_step", None)
        batch = {**batch, **(prepare(batch) if prepare else {})}
        missing = [name for name in self.objectives.fields if name not in batch]
        if missing:
            raise BatchError(f"the batch has no {', '.join(missing)}: a run of another task or configuration kept it")
        (_, losses), gradients = self.gradient(*[Tensor(batch[name]) for name in self.objectives.fields])
        names = ("total", *self.objectives.names, *getattr(self.objectives, "metrics", ()))
        pairs = zip(self.parameters, gradients, strict=True)
        bad = [parameter.name for parameter, found in pairs if not np.isfinite(found.asnumpy()).all()]
        return Found(dict(zip(names, losses.asnumpy().tolist(), strict=True)), bad, len(self.parameters))

    def rows(self, batch: Mapping[str, np.ndarray]) -> Iterator[bool]:
        """Of each row, whether a batch of nothing but that row is finite."""
        for row in range(len(batch["sample_id"])):
            alone = {name: np.repeat(array[row : row + 1], len(array), 0) for name, array in batch.items()}
            yield self(alone).finite

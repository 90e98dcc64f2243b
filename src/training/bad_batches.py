"""Batches whose losses or gradients were not finite: told in bad_batches.jsonl, and kept to be computed again.

A step that meets one updates nothing (:mod:`src.training.graphs`); what made it so is in the batch or in the weights.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.files import json_line, write_bytes

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
    place: Path | None = folder / f"step-{step:08d}-rank-{rank}.npz"
    if not place.exists() and len(list(folder.glob(f"*-rank-{rank}.npz"))) >= MOST_KEPT:
        place = None
    else:
        content = io.BytesIO()
        np.savez(content, step=step, rank=rank, **batch)
        write_bytes(place, content.getvalue())
    line = {"step": step, "rank": rank, "samples": batch["sample_id"].tolist(), "batch": place and place.name}
    with open(run / BOOK, "ab") as file:  # ranks share it: a line is one write
        file.write(json_line(line) + b"\n")
    return place


def forget(run: Path) -> None:
    """Removes what an earlier run in the folder noted and kept."""
    (run / BOOK).unlink(missing_ok=True)
    for place in (run / FOLDER).glob("step-*.npz"):
        place.unlink(missing_ok=True)


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

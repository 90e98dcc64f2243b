"""Batches whose losses or gradients were not finite: told in bad_batches.jsonl, and kept to be looked at.

``tools/rerun_batch.py`` computes one again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.files import json_line

BOOK, FOLDER = "bad_batches.jsonl", "bad_batches"  # of a run folder
MOST_KEPT = 20  # batches of a run, that a run which meets nothing else does not fill the disk


def note(run: Path, step: int, rank: int, batch: Mapping[str, np.ndarray], **about: Any) -> Path | None:
    """Adds a line to the book, and keeps the batch beside it.

    Args:
        run: run folder.
        about: what else is said.

    Returns:
        Where the batch is; None where enough of them are kept, or this one was before.

    Raises:
        OSError: it cannot be written.
    """
    folder = run / FOLDER
    place: Path | None = folder / f"step-{step:08d}-rank-{rank}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if place.exists() or len(list(folder.glob(f"*-rank-{rank}.npz"))) >= MOST_KEPT:
        place = None
    else:
        beside = place.with_name(f".writing-{place.name}")
        with open(beside, "wb") as file:
            np.savez(file, **batch)
        beside.replace(place)
    line = {"step": step, "rank": rank, **about, "samples": batch["sample_id"].tolist()}
    with open(run / BOOK, "ab") as file:  # a line is short: ranks that share the file do not cut each other's
        file.write(json_line(line) + b"\n")
    return place

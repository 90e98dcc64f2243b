"""Zero-shot classes of labelled files: the nearest of the classes' texts is the answer.

After Radford et al. 2021, section 3.1.4: a class is the mean of the unit vectors of its prompts, at length 1.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.config import ConfigError, EvalConfig
from src.data.errors import DataError
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.inference.encode import ROWS
from src.inference.engine import Engine
from src.inference.labelled import Labelled, read_labelled, read_names, read_templates
from src.inference.library import Model
from src.metrics import classes


class ZeroShotEvaluator(Evaluator):
    """Top-1 and top-5, recall of every class and confusion, beside chance."""

    name, reads_split = "zero_shot", False

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        settings = engine.config.eval.zero_shot
        if not settings.path:
            raise ConfigError("eval.zero_shot.path is empty: name a folder with a folder for each class, or a CSV")
        # read at once: a mistake is told before anything is computed
        self.items = read_labelled(Path(settings.path), tuple(settings.given.split("+")))
        self.labels = sorted({item.label for item in self.items})
        self.names, self.templates = read_names(settings.names, self.labels), read_templates(settings.templates)
        self.model = Model(engine, settings.path, ROWS)

    def needs(self, settings: EvalConfig) -> Needs | None:
        return Needs()

    def run(self, split: Split) -> dict[str, Any]:
        """``zero_shot``: items, skipped, top_1, top_5, recall and count by class, confusion [truth][answer] of labels.

        Raises:
            DataError: nothing can be read.
        """
        kept, found = self.classify()
        place = {label: at for at, label in enumerate(self.labels)}
        truths = np.array([place[item.label] for item in kept], np.int64)
        ranks, count = classes.ranks(found, truths), len(self.labels)
        counts = classes.confusion(found.argmax(1), truths, count)
        if split.sheets:
            split.sheets.classes(self.labels, counts)
        present = counts.sum(1) > 0  # of a class nothing may have been readable
        recall = counts.diagonal()[present] / counts.sum(1)[present]
        labels = [label for label, here in zip(self.labels, present, strict=True) if here]
        metrics = {"items": len(kept), "skipped": len(self.items) - len(kept)} | classes.top_k(ranks, count, 1)
        if count > 5:
            metrics |= classes.top_k(ranks, count, 5)
        metrics |= {"mean_recall": float(recall.mean()), "majority": float(counts.sum(1).max() / len(kept))}
        metrics |= {"recall": dict(zip(labels, recall.tolist(), strict=True))}
        metrics |= {"count": dict(zip(labels, counts.sum(1)[present].tolist(), strict=True))}
        return {
            "zero_shot": {"path": self.model.name}
            | metrics
            | {"labels": list(self.labels), "confusion": counts.tolist(), "templates": len(self.templates)}
        }

    def classify(self) -> tuple[list[Labelled], np.ndarray]:
        """The items that can be read, and their cosines to the classes, float64 [N, C]; the others are named."""
        failed: dict[int, DataError] = {}
        columns = [[item.files[part] for item in self.items] for part in range(len(self.items[0].files))]
        clips = columns[1] if len(columns) > 1 else None
        found = self.model.classify(columns[0], self.names, self.templates, clips, failed.__setitem__)
        for error in failed.values():
            print(f"skipped: {error}", file=sys.stderr)
        if len(failed) == len(self.items):
            raise DataError(f"{self.model.name}: none of {len(failed)} items can be read; {failed[0]}")
        return [item for at, item in enumerate(self.items) if at not in failed], found.cosines

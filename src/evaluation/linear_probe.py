"""Linear probes: how well labels are read off frozen features, by modality, beside features that nothing trained.

Table 2 of the paper (Liu et al. 2021) has the mean average precision of all seven choices of text, image and audio.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoints.files import weights_file
from src.config import Config
from src.data.errors import DataError
from src.evaluation.probe_data import ProbeData, ProbeSplit
from src.files import write_json
from src.inference import logistic
from src.inference.engine import Engine
from src.inference.representations import EMBEDDING, FUSED, RAW, Features, Given, Representations, name_of
from src.metrics.classes import average_precision
from src.models.batches import progress
from src.models.build import build_model
from src.report.plots import Series, dot_plot
from src.report.tables import table
from src.runtime import seed_everything

TRAINED, UNTRAINED = "", "untrained "
KINDS = (FUSED, EMBEDDING, UNTRAINED + FUSED, UNTRAINED + EMBEDDING, RAW)


class LinearProbe:
    """Fits a regression to every kind of feature and every choice of modalities.

    Args:
        engine: the trained network.
        data: labelled items.
        against: "untrained" and "raw": what the features are compared with.
    """

    def __init__(self, engine: Engine, data: ProbeData, against: Sequence[str] = ("untrained", "raw")) -> None:
        self.engine, self.data = engine, data
        engines = {TRAINED: engine}
        if "untrained" in against:
            engines[UNTRAINED] = untrained(engine)
        self.representations = Representations(engines, data.modalities, "raw" in against)

    def run(self, checkpoint: Path | None = None) -> dict[str, Any]:
        """Fits and measures.

        Args:
            checkpoint: the folder that the model was read from, as the results are to name it.

        Returns:
            the checkpoint and the file in it that the weights are of; what was measured on what; ``metric`` and
            ``chance``; ``results`` by modalities and kind of feature, each with its metric on test and dev, the chosen
            strength and, of labels that may meet, the metric by label.
        """
        data = self.data
        read = [self._read(split) for split in data.splits]
        labels = [split.labels[features.numbers] for split, features in zip(data.splits, read, strict=True)]
        results: dict[str, dict[str, Any]] = {}
        kinds = [kind for kind in KINDS if kind in self.representations.kinds]
        for given, kind in progress(list(product(self.representations.given, kinds)), "fitting"):
            columns = [features.of(kind, given) for features in read]
            found = self._fit(*zip(columns, labels, strict=True))
            results.setdefault(name_of(given), {})[kind] = found
            if found["strength"] == logistic.STRENGTHS[-1]:
                print(
                    f"note: {name_of(given)}, {kind}: a weaker penalty than any that was tried may be better",
                    file=sys.stderr,
                )
        about: dict[str, Any] = {"checkpoint": str(checkpoint)} if checkpoint else {}
        about |= {"weights": weights_file(self.engine.ema), **data.about, "given": name_of(data.modalities)}
        about |= {"source": data.source, "labels": data.labels, "left_out": data.left_out}
        about |= {"metric": "mean average precision" if data.multiple else "accuracy"}
        about |= {"items": {split.name: len(found.numbers) for split, found in zip(data.splits, read, strict=True)}}
        return about | {"chance": self.chance(labels), "results": results}

    def chance(self, labels: Sequence[Any]) -> float:
        """What one answer for every item reaches: equal scores, or the training split's most frequent label."""
        train, _, test = labels
        scores = np.asarray(train.sum(0)).reshape(1, -1).repeat(test.shape[0], 0)
        return logistic.measure(scores, test, self.data.multiple)

    def _fit(self, train: Any, dev: Any, test: Any) -> dict[str, Any]:
        fitted, on_dev = logistic.fit(train, dev, self.data.multiple)
        scores, truth = fitted.scores(test[0]), test[1]
        found = {"test": logistic.measure(scores, truth, self.data.multiple), "dev": on_dev}
        found |= {"strength": fitted.strength, "numbers": train[0].shape[1]}
        if self.data.multiple:
            each = average_precision(scores, truth.toarray())
            pairs = zip(self.data.labels, each.tolist(), strict=True)
            found["by_label"] = {label: value for label, value in pairs if not np.isnan(value)}
        return found

    def _read(self, split: ProbeSplit) -> Features:
        failed: dict[int, DataError] = {}
        found = self.representations.read(len(split), split.read, failed.__setitem__, split.name)
        for error in failed.values():
            print(f"skipped: {error}", file=sys.stderr)
        if not len(found.numbers):
            raise DataError(f"{self.data.source}: nothing of split {split.name!r} can be read; {failed[0]}")
        return found


def results_name(own: Config, config: Config, path: Path | None, labels: Sequence[Path], given: Given = ()) -> str:
    """``linear_probe``, and behind it the name of what else was measured, so that no results take the place of others.

    That is the name of the files, or of the dataset where it is not the checkpoint's own, of the labels, and of the
    modalities that were asked for.
    """
    fitted, theirs = (replace(each.data, eval_path="") for each in (config, own))
    data = dict.fromkeys((fitted.name_beside(theirs), config.data.name_beside(own.data))) if not path else ()
    files = [os.path.basename(os.path.abspath(file)).removesuffix(".csv") for file in ([path] if path else labels)]
    return "-".join(filter(None, (f"linear_probe{''.join(data)}", "+".join(files), name_of(given))))


def untrained(engine: Engine) -> Engine:
    """The same network with new weights, from the configuration's seed."""
    config = engine.config
    seed_everything(config.seed)
    network = build_model(replace(config, runtime=replace(config.runtime, recompute=False)))
    network.set_train(False)
    return Engine(config, network)


def summary(found: Mapping[str, Any]) -> str:
    """The result as a table: a line for each choice of modalities, a column for each kind of feature."""
    kinds = list(next(iter(found["results"].values())))
    rows = [[name, *(row[kind]["test"] for kind in kinds)] for name, row in found["results"].items()]
    rows.append(["chance", *[found["chance"]] * len(kinds)])
    items = ", ".join(f"{name} {count:,}" for name, count in found["items"].items())
    return f"{found['source']}: {len(found['labels'])} labels; {items}\n\n" + table(rows, [found["metric"], *kinds])


def write(found: Mapping[str, Any], output: Path) -> list[Path]:
    """linear_probe.json and linear_probe.png; returns the files."""
    files = [output / "linear_probe.json", output / "linear_probe.png"]
    write_json(files[0], found)
    kinds = list(next(iter(found["results"].values())))
    series = [Series(kind, [row[kind]["test"] for row in found["results"].values()]) for kind in kinds]
    title = f"Linear probe of frozen features: {len(found['labels'])} labels, {sum(found['items'].values()):,} items"
    dot_plot(files[1], title, list(found["results"]), series, found["metric"], found["chance"])
    return files

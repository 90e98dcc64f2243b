"""An evaluation: a split is encoded once, and every evaluator of the task measures it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoints.files import weights_file
from src.config import ConfigError, EvalConfig
from src.data.coverage import NOTED
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.evaluation.sheets import Sheets
from src.files import write_json
from src.inference.encode import encode_split, first_samples
from src.inference.engine import Engine
from src.models.opt import count_parameters
from src.report.tables import versions

GLANCE, GLANCE_GENERATED = 500, 100  # items that training looks at between its steps, and images that it generates


class Evaluation:
    """Measures a model on splits of a dataset.

    Args:
        engine: the model and what it can do.
        evaluators: what is measured: those of the task (:mod:`src.tasks.registry`).
    """

    def __init__(self, engine: Engine, evaluators: Sequence[type[Evaluator]]) -> None:
        self.engine, self.config = engine, engine.config
        self.evaluators = [kind(engine) for kind in evaluators]
        self._loaders: dict[str, Loader] = {}

    def run(
        self,
        split: str = "",
        output: Path | None = None,
        settings: EvalConfig | None = None,
        sheets: Callable[[Loader | None], Sheets] | None = None,
        checkpoint: Path | None = None,
    ) -> dict[str, Any]:
        """Evaluates a split.

        Args:
            split: by default that of the configuration.
            output: folder for metrics.json and what :class:`src.evaluation.sheets.Sheets` writes; None: nothing is
                written.
            settings: how much is measured, instead of the configuration's eval; how texts are decoded, candidates
                weighed and images sampled is the engine's.
            sheets: of the split's loader, what shows samples where there is no ``output``.
            checkpoint: the folder that the model was read from, as the metrics are to name it.

        Returns:
            task, split, the checkpoint and the file in it that the weights are of, the data's folder and digest, what
            each evaluator found, seconds, parameters and versions.

        Raises:
            ConfigError: the settings leave nothing to measure.
            DataError: the split cannot be read, or has nothing to measure.
        """
        settings = settings or self.config.eval
        needs = self.needs(settings)
        model = self.engine.model
        trained = model.training
        model.set_train(False)
        try:
            source = {"checkpoint": str(checkpoint)} if checkpoint else {}
            source["weights"] = weights_file(self.engine.ema)
            return self._run(needs, Split(split or settings.split, settings), output, sheets, source)
        finally:
            model.set_train(trained)

    def needs(self, settings: EvalConfig) -> dict[Evaluator, Needs]:
        """What each evaluator reads that has something to do.

        Raises:
            ConfigError: the settings leave nothing to measure.
        """
        found = {evaluator: evaluator.needs(settings) for evaluator in self.evaluators}
        needs = {evaluator: need for evaluator, need in found.items() if need is not None}
        if not needs:
            names = ", ".join(evaluator.name for evaluator in self.evaluators)
            raise ConfigError(
                f"task={self.config.task}: eval leaves nothing of {names} to measure: raise its max_items"
            )
        return needs

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that training logs, out of what :meth:`run` returned."""
        return {name: value for one in self._measured(metrics) for name, value in one.logged(metrics).items()}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What training logs beside them: ``chance/NAME`` and ``embeddings/NAME``."""
        return {name: value for one in self._measured(metrics) for name, value in one.beside(metrics).items()}

    def _measured(self, metrics: Mapping[str, Any]) -> list[Evaluator]:
        """The evaluators that took part in it."""
        return [evaluator for evaluator in self.evaluators if evaluator.name in metrics["seconds"]]

    def open(self, split: str) -> None:
        """Opens a split before it is measured.

        Raises:
            DataError: it cannot be read.
        """
        if self._reads_split:
            self.loader(split)

    def loader(self, split: str) -> Loader:
        """Of a split; opened once."""
        if split not in self._loaders:
            loader = Loader.held_out(self.config, split)
            if any(evaluator.reads_codes for evaluator in self.evaluators):
                loader.open_codes()
            self._loaders[split] = loader
        return self._loaders[split]

    def notes(self, split: str = "") -> list[str]:
        """What of a split the model does not read, a line each; a few [UNK] are no note."""
        if not self._reads_split:
            return []
        covered = self.loader(split or self.config.eval.split).coverage()
        return [line for found in covered for line in found.notes(self.config.model, NOTED)]

    @property
    def _reads_split(self) -> bool:
        """Whether anybody reads samples."""
        return not self.engine.is_image_tokenizer and any(evaluator.reads_split for evaluator in self.evaluators)

    def _run(
        self,
        needs: Mapping[Evaluator, Needs],
        split: Split,
        output: Path | None,
        sheets: Callable[[Loader | None], Sheets] | None,
        source: Mapping[str, str],
    ) -> dict[str, Any]:
        metrics: dict[str, Any] = {"task": self.config.task, "split": split.name, **source}
        seconds: dict[str, float] = {}
        if self._reads_split:
            split.loader = self.loader(split.name)
            dataset = split.loader.dataset
            metrics["data"] = {"path": str(dataset.folder), "sha256": dataset.digest()}
        if output:
            split.sheets = Sheets(split.loader, output)
        elif sheets:
            split.sheets = sheets(split.loader)
        with _timed(seconds, "encode"):
            split.items = self._encode(split, needs.values())
        found: dict[str, Any] = {}
        for evaluator in needs:
            with _timed(seconds, evaluator.name):
                found |= evaluator.run(split)
        if not any(found.values()):
            names = ", ".join(evaluator.name for evaluator in needs)
            raise DataError(f"{self.config.data.path}: split {split.name!r} has nothing of {names} to measure")
        metrics |= found | {
            "seconds": seconds,
            "parameters": count_parameters(self.engine.model),
            "versions": versions(),
        }
        if output:
            write_json(output / "metrics.json", metrics)
            split.sheets.save()
        return metrics

    def _encode(self, split: Split, needs: Sequence[Needs]) -> dict[int, Any]:
        """The items that anybody reads, each encoded once."""
        reading = [need for need in needs if need.modalities]
        if not reading:
            return {}
        count = max(first_samples(split.loader, need.max_items, need.having) for need in reading)
        wanted = frozenset().union(*(need.modalities for need in reading))
        tokens = frozenset().union(*(need.tokens for need in reading))
        return encode_split(self.engine.encoder, split.loader, 0, wanted, tokens, np.arange(count))


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


def glance(settings: EvalConfig) -> EvalConfig:
    """What training looks at between its steps: no more items than GLANCE, and nothing re-ranked."""

    def fewer(section: Any, most: int = GLANCE) -> Any:
        return replace(section, max_items=min(section.max_items, most))

    def fewer_of_all(section: Any) -> Any:  # of which 0 means all
        return replace(section, max_items=min(section.max_items or GLANCE, GLANCE))

    gallery = min(settings.retrieval.gallery_size or GLANCE, GLANCE)
    return replace(
        settings,
        retrieval=replace(settings.retrieval, gallery_size=gallery, folds=1),
        rerank=replace(settings.rerank, top_k=0),
        caption=fewer(settings.caption),
        transcript=fewer(settings.transcript),
        image_generation=fewer(settings.image_generation, GLANCE_GENERATED),
        masked=fewer_of_all(settings.masked),
        reconstruction=fewer_of_all(settings.reconstruction),
        vqa=fewer_of_all(settings.vqa),
    )

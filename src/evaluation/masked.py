"""Masked modelling and matching on held-out data: what pre-training has learned at the token and the sample level.

Each metric stands beside what a model that looks at nothing would reach: ``*_chance``.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config, EvalConfig
from src.data.pipeline import Evaluated, Loader
from src.data.schema import IMAGE, MATCH_CASES
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.inference.engine import Engine
from src.models.batches import progress
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.table import MEASURED, measured_settings
from src.objectives.views import name_tensors
from src.sharing import divide


class _Predictions(nn.Cell):
    """The token and the sample level on a whole batch: the tensors that :func:`_metrics` counts.

    Args:
        model: the network.
        config: the objectives as they are trained, and the batch size.
        image_tokenizer: makes the codes of the batch's images; None: they are in the batch.

    Inputs: the tensors that ``fields`` names.
    """

    def __init__(self, model: OPT, config: Config, image_tokenizer: ImageTokenizer | None) -> None:
        super().__init__(auto_prefix=False)
        settings = measured_settings(config.objectives)
        self.objectives = Objectives(model, settings, config.eval.batch_size)
        self.fields = self.objectives.fields
        self.image_tokenizer = image_tokenizer

    def construct(self, *tensors):
        batch = name_tensors(self.fields, tensors)
        if self.image_tokenizer is not None:
            here = batch["presence"][:, IMAGE : IMAGE + 1]
            codes = self.image_tokenizer.encode(batch["image"])
            batch["image_codes"] = (codes + 1) * here - 1  # −1 where there is no image
        views = self.objectives.views(batch)
        clean = views[0]
        embeddings = None
        if self.objectives.embeds:
            embeddings = self.objectives.embed(clean)
        found = ()
        for level in self.objectives.levels:
            state = level.state(batch, embeddings)
            fused, _ = self.objectives.model.cross_encoder(*level.rows(batch, views, clean, state))
            if "matching" in level.names:
                logits = level.answers(batch, embeddings, fused, state)
                found = (*found, ops.argmax(logits, -1), *level.weights(batch, state))
                continue
            if level.masks_text:
                found = (*found, ops.argmax(level.words(batch, fused), -1))
            if "mvm_code" in level.names:
                logits, codes = level.codes(batch, fused)
                found = (*found, ops.argmax(logits, -1), codes)
            if "mvm_feature" in level.names:
                found = (*found, *level.patches(batch, clean, fused))
            if "mvm_class" in level.names:
                logits, classes = level.classes(batch, fused)
                found = (*found, ops.argmax(logits, -1), classes)
            if level.masks_audio:
                found = (*found, *level.frames(batch, clean, fused))
        return found


class MaskedEvaluator(Evaluator):
    """Accuracy of masked modelling and of matching, each objective that the model trains."""

    name = "masked"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        config = engine.config
        trains = config.objectives.weights
        self.active = tuple(name for name in MEASURED if getattr(trains, name) > 0)
        # codes are made of the images of a batch, where these have the size that the image tokenizer reads
        same_size = config.model.image_tokenizer.size == config.model.image.size
        can_make = same_size and config.data.codes and config.model.image_codes
        # loaded at once: a mistake is told before anything is computed
        self.image_tokenizer = engine.image_tokenizer if can_make and "mvm_code" in self.active else None
        self.reads_codes = "mvm_code" in self.active and self.image_tokenizer is None
        self.batch_size = config.eval.batch_size

    @functools.cached_property
    def predictions(self) -> "_Predictions":
        return _Predictions(self.engine.model, self.engine.config, self.image_tokenizer)

    def needs(self, settings: EvalConfig) -> Needs | None:
        return Needs() if self.active else None

    def run(self, split: Split) -> dict[str, Any]:
        """``masked``: metrics of a split's first samples, and the ``confusion`` of the five cases [truth][answer]."""
        metrics = self.measure(split.loader, split.settings.masked.max_items)
        if split.sheets and "confusion" in metrics:
            split.sheets.confusion(metrics["confusion"])
        return {"masked": metrics} if metrics else {}

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        found = metrics.get("masked", {})
        return {name: value for name, value in found.items() if name.endswith(("accuracy", "cosine"))}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        found = metrics.get("masked", {})
        return {f"chance/{name}": found[f"{name.rpartition('_')[0]}_chance"] for name in self.logged(metrics)}

    def measure(self, loader: Loader, samples: int = 0) -> dict[str, Any]:
        """Metrics of the first samples (0: all)."""
        books: dict[str, list[np.ndarray]] = {}
        count = min(len(loader.dataset), samples or len(loader.dataset))
        batches = -(-count // self.batch_size)
        for part in divide(progress(loader.evaluation(self.batch_size, count), "masked", batches), self._predict):
            for name, rows in part.items():
                books.setdefault(name, []).append(rows)
        return _metrics({name: np.concatenate(parts) for name, parts in books.items()})

    def _predict(self, evaluated: Evaluated) -> dict[str, np.ndarray]:
        """Predictions and truths of a batch, by name."""
        batch, n, _ = evaluated
        here = np.arange(len(batch["presence"])) < n  # the copies that fill the batch are no candidates for negatives
        batch = batch | {"presence": batch["presence"] * here[:, None].astype(np.int32)}
        outputs = self.predictions(*(Tensor(batch[name]) for name in self.predictions.fields))
        return self._note(batch, [output.asnumpy() for output in outputs], n)

    def _note(self, batch: Mapping[str, np.ndarray], outputs: list[np.ndarray], n: int) -> dict[str, np.ndarray]:
        """A batch's predictions with their truths, only the slots that count."""
        found, books = iter(outputs), {}

        def note(name: str, slots: np.ndarray, *columns: np.ndarray) -> None:
            used = slots[:n].reshape(-1) > 0
            for letter, column in zip("pt", columns, strict=True):  # prediction, truth
                rows = column.reshape(len(slots), *slots.shape[1:], -1)[:n].reshape(used.size, -1)
                books[f"{name}_{letter}"] = rows[used]

        def note_known(name: str) -> None:
            guesses, truth = next(found), next(found)
            known = batch["mvm_weights"] * (truth.reshape(batch["mvm_weights"].shape) >= 0)
            note(name, known, guesses, truth)

        if "mlm" in self.active:
            note("mlm", batch["mlm_weights"], next(found), batch["mlm_labels"])
        if "mvm_code" in self.active:
            note_known("mvm_code")
        if "mvm_feature" in self.active:
            note("patch", batch["mvm_weights"], next(found), next(found))
        if "mvm_class" in self.active:
            note_known("mvm_class")
        if "mam_feature" in self.active or "mam_contrastive" in self.active:
            note("frame", batch["mam_weights"], next(found), next(found))
        if "matching" in self.active:
            answers, weights = next(found), next(found)
            note("matching", weights, answers, batch["match_case"])
        return books


def _metrics(books: Mapping[str, np.ndarray]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name in ("mlm", "mvm_code", "mvm_class", "matching"):
        truth = books.get(f"{name}_t", np.zeros(0))
        if len(truth):
            metrics[f"{name}_accuracy"] = float((books[f"{name}_p"] == truth).mean())
            metrics[f"{name}_chance"] = float(np.unique(truth, return_counts=True)[1].max() / len(truth))
    for name in ("patch", "frame"):
        truth = books.get(f"{name}_t", np.zeros(0))
        if len(truth):
            metrics[f"{name}_cosine"] = _mean_cosine(books[f"{name}_p"], truth)
            metrics[f"{name}_chance"] = _mean_cosine(truth.mean(0, keepdims=True), truth)
    if len(books.get("matching_t", ())):
        cases = len(MATCH_CASES)
        pairs = books["matching_t"].astype(int) * cases + books["matching_p"].astype(int)
        metrics["confusion"] = np.bincount(pairs.reshape(-1), minlength=cases * cases).reshape(cases, cases).tolist()
    return metrics


def _mean_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over the rows of the cosine of x and y, [n, D] or [1, D]."""
    product = (x * y).sum(-1)
    return float((product / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1) + 1e-9)).mean())

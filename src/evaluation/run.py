"""Everything that is measured of a model on a split of a dataset."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import Config, ConfigError
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.evaluation.masked import MaskedEvaluator
from src.evaluation.reconstruction import ReconstructionEvaluator
from src.evaluation.retrieval import Retriever
from src.evaluation.sheets import Sheets
from src.evaluation.text_generation import Writer
from src.files import write_json
from src.generation.beam import BeamSearch, BeamSettings
from src.inference.encode import Encoder, Items, encode_split, first_images
from src.inference.images import ImageGenerator, load_tokenizer
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT, count_parameters
from src.report.tables import versions

# the tasks that each part belongs to
RETRIEVE = ("pretrain", "retrieval")
WRITE = ("pretrain", "caption", "speech_to_text")
DRAW = ("pretrain", "text_to_image")


class Evaluator:
    """Measures a model; its graphs are compiled at first use and serve every later call with the weights of then.

    Args:
        config: which parts run (task), how much of the split they read and how retrieval is ranked again (eval).
        model: the network, shared with whoever trains it.
    """

    def __init__(self, config: Config, model: OPT) -> None:
        self.config, self.model = config, model
        self.tokenizer = Tokenizer(config.model.text.vocab)
        self.encoder = Encoder(model)
        self.decoder = BeamSearch(model, self.tokenizer, config.eval.batch_size, BeamSettings.of(config.eval.decoding))
        self.retriever = Retriever(model, self.tokenizer, config.eval.rerank, self.encoder, self.decoder)
        self.writer = Writer(config, self.decoder)
        self.probe = self._build_probe() if config.task == "pretrain" else None
        self._loaders: dict[str, Loader] = {}

    def _build_probe(self) -> MaskedEvaluator:
        """Codes are made of the images of a batch, where these have the size that the image tokenizer reads."""
        config = self.config
        same_size = config.model.image_tokenizer.size == config.model.image.size
        reads = same_size and config.data.codes and config.model.image_codes
        return MaskedEvaluator(config, self.model, self.image_tokenizer if reads else None)

    def run(
        self,
        split: str = "",
        output: Path | None = None,
        *,
        gallery: int | None = None,
        captions: int | None = None,
        rerank: int | None = None,
        draw: int | None = None,
    ) -> dict[str, Any]:
        """Evaluates a split.

        Args:
            split: by default that of the configuration.
            output: folder for metrics.json, captions.json and figures; None: nothing is written.
            gallery, captions, rerank, draw: instead of the configuration's.

        Returns:
            task, split, gallery, retrieval, reranked, folds, caption, examples, transcription,
            transcription_with_image, reconstruction, drawing, probe, fused_passes, seconds, parameters, versions;
            parts that the task or the data leave out are missing.
        """
        settings = self.config.eval
        split = split or settings.split
        gallery = settings.retrieval.gallery_size if gallery is None else gallery
        captions = settings.caption.max_items if captions is None else captions
        draw = settings.image_generation.max_items if draw is None else draw
        rerank = settings.rerank.top_k if rerank is None else rerank
        task = self.config.task
        plan = _Plan(
            gallery if task in RETRIEVE else None,
            rerank if task in RETRIEVE else 0,
            captions if task in WRITE else 0,
            draw if task in DRAW else 0,
        )
        if plan.gallery is None and not plan.captions and not plan.draw:
            key = "image_generation.max_items" if task in DRAW else "caption.max_items"
            raise ConfigError(f"eval.{key}=0 leaves nothing to evaluate of task={task}")
        trained = self.model.training
        self.model.set_train(False)
        try:
            return self._run(plan, split, output)
        finally:
            self.model.set_train(trained)

    def _run(self, plan: "_Plan", split: str, output: Path | None) -> dict[str, Any]:
        metrics: dict[str, Any] = {"task": self.config.task, "split": split}
        seconds: dict[str, float] = {}
        loader = self.loader(split)
        sheets = Sheets(loader, output / "figures") if output else None

        began = time.monotonic()
        items = encode_split(self.encoder, loader, plan.images, *self._read(plan))
        if len(items) < 2:
            raise DataError(f"{loader.dataset.folder}: split {split!r} has only one modality: nothing to compare")
        seconds["encode"] = time.monotonic() - began
        if plan.gallery is not None:
            began, fused = time.monotonic(), self.retriever.fused
            if plan.rerank and self.config.eval.rerank.likelihood:
                items = self.for_retrieval(items)
            compared = first_images(items, plan.gallery)
            metrics["gallery"] = len(compared.get(IMAGE, compared.get(TEXT, ())))
            first, second, rankings = self.retriever.evaluate(compared, plan.rerank)
            metrics.update(retrieval=first, reranked=second, fused_passes=self.retriever.fused - fused)
            if self.config.eval.retrieval.folds > 1:
                metrics["folds"] = self._folds(compared, plan.rerank)
            seconds["retrieval"] = time.monotonic() - began
            if sheets:
                sheets.retrieval(compared, rankings)
        if plan.captions:
            began = time.monotonic()
            metrics.update(self.writer.run(loader, first_images(items, plan.captions), sheets))
            seconds["captions"] = time.monotonic() - began
        if plan.draw:
            began = time.monotonic()
            metrics.update(self._draw(split, first_images(items, plan.draw), plan.draw, sheets))
            seconds["drawing"] = time.monotonic() - began
        if self.probe is not None and self.probe.active:
            began = time.monotonic()
            metrics["probe"] = self.probe.run(loader, self.config.eval.masked.max_items)
            seconds["probe"] = time.monotonic() - began
            if sheets and "confusion" in metrics["probe"]:
                sheets.confusion(metrics["probe"]["confusion"])
        metrics.update(seconds=seconds, parameters=count_parameters(self.model), versions=versions())
        if output:
            write_json(output / "metrics.json", metrics)
        return metrics

    def _folds(self, items: dict[int, Items], rerank: int) -> dict[str, Any]:
        """Retrieval as the mean over smaller galleries."""
        count = self.config.eval.retrieval.folds
        first, second = self.retriever.evaluate_folds(items, rerank, count)
        images = len(items.get(IMAGE, items.get(TEXT, ()))) // count
        return {"count": count, "gallery": images, "retrieval": first, "reranked": second}

    def _draw(self, split: str, subjects: dict[int, Items], images: int, sheets: Sheets | None) -> dict[str, Any]:
        """What the tokenizer keeps of images, and what is recognised in those that are drawn."""
        reconstruction, pairs = self.reconstruction.measure(split, images)
        drawing, drawn = self.image_generator.measure(subjects)
        if sheets:
            sheets.reconstructions(pairs)
            if TEXT in drawn:
                sheets.drawings(subjects, drawn)
        return {"reconstruction": reconstruction, "drawing": drawing}

    def for_retrieval(self, items: dict[int, Items]) -> dict[int, Items]:
        """With what is heard in the audio clips, where images are compared with them by likelihood."""
        if not {IMAGE, AUDIO} <= items.keys():
            return items
        return items | {AUDIO: self.writer.transcribe(items[AUDIO])}

    @functools.cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """Whose codes the model draws."""
        return load_tokenizer(self.config)

    @functools.cached_property
    def image_generator(self) -> ImageGenerator:
        return ImageGenerator(self.config, self.model, self.image_tokenizer, self.encoder)

    @functools.cached_property
    def reconstruction(self) -> ReconstructionEvaluator:
        return ReconstructionEvaluator(self.config, self.image_tokenizer)

    def _read(self, plan: "_Plan") -> tuple[set[int], set[int]]:
        """The modalities that are encoded, and those of which more than the embeddings is read."""
        wanted, tokens = set(), set()
        if plan.gallery is not None:
            wanted |= {TEXT, IMAGE, AUDIO}
            if plan.rerank and self.config.eval.rerank.matching:
                tokens |= {TEXT, IMAGE, AUDIO}
            if plan.rerank and self.config.eval.rerank.likelihood:
                tokens |= {IMAGE, AUDIO}
        if plan.captions:
            wanted, tokens = wanted | self.writer.wanted, tokens | self.writer.wanted
        if plan.draw:
            wanted, tokens = wanted | {TEXT, AUDIO}, tokens | {TEXT, AUDIO}
        return wanted, tokens

    def loader(self, split: str) -> Loader:
        """Of a split; opened once."""
        if split not in self._loaders:
            stored = self.probe is not None and self.probe.reads_codes
            self._loaders[split] = Loader.held_out(self.config, split, stored_codes=stored)
        return self._loaders[split]


@dataclass(frozen=True)
class _Plan:
    """What an evaluation does."""

    gallery: int | None  # images to retrieve among, 0: all; None: nothing is retrieved
    rerank: int
    captions: int  # images to write about, 0: none
    draw: int  # ... to draw, 0: none

    @property
    def images(self) -> int:
        """How many are encoded; 0: all."""
        return 0 if self.gallery == 0 else max(self.gallery or 0, self.captions, self.draw)

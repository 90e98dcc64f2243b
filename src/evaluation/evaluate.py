"""Everything that is measured of a model on a split of a dataset."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Config, ConfigError
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.evaluation.captioning import caption_figures, transcript_figures
from src.evaluation.drawing import Artist, load_tokenizer
from src.evaluation.encode import Encoder, Items, encode_split, first_pictures
from src.evaluation.probe import Probe
from src.evaluation.reconstruction import ReconstructionEvaluator
from src.evaluation.report import versions, write_json
from src.evaluation.retrieval import Retriever
from src.evaluation.sheets import Sheets
from src.generation.greedy import GreedyDecoder
from src.models.opt import OPT, count_parameters

EXAMPLES = 12  # captions that metrics.json shows


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
        self.decoder = GreedyDecoder(model, self.tokenizer, config.eval.batch_size)
        self.retriever = Retriever(model, self.tokenizer, config.eval, self.encoder, self.decoder)
        self.probe = self.artist = self.reconstruction = None
        if config.task == "pretrain":
            self._judge_pretraining()
        self._loaders: dict[str, Loader] = {}

    def _judge_pretraining(self) -> None:
        """What is measured of pre-training alone; drawing and codes need an image tokenizer."""
        config, model = self.config, self.model
        painter = load_tokenizer(config) if config.data.codes and config.model.image_codes else None
        # codes are made of the pictures of a batch, where these have the size that the tokenizer reads
        same_size = config.model.tokenizer.size == config.model.image.size
        self.probe = Probe(config, model, painter if same_size else None)
        if painter is not None and config.eval.draw:
            self.artist = Artist(config, model, painter, self.encoder)
            self.reconstruction = ReconstructionEvaluator(config, painter)

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
            task, split, gallery, retrieval, reranked, folds, caption, transcription, examples, reconstruction, drawing,
            probe, fused_passes, seconds, parameters, versions; parts that the task or the data leave out are missing.
        """
        settings = self.config.eval
        split = split or settings.split
        gallery = settings.gallery if gallery is None else gallery
        captions = settings.captions if captions is None else captions
        rerank = settings.rerank if rerank is None else rerank
        draw = settings.draw if draw is None else draw
        retrieves = self.config.task in ("pretrain", "retrieval")
        writes = self.config.task in ("pretrain", "caption") and captions > 0
        if not retrieves and not writes:
            raise ConfigError(f"eval.captions=0 leaves nothing to evaluate of task={self.config.task}")
        trained = self.model.training
        self.model.set_train(False)
        try:
            return self._run(split, output, gallery, captions if writes else None, rerank, retrieves, draw)
        finally:
            self.model.set_train(trained)

    def _run(
        self,
        split: str,
        output: Path | None,
        gallery: int,
        captions: int | None,
        rerank: int,
        retrieves: bool,
        draw: int,
    ) -> dict[str, Any]:
        metrics: dict[str, Any] = {"task": self.config.task, "split": split}
        seconds: dict[str, float] = {}
        loader = self.loader(split)
        sheets = Sheets(loader, output / "figures") if output else None
        draws = self.artist is not None and draw > 0

        began = time.monotonic()
        limits = ([gallery] if retrieves else []) + ([captions] if captions is not None else [])
        limits += [draw] if draws else []
        wanted = {TEXT, IMAGE, AUDIO} if retrieves else {IMAGE, AUDIO} if self._transcribes else {IMAGE}
        tokens = self._tokens_read(retrieves and rerank > 0, captions is not None)
        items = encode_split(self.encoder, loader, 0 if 0 in limits else max(limits), wanted, tokens)
        if len(items) < 2:
            raise DataError(f"{loader.dataset.folder}: split {split!r} has only one modality: nothing to compare")
        seconds["encode"] = time.monotonic() - began
        if retrieves:
            began, fused = time.monotonic(), self.retriever.fused
            if rerank and self.config.eval.rerank_likelihood:
                items = self.for_retrieval(items)
            compared = first_pictures(items, gallery)
            metrics["gallery"] = len(compared.get(IMAGE, compared.get(TEXT, ())))
            first, second, rankings = self.retriever.evaluate(compared, rerank)
            metrics.update(retrieval=first, reranked=second, fused_passes=self.retriever.fused - fused)
            if self.config.eval.folds > 1:
                metrics["folds"] = self._folds(compared, rerank)
            seconds["retrieval"] = time.monotonic() - began
            if sheets:
                sheets.retrieval(compared, rankings)
        if captions is not None:
            began = time.monotonic()
            metrics.update(self._write(loader, first_pictures(items, captions), sheets))
            seconds["captions"] = time.monotonic() - began
        if draws:
            began = time.monotonic()
            metrics.update(self._draw(split, first_pictures(items, draw), draw, sheets))
            seconds["drawing"] = time.monotonic() - began
        if self.probe is not None and self.probe.active:
            began = time.monotonic()
            metrics["probe"] = self.probe.run(loader, self.config.eval.probe)
            seconds["probe"] = time.monotonic() - began
            if sheets and "confusion" in metrics["probe"]:
                sheets.confusion(metrics["probe"]["confusion"])
        metrics.update(seconds=seconds, parameters=count_parameters(self.model), versions=versions())
        if output:
            write_json(output / "metrics.json", metrics)
        return metrics

    def _folds(self, items: dict[int, Items], rerank: int) -> dict[str, Any]:
        """Retrieval as the mean over smaller galleries."""
        count = self.config.eval.folds
        first, second = self.retriever.evaluate_folds(items, rerank, count)
        pictures = len(items.get(IMAGE, items.get(TEXT, ()))) // count
        return {"count": count, "gallery": pictures, "retrieval": first, "reranked": second}

    @property
    def _transcribes(self) -> bool:
        """Whether the model was trained to write from sound alone."""
        return "audio" in self.config.objectives.denoise_given

    def _tokens_read(self, reranks: bool, writes: bool) -> set[int]:
        """The modalities of which more than the embeddings is read."""
        matches = reranks and self.config.eval.rerank_matching > 0
        reads = reranks and self.config.eval.rerank_likelihood > 0
        read = {TEXT, IMAGE, AUDIO} if matches else {IMAGE, AUDIO} if reads or writes else set()
        return read | {TEXT, AUDIO} if self.artist is not None else read

    def loader(self, split: str) -> Loader:
        """Of a split; opened once."""
        if split not in self._loaders:
            stored = self.probe is not None and self.probe.reads_codes
            self._loaders[split] = Loader.held_out(self.config, split, stored_codes=stored)
        return self._loaders[split]

    def _write(self, loader: Loader, items: dict[int, Items], sheets: Sheets | None) -> dict[str, Any]:
        """Captions from the pictures alone, transcripts from the sounds alone, and their figures."""
        about = loader.dataset.info["about"]
        world = about.get("world") if about.get("source") == "demo" else None
        metrics: dict[str, Any] = {}
        if TEXT not in items:
            return metrics
        texts = self._references(loader, items[TEXT])
        if IMAGE in items:
            groups = _group(items[TEXT].pictures, texts)
            pictures = items[IMAGE].take(np.isin(items[IMAGE].pictures, list(groups)))
            if len(pictures):
                written = self.decoder.texts(self.decoder.write((pictures.tokens, pictures.mask), label="captions"))
                references = [groups[number] for number in pictures.pictures]
                metrics["caption"] = caption_figures(written, references, world)
                metrics["examples"] = [
                    {"caption": caption, "references": group}
                    for caption, group in list(zip(written, references, strict=True))[:EXAMPLES]
                ]
                if sheets:
                    sheets.captions(pictures, written, references, world)
        if AUDIO in items and self._transcribes:
            said = dict(zip(items[TEXT].samples.tolist(), texts, strict=True))
            sounds = items[AUDIO].take(np.isin(items[AUDIO].samples, items[TEXT].samples))
            if len(sounds):
                written = self.decoder.texts(self._write_down(sounds).ids)
                references = [said[sample] for sample in sounds.samples.tolist()]
                metrics["transcription"] = transcript_figures(written, references, world)
        return metrics

    def _draw(self, split: str, subjects: dict[int, Items], pictures: int, sheets: Sheets | None) -> dict[str, Any]:
        """What the tokenizer keeps of pictures, and what is recognised in those that are drawn."""
        reconstruction, pairs = self.reconstruction.measure(split, pictures)
        drawing, drawn = self.artist.measure(subjects)
        if sheets:
            sheets.reconstructions(pairs)
            if TEXT in drawn:
                sheets.drawings(subjects, drawn)
        return {"reconstruction": reconstruction, "drawing": drawing}

    def for_retrieval(self, items: dict[int, Items]) -> dict[int, Items]:
        """With what is heard in the sounds, where pictures are compared with them by likelihood."""
        if not {IMAGE, AUDIO} <= items.keys():
            return items
        return items | {AUDIO: self._write_down(items[AUDIO])}

    def _write_down(self, sounds: Items) -> Items:
        """The sounds with what the model hears in them, written once."""
        if sounds.ids is not None:
            return sounds
        return replace(sounds, ids=self.decoder.write(audio=(sounds.tokens, sounds.mask), label="transcripts"))

    def _references(self, loader: Loader, texts: Items) -> list[str]:
        """The captions as they were written: the tokens lack what the vocabulary has not."""
        records, captions = loader.dataset.samples[texts.samples, :2].T
        found = loader.dataset.read(records)
        return [record.captions[caption] for record, caption in zip(found, captions, strict=True)]


def _group(numbers: np.ndarray, texts: list[str]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for number, text in zip(numbers.tolist(), texts, strict=True):
        groups.setdefault(number, []).append(text)
    return groups

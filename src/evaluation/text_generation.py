"""Captions of a split's images and transcripts of its audio clips, measured against what the dataset says."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from src.config import EvalConfig
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.demo.facts import FactMetric
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.inference.encode import Items, first_images
from src.metrics import captions
from src.metrics.errors import error_rates

EXAMPLES = 12  # captions that metrics.json shows, from all over the split


class CaptionEvaluator(Evaluator):
    """Captions generated from the image only: BLEU, ROUGE-L, CIDEr-D, and the facts of a demo's world.

    A caption of punctuation alone is no reference; an image that has no other is not measured.
    """

    name, having = "caption", frozenset({TEXT, IMAGE})

    def needs(self, settings: EvalConfig) -> Needs | None:
        count = settings.caption.max_items
        return Needs(count, self.having, frozenset({IMAGE}), frozenset({IMAGE})) if count else None

    def run(self, split: Split) -> dict[str, Any]:
        """``caption`` and ``examples``."""
        items = first_images(split.items, split.settings.caption.max_items, self.having)
        if not {TEXT, IMAGE} <= items.keys():
            return {}
        groups = _group(items[TEXT].images, references(split.loader, items[TEXT]))
        images = items[IMAGE].take(np.isin(items[IMAGE].images, list(groups)))
        if not len(images):
            return {}
        generated, facts = self.engine.caption(images), fact_metric(split.loader)
        owned = [groups[number] for number in images.images]
        if split.sheets:
            split.sheets.captions(images, generated, owned, facts)
        examples = [(generated[row], owned[row]) for row in evenly_apart(len(generated), EXAMPLES)]
        return {
            "caption": beside_chance(caption_metrics, generated, owned, facts),
            "examples": [{"caption": caption, "references": group} for caption, group in examples],
        }

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        found = metrics.get("caption", {})
        return {name: found[name] for name in ("facts_right", "cider_d") if name in found}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        chances = self.logged({"caption": metrics.get("caption", {}).get("chance", {})})
        return {f"chance/{name}": chance for name, chance in chances.items()}


class TranscriptEvaluator(Evaluator):
    """Transcripts generated from audio only, if the model is trained for it: error rates by character and word."""

    name, file = "transcription", "transcripts.json"
    having = frozenset({TEXT, AUDIO})

    def needs(self, settings: EvalConfig) -> Needs | None:
        trained = "audio" in self.engine.config.objectives.denoise_text.given
        count = settings.transcript.max_items
        return Needs(count, self.having, frozenset({AUDIO}), frozenset({AUDIO})) if count and trained else None

    def run(self, split: Split) -> dict[str, Any]:
        """``transcription``."""
        items = first_images(split.items, split.settings.transcript.max_items, self.having)
        clips = spoken(items)
        if clips is None:
            return {}
        return {self.name: self.score(split, items[TEXT], self.engine.transcribe(clips))}

    def score(self, split: Split, texts: Items, clips: Items) -> dict[str, Any]:
        """Error rates of the clips' transcripts against the texts of the same samples."""
        said = dict(zip(texts.samples.tolist(), references(split.loader, texts), strict=True))
        spoken_texts = [said[sample] for sample in clips.samples.tolist()]
        transcripts = self.engine.text_generator.decode(clips.ids)
        if split.sheets:
            split.sheets.transcripts(self.file, clips, transcripts)
        return beside_chance(transcript_metrics, transcripts, spoken_texts, fact_metric(split.loader))

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """1 − error rate of characters and of words."""
        found = metrics.get(self.name)
        units = ("character", "word") if found else ()
        return {f"{self.name}_{unit}s_right": 1 - found[f"{unit}_error_rate"] for unit in units}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        chances = self.logged({self.name: metrics.get(self.name, {}).get("chance")})
        return {f"chance/{name}": chance for name, chance in chances.items()}


class ImageTranscriptEvaluator(TranscriptEvaluator):
    """Transcripts generated from audio together with its image."""

    name, file = "transcription_with_image", "transcripts_with_image.json"
    having = frozenset({TEXT, IMAGE, AUDIO})

    def needs(self, settings: EvalConfig) -> Needs | None:
        trained = "image+audio" in self.engine.config.objectives.denoise_text.given
        count, read = settings.transcript.max_items, frozenset({IMAGE, AUDIO})
        return Needs(count, self.having, read, read) if count and trained else None

    def run(self, split: Split) -> dict[str, Any]:
        """``transcription_with_image``."""
        items = first_images(split.items, split.settings.transcript.max_items, self.having)
        clips = spoken(items)
        if clips is None or IMAGE not in items:
            return {}
        clips = clips.take(np.isin(clips.images, items[IMAGE].images))
        if not len(clips):
            return {}
        row_of = {number: row for row, number in enumerate(items[IMAGE].images.tolist())}
        images = items[IMAGE].take(np.array([row_of[number] for number in clips.images.tolist()]))
        clips = clips.with_ids(self.engine.transcribe_with_images(clips, images))
        return {self.name: self.score(split, items[TEXT], clips)}


def spoken(items: dict[int, Items]) -> Items | None:
    """The audio clips whose texts are there, or None where there are none."""
    if not {TEXT, AUDIO} <= items.keys():
        return None
    clips = items[AUDIO].take(np.isin(items[AUDIO].samples, items[TEXT].samples))
    return clips if len(clips) else None


def fact_metric(loader: Loader) -> FactMetric | None:
    """Where the corpus is a world of the demo's, what compares the facts of texts."""
    return FactMetric.of(loader.dataset.info["about"])


def caption_metrics(predictions: list[str], references: list[list[str]], facts: FactMetric | None) -> dict[str, Any]:
    """Metrics on words with those on characters inside, and the share of facts right.

    Args:
        predictions: one an image.
        references: the captions of each image.
        facts: compares facts, or None.
    """
    scored = captions.score(predictions, references)
    stated = facts.score(predictions, references) if facts else {}
    return {**stated, **scored["words"], "characters": scored["characters"], "images": len(predictions)}


def transcript_metrics(predictions: list[str], references: list[str], facts: FactMetric | None) -> dict[str, Any]:
    """Error rates, the share of facts right (``facts``: compares them, or None), and the number of audio clips."""
    stated = facts.score(predictions, [[text] for text in references]) if facts else {}
    return {**error_rates(predictions, references), **stated, "clips": len(predictions)}


def beside_chance(
    measure: Callable[..., dict[str, Any]], texts: list[str], said: list[Any], facts: FactMetric | None
) -> dict[str, Any]:
    """The metrics of generated texts with, as ``chance``, the same of misplaced ones; of one text alone there is none.

    Args:
        measure: :func:`caption_metrics` or :func:`transcript_metrics`.
        texts, said, facts: its arguments.
    """
    chance = {"chance": measure(misplaced(texts), said, facts)} if len(texts) > 1 else {}
    return measure(texts, said, facts) | chance


def misplaced(texts: list[str]) -> list[str]:
    """The same texts, each at the place of another: what a model reaches that writes well and looks at nothing.

    They move by half the list, as neighbours often come from one image.
    """
    half = len(texts) // 2
    return texts[half:] + texts[:half]


def references(loader: Loader, texts: Items) -> list[str]:
    """The captions as they were written: the tokens lack what the vocabulary has not."""
    records, numbers = loader.dataset.samples[texts.samples, :2].T
    found = loader.dataset.read(records)
    return [record.captions[number] for record, number in zip(found, numbers, strict=True)]


def _group(numbers: np.ndarray, texts: list[str]) -> dict[int, list[str]]:
    """The texts that have words, by number."""
    groups: dict[int, list[str]] = {}
    for number, text in zip(numbers.tolist(), texts, strict=True):
        if captions.has_words(text):
            groups.setdefault(number, []).append(text)
    return groups

"""Captions of a split's images and transcripts of its audio clips, with their figures."""

from dataclasses import replace
from typing import Any

import numpy as np

from src.config import Config
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.demo.facts import FactMetric
from src.evaluation.sheets import Sheets
from src.generation.beam import BeamSearch
from src.inference.encode import Items
from src.metrics import captions
from src.metrics.errors import error_rates

EXAMPLES = 12  # captions that metrics.json shows


class Writer:
    """Writes what the task asks for.

    Args:
        config: the task, and what the model was trained to write from (objectives.denoise_text.given).
        decoder: writes.
    """

    def __init__(self, config: Config, decoder: BeamSearch) -> None:
        given = config.objectives.denoise_text.given
        self.decoder = decoder
        self.captions = config.task != "speech_to_text"  # from images alone
        self.transcribes = "audio" in given  # from audio clips alone
        self.looks = config.task == "speech_to_text" and "image+audio" in given  # from audio clips with their images

    @property
    def wanted(self) -> set[int]:
        """The modalities that are read."""
        images = {IMAGE} if self.captions or self.looks else set()
        return images | ({AUDIO} if self.transcribes or self.looks else set())

    def run(self, loader: Loader, items: dict[int, Items], sheets: Sheets | None) -> dict[str, Any]:
        """``caption`` with ``examples``, ``transcription`` and ``transcription_with_image``, as far as there are any.

        Args:
            items: with the tokens of what is written from.
            sheets: draws the captions; None: nothing is drawn.
        """
        metrics: dict[str, Any] = {}
        if TEXT not in items:
            return metrics
        world = FactMetric.of(loader.dataset.info["about"])
        texts = references(loader, items[TEXT])
        if IMAGE in items and self.captions:
            metrics.update(self._caption(items, texts, sheets, world))
        if AUDIO in items:
            said = dict(zip(items[TEXT].samples.tolist(), texts, strict=True))
            clips = items[AUDIO].take(np.isin(items[AUDIO].samples, items[TEXT].samples))
            if len(clips) and self.transcribes:
                ids = self.transcribe(clips).ids
                metrics["transcription"] = self._transcript(ids, clips, said, world)
            if IMAGE in items and self.looks:
                seen = clips.take(np.isin(clips.images, items[IMAGE].images))
                if len(seen):
                    ids = self._write_down_with(items[IMAGE], seen)
                    metrics["transcription_with_image"] = self._transcript(ids, seen, said, world)
        return metrics

    def transcribe(self, clips: Items) -> Items:
        """The audio clips with what the model hears in them, written once."""
        if clips.ids is not None:
            return clips
        return replace(clips, ids=self.decoder.write({AUDIO: (clips.tokens, clips.mask)}, "transcripts"))

    def _write_down_with(self, images: Items, clips: Items) -> np.ndarray:
        """int32 [n, T] from the audio clips and each one's image."""
        row_of = {number: row for row, number in enumerate(images.images.tolist())}
        images = images.take(np.array([row_of[number] for number in clips.images.tolist()]))
        given = {IMAGE: (images.tokens, images.mask), AUDIO: (clips.tokens, clips.mask)}
        return self.decoder.write(given, "transcripts with images")

    def _caption(
        self, items: dict[int, Items], texts: list[str], sheets: Sheets | None, world: FactMetric | None
    ) -> dict[str, Any]:
        groups = _group(items[TEXT].images, texts)
        images = items[IMAGE].take(np.isin(items[IMAGE].images, list(groups)))
        if not len(images):
            return {}
        written = self.decoder.texts(self.decoder.write({IMAGE: (images.tokens, images.mask)}, "captions"))
        owned = [groups[number] for number in images.images]
        if sheets:
            sheets.captions(images, written, owned, world)
        examples = list(zip(written, owned, strict=True))[:EXAMPLES]
        return {
            "caption": caption_figures(written, owned, world),
            "examples": [{"caption": caption, "references": group} for caption, group in examples],
        }

    def _transcript(
        self, ids: np.ndarray, clips: Items, said: dict[int, str], world: FactMetric | None
    ) -> dict[str, Any]:
        spoken = [said[sample] for sample in clips.samples.tolist()]
        return transcript_figures(self.decoder.texts(ids), spoken, world)


def references(loader: Loader, texts: Items) -> list[str]:
    """The captions as they were written: the tokens lack what the vocabulary has not."""
    records, captions = loader.dataset.samples[texts.samples, :2].T
    found = loader.dataset.read(records)
    return [record.captions[caption] for record, caption in zip(found, captions, strict=True)]


def _group(numbers: np.ndarray, texts: list[str]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for number, text in zip(numbers.tolist(), texts, strict=True):
        groups.setdefault(number, []).append(text)
    return groups


def caption_figures(predictions: list[str], references: list[list[str]], world: FactMetric | None) -> dict[str, Any]:
    """Metrics on words with those on characters inside, and the share of facts right where a demo world was drawn.

    Args:
        predictions: one an image.
        references: the captions of each image.
        world: of the demo, or None.
    """
    scored = captions.score(predictions, references)
    facts = world.score(predictions, references) if world else {}
    return {**facts, **scored["words"], "characters": scored["characters"], "images": len(predictions)}


def transcript_figures(predictions: list[str], references: list[str], world: FactMetric | None) -> dict[str, Any]:
    """Error rates, and the share of facts right where a demo world was drawn."""
    facts = world.score(predictions, [[text] for text in references]) if world else {}
    return {**error_rates(predictions, references), **facts, "clips": len(predictions)}

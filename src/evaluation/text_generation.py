"""Captions of a split's pictures and transcripts of its sounds, with their figures."""

from dataclasses import replace
from typing import Any

import numpy as np

from src.config import Config
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.sheets import Sheets
from src.evaluation.text_generation import caption_figures, transcript_figures
from src.generation.beam import BeamSearch
from src.metrics import captions
from src.metrics.errors import error_rates
from src.demo.facts import FactMetric
from src.inference.encode import Items

EXAMPLES = 12  # captions that metrics.json shows


class Writer:
    """Writes what the task asks for.

    Args:
        config: the task, and what the model was trained to write from (objectives.denoise_given).
        decoder: writes.
    """

    def __init__(self, config: Config, decoder: BeamSearch) -> None:
        given = config.objectives.denoise_given
        self.decoder = decoder
        self.captions = config.task != "speech_to_text"  # from pictures alone
        self.transcribes = "audio" in given  # from sounds alone
        self.looks = config.task == "speech_to_text" and "image+audio" in given  # from sounds with their pictures

    @property
    def wanted(self) -> set[int]:
        """The modalities that are read."""
        pictures = {IMAGE} if self.captions or self.looks else set()
        return pictures | ({AUDIO} if self.transcribes or self.looks else set())

    def run(self, loader: Loader, items: dict[int, Items], sheets: Sheets | None) -> dict[str, Any]:
        """``caption`` with ``examples``, ``transcription`` and ``transcription_with_picture``, as far as there are any.

        Args:
            items: with the tokens of what is written from.
            sheets: draws the captions; None: nothing is drawn.
        """
        metrics: dict[str, Any] = {}
        if TEXT not in items:
            return metrics
        about = loader.dataset.info["about"]
        world = about.get("world") if about.get("source") == "demo" else None
        texts = references(loader, items[TEXT])
        if IMAGE in items and self.captions:
            metrics.update(self._caption(items, texts, sheets, world))
        if AUDIO in items:
            said = dict(zip(items[TEXT].samples.tolist(), texts, strict=True))
            sounds = items[AUDIO].take(np.isin(items[AUDIO].samples, items[TEXT].samples))
            if len(sounds) and self.transcribes:
                ids = self.write_down(sounds).ids
                metrics["transcription"] = self._transcript(ids, sounds, said, world)
            if IMAGE in items and self.looks:
                seen = sounds.take(np.isin(sounds.pictures, items[IMAGE].pictures))
                if len(seen):
                    ids = self._write_down_with(items[IMAGE], seen)
                    metrics["transcription_with_picture"] = self._transcript(ids, seen, said, world)
        return metrics

    def write_down(self, sounds: Items) -> Items:
        """The sounds with what the model hears in them, written once."""
        if sounds.ids is not None:
            return sounds
        return replace(sounds, ids=self.decoder.write({AUDIO: (sounds.tokens, sounds.mask)}, "transcripts"))

    def _write_down_with(self, pictures: Items, sounds: Items) -> np.ndarray:
        """int32 [n, T] from the sounds and each one's picture."""
        row_of = {number: row for row, number in enumerate(pictures.pictures.tolist())}
        pictures = pictures.take(np.array([row_of[number] for number in sounds.pictures.tolist()]))
        given = {IMAGE: (pictures.tokens, pictures.mask), AUDIO: (sounds.tokens, sounds.mask)}
        return self.decoder.write(given, "transcripts with pictures")

    def _caption(
        self, items: dict[int, Items], texts: list[str], sheets: Sheets | None, world: str | None
    ) -> dict[str, Any]:
        groups = _group(items[TEXT].pictures, texts)
        pictures = items[IMAGE].take(np.isin(items[IMAGE].pictures, list(groups)))
        if not len(pictures):
            return {}
        written = self.decoder.texts(self.decoder.write({IMAGE: (pictures.tokens, pictures.mask)}, "captions"))
        owned = [groups[number] for number in pictures.pictures]
        if sheets:
            sheets.captions(pictures, written, owned, world)
        examples = list(zip(written, owned, strict=True))[:EXAMPLES]
        return {
            "caption": caption_figures(written, owned, world),
            "examples": [{"caption": caption, "references": group} for caption, group in examples],
        }

    def _transcript(self, ids: np.ndarray, sounds: Items, said: dict[int, str], world: str | None) -> dict[str, Any]:
        spoken = [said[sample] for sample in sounds.samples.tolist()]
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

"""Images generated from texts and from speech: does the model recognise in them what they were generated from?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.config import EvalConfig
from src.data.schema import AUDIO, TEXT
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.evaluation.relevance import relevance_of_generated
from src.inference.encode import Items, first_images
from src.inference.engine import Engine
from src.metrics.recall import ranks, recall

SOURCES = {TEXT: "text", AUDIO: "speech"}
HAVING = frozenset({TEXT})


class ImageGenerationEvaluator(Evaluator):
    """Generates an image of every text and audio clip, and looks for each one's text by the image."""

    name = "image_generation"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if engine.config.eval.image_generation.max_items:
            _ = engine.image_tokenizer  # loaded at once: a mistake is told before anything is computed

    def needs(self, settings: EvalConfig) -> Needs | None:
        count, read = settings.image_generation.max_items, frozenset({TEXT, AUDIO})
        return Needs(count, HAVING, read, read) if count else None

    def run(self, split: Split) -> dict[str, Any]:
        """``image_generation``: by source, "text" and "speech"."""
        subjects = first_images(split.items, split.settings.image_generation.max_items, HAVING)
        metrics, generated = self.measure(subjects)
        if split.sheets and TEXT in generated:
            split.sheets.generated(subjects, generated)
        return {"image_generation": metrics} if metrics else {}

    def measure(self, items: Mapping[int, Items]) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
        """Metrics and images.

        Args:
            items: with the tokens of texts and audio clips.

        Returns:
            by source, recall of the text among all texts; by modality, images uint8 [n, S, S, 3]. Without texts nothing
            is generated; an audio clip without one has its image and does not count.
        """
        metrics, generated = {}, {}
        texts = items.get(TEXT)
        for modality, name in SOURCES.items():
            if texts is None or modality not in items:
                continue
            generated[modality] = self.engine.image_generator.generate(modality, items[modality])
            relevance = relevance_of_generated(items, modality)
            told = relevance.answerable
            if told.any():
                embeddings = self.engine.image_generator.encode(generated[modality]).embeddings[told]
                told_of = relevance.take(told)
                metrics[name] = recall(ranks(embeddings, texts.embeddings, told_of)) | {"chance_R@1": told_of.chance()}
        return metrics, generated

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Recall by source, and the mean at 1."""
        found = metrics.get("image_generation")
        if not found:
            return {}
        recalls = {f"generated_{source}_R@{k}": of[f"R@{k}"] for source, of in found.items() for k in (1, 10)}
        return recalls | {"generated_mean_R@1": sum(of["R@1"] for of in found.values()) / len(found)}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """R@1 by chance, by source and in the mean."""
        chances = {name: of["chance_R@1"] for name, of in metrics.get("image_generation", {}).items()}
        found = {f"chance/generated_{name}_R@1": chance for name, chance in chances.items()}
        return found | ({"chance/generated_mean_R@1": sum(chances.values()) / len(chances)} if chances else {})

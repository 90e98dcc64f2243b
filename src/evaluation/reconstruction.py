"""What an image tokenizer keeps of an image: peak signal-to-noise ratio, and how much of the codebook is in use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from src.config import EvalConfig
from src.data.images import ImageLoader
from src.data.order import evenly_apart
from src.data.pipeline import Evaluated
from src.data.schema import IMAGE
from src.evaluation.evaluator import Evaluator, Needs, Split
from src.inference.engine import Engine
from src.models.batches import progress
from src.models.image_tokenizer import ImageTokenizer
from src.sharing import divide

SHOWN = 24  # images of the sheet
EXACT = 1e-2  # mean squared error that counts as none: 68 dB


class Reconstruct(nn.Cell):
    """image (B, S, S, 3) uint8 → decoded from its codes (B, S, S, 3) uint8, codes (B, C) int32."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image):
        codes = self.model.encode(image)
        return self.model.decode(codes), codes


class ReconstructionEvaluator(Evaluator):
    """PSNR of images decoded from their codes, perplexity and usage of the codes."""

    name = "reconstruction"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._loaders: dict[str, ImageLoader] = {}
        self._graph: Reconstruct | None = None

    def needs(self, settings: EvalConfig) -> Needs | None:
        return Needs() if self.engine.is_image_tokenizer or settings.image_generation.max_items else None

    def run(self, split: Split) -> dict[str, Any]:
        """``reconstruction``: images, psnr, perplexity and usage."""
        settings = split.settings
        own = self.engine.is_image_tokenizer
        if split.loader is not None and not split.loader.dataset.count(IMAGE):
            return {}
        count = settings.reconstruction.max_items if own else settings.image_generation.max_items
        metrics, pairs = self.measure(split.name, count)
        if split.sheets:
            split.sheets.reconstructions(pairs)
        return {"reconstruction": metrics}

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        found = metrics.get("reconstruction", {})
        return {name: found[name] for name in ("psnr", "perplexity", "usage") if name in found}

    def measure(self, split: str, images: int = 0) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
        """Metrics of a split's first images (0: all), and some from all over them beside their reconstructions."""
        tokenizer = self.engine.image_tokenizer
        if split not in self._loaders:
            self._loaders[split] = ImageLoader.held_out(self.engine.config, split)
        self._graph = self._graph or Reconstruct(tokenizer)
        trained = tokenizer.training
        self._graph.set_train(False)
        try:
            errors, counts, shown = self._measure(self._loaders[split], images)
        finally:
            self._graph.set_train(trained)
        usage = float((counts > 0).mean())
        return {"images": len(errors), "psnr": psnr(errors), "perplexity": perplexity(counts), "usage": usage}, shown

    def _measure(self, loader: ImageLoader, images: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Mean squared error of each image, how often each code occurs, and images evenly apart in pairs."""
        config = self.engine.config
        size = config.eval.batch_size
        errors, counts, shown = [], np.zeros(config.model.image_tokenizer.codes, np.int64), []
        count = min(images or len(loader.ids), len(loader.ids))
        wanted = evenly_apart(count, SHOWN)

        def reconstruct(numbered: tuple[int, Evaluated]) -> tuple[np.ndarray, np.ndarray, list[Any]]:
            number, (batch, n, _) = numbered
            image = batch["image"][:n]
            decoded, codes = (part.asnumpy()[:n] for part in self._graph(Tensor(batch["image"])))
            pairs = [(image[row].copy(), decoded[row].copy()) for row in wanted - number * size if 0 <= row < n]
            error = ((decoded.astype(np.float32) - image) ** 2).mean((1, 2, 3))
            return error, np.bincount(codes.reshape(-1), minlength=len(counts)), pairs

        batches = progress(loader.evaluation(size, images), "reconstructing", -(-count // size))
        for error, found, pairs in divide(enumerate(batches), reconstruct):
            errors.append(error)
            counts += found
            shown += pairs
        return np.concatenate(errors), counts, shown


def psnr(errors: np.ndarray) -> float:
    """Mean over images of 10·log₁₀(255² / error), in dB; the errors are mean squares of byte differences."""
    return float((10 * np.log10(255**2 / np.maximum(errors, EXACT))).mean())


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes: K when all are used equally, 1 when only one is used."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))

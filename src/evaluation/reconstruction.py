"""What an image tokenizer keeps of an image: peak signal-to-noise ratio, and how much of the codebook is in use."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from src.config import Config
from src.data.images import ImageLoader
from src.files import write_json
from src.models.batches import progress
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import count_parameters
from src.report.sheets import reconstruction_sheet
from src.report.tables import versions

SHEET, TITLE = "reconstruction.png", "Images, and what their codes keep"
SHOWN = 24  # images of the sheet: the first of the split, not the best
EXACT = 1e-2  # mean squared error that counts as none: 68 dB


class Reconstruct(nn.Cell):
    """image (B, S, S, 3) uint8 → drawn again (B, S, S, 3) uint8, codes (B, C) int32."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, image):
        codes = self.model.encode(image)
        return self.model.decode(codes), codes


class ReconstructionEvaluator:
    """Measures an image tokenizer; its graph is compiled at first use and serves every later call.

    Args:
        config: data, eval and model.image_tokenizer.
        model: the network, shared with whoever trains it.
    """

    def __init__(self, config: Config, model: ImageTokenizer) -> None:
        self.config, self.model, self.reconstruct = config, model, Reconstruct(model)
        self._loaders: dict[str, ImageLoader] = {}

    def run(self, split: str = "", output: Path | None = None, images: int = 0) -> dict[str, Any]:
        """Evaluates a split.

        Args:
            split: by default that of the configuration.
            output: folder for metrics.json and figures; None: nothing is written.
            images: only the first so many; 0: all.

        Returns:
            task, split, images, reconstruction (psnr, perplexity, usage), seconds, parameters and versions.
        """
        split = split or self.config.eval.split
        began = time.monotonic()
        figures, shown = self.measure(split, images)
        metrics = {
            "task": self.config.task,
            "split": split,
            "images": figures.pop("images"),
            "reconstruction": figures,
            "seconds": {"reconstruction": time.monotonic() - began},
            "parameters": count_parameters(self.model),
            "versions": versions(),
        }
        if output:
            reconstruction_sheet(output / "figures" / SHEET, TITLE, shown)
            write_json(output / "metrics.json", metrics)
        return metrics

    def measure(self, split: str, images: int = 0) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
        """images, psnr, perplexity and usage; the first images, each with what was drawn from its codes."""
        if split not in self._loaders:
            self._loaders[split] = ImageLoader.held_out(self.config, split)
        trained = self.model.training
        self.reconstruct.set_train(False)
        try:
            errors, counts, shown = self._measure(self._loaders[split], images)
        finally:
            self.reconstruct.set_train(trained)
        usage = float((counts > 0).mean())
        figures = {"images": len(errors), "psnr": psnr(errors), "perplexity": perplexity(counts), "usage": usage}
        return figures, shown

    def _measure(self, loader: ImageLoader, images: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Mean squared error of each image, how often each code occurs, and the first images in pairs."""
        size = self.config.eval.batch_size
        errors, counts, shown = [], np.zeros(self.config.model.image_tokenizer.codes, np.int64), []
        batches = -(-min(images or len(loader.ids), len(loader.ids)) // size)
        for batch, n, _ in progress(loader.evaluation(size, images), "reconstructing", batches):
            image = batch["image"][:n]
            drawn, codes = (part.asnumpy()[:n] for part in self.reconstruct(Tensor(batch["image"])))
            errors.append(((drawn.astype(np.float32) - image) ** 2).mean((1, 2, 3)))
            counts += np.bincount(codes.reshape(-1), minlength=len(counts))
            shown += list(zip(image, drawn.copy(), strict=True))[: SHOWN - len(shown)]
        return np.concatenate(errors), counts, shown


def psnr(errors: np.ndarray) -> float:
    """Mean over images of 10·log₁₀(255² / error), in dB; the errors are mean squares of byte differences."""
    return float((10 * np.log10(255**2 / np.maximum(errors, EXACT))).mean())


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes: K when all are used alike, 1 when one is used alone."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))

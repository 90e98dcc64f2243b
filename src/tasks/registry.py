"""The tasks: of what a run is built, and what it is judged by while it trains.

Pre-training, retrieval, captioning, writing down speech and drawing train the same network with the same objectives
and differ in their weights, which are configuration, and in the figures they are judged by. The image tokenizer is a
network of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import nn

from src.config import TASKS, Config
from src.data.errors import DataError
from src.data.images import ImageLoader
from src.data.pipeline import Loader
from src.evaluation.reconstruction import ReconstructionEvaluator
from src.evaluation.run import Evaluator
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT
from src.objectives.image_tokenizer import TokenizerObjectives
from src.objectives.objectives import Objectives
from src.objectives.self_critical import build_self_critical

# items of the held-out split that are looked at, and drawn, during training: a glance, not the final figure
HELD_OUT, DRAWN = 500, 100


def build_objectives(network: OPT, config: Config, rank: int, ranks: int, gather: nn.Cell | None) -> Objectives:
    return Objectives(network, config.objectives, config.data.batch_size, gather)


def self_critical_objectives(network: OPT, config: Config, rank: int, ranks: int, gather: nn.Cell | None) -> nn.Cell:
    return build_self_critical(network, config)


@dataclass(frozen=True)
class Task:
    """How a run is built, and how it is judged during training.

    Args:
        figures: (evaluator, config) → figures of data.eval_split by name, higher is better.
        best: name of the figure that marks the best checkpoint.
        objectives: (network, config, rank, ranks, gather or None) → a Cell with names, fields, trained_parts() and,
            where there are such, figures, before_step and after_update (:class:`src.training.step.TrainStep`).
        loader: (config, split, rank, ranks) → batches.
        evaluator: (config, network) → what eval.py runs.
    """

    figures: Callable[[Any, Config], dict[str, float]]
    best: str
    objectives: Callable[[Any, Config, int, int, nn.Cell | None], nn.Cell] = build_objectives
    loader: type[Loader] = Loader
    evaluator: type[Evaluator] | type[ReconstructionEvaluator] = Evaluator


def _measure(evaluator: Evaluator, config: Config) -> dict[str, Any]:
    draw = min(DRAWN, config.eval.image_generation.max_items)
    return evaluator.run(config.data.eval_split, gallery=HELD_OUT, captions=HELD_OUT, rerank=0, draw=draw)


def _retrieval(metrics: dict[str, Any]) -> dict[str, float]:
    recalls = {f"{direction}_r1": figures["r1"] for direction, figures in metrics["retrieval"].items()}
    return recalls | {"mean_r1": sum(recalls.values()) / len(recalls)}


def _caption(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics["caption"][name] for name in ("facts_right", "cider_d") if name in metrics["caption"]}


def pretrain_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    metrics = _measure(evaluator, config)
    probe = {name: value for name, value in metrics.get("probe", {}).items() if name.endswith(("accuracy", "cosine"))}
    drawn = {f"drawn_{source}_r10": figures["r10"] for source, figures in metrics.get("drawing", {}).items()}
    return _retrieval(metrics) | _caption(metrics) | probe | drawn


def retrieval_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    return _retrieval(_measure(evaluator, config))


def caption_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    return _caption(_measure(evaluator, config))


def transcript_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    """1 − error rate of characters and of words; the first, over audio clips with and without image, marks the best."""
    metrics = _measure(evaluator, config)
    figures = {}
    for name in ("transcription", "transcription_with_image"):
        for unit in ("character", "word"):
            if name in metrics:
                figures[f"{name}_{unit}s_right"] = 1 - metrics[name][f"{unit}_error_rate"]
    rates = [value for name, value in figures.items() if name.endswith("characters_right")]
    if not rates:
        raise DataError(f"{config.data.path}: split {config.data.eval_split!r} has no audio with their texts")
    return figures | {"characters_right": sum(rates) / len(rates)}


def drawing_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    """How often a text is found by what was drawn from it, and from its speech."""
    drawing = evaluator.run(config.data.eval_split, draw=min(DRAWN, config.eval.image_generation.max_items))["drawing"]
    if not drawing:
        raise DataError(f"{config.data.path}: split {config.data.eval_split!r} has no texts to draw")
    recalls = {f"{source}_r{k}": figures[f"r{k}"] for source, figures in drawing.items() for k in (1, 10)}
    return recalls | {"mean_r1": sum(figures["r1"] for figures in drawing.values()) / len(drawing)}


def tokenizer_objectives(
    network: ImageTokenizer, config: Config, rank: int, ranks: int, gather: nn.Cell | None
) -> TokenizerObjectives:
    return TokenizerObjectives(network, config, rank, ranks)


def tokenizer_figures(evaluator: ReconstructionEvaluator, config: Config) -> dict[str, float]:
    return evaluator.run(config.data.eval_split, images=HELD_OUT)["reconstruction"]


REGISTRY = {
    "pretrain": Task(pretrain_figures, "mean_r1"),
    "retrieval": Task(retrieval_figures, "mean_r1"),
    "caption": Task(caption_figures, "cider_d"),
    "self_critical": Task(caption_figures, "cider_d", self_critical_objectives),
    "speech_to_text": Task(transcript_figures, "characters_right"),
    "text_to_image": Task(drawing_figures, "mean_r1"),
    "image_tokenizer": Task(tokenizer_figures, "psnr", tokenizer_objectives, ImageLoader, ReconstructionEvaluator),
}
if REGISTRY.keys() != set(TASKS):
    raise RuntimeError("src.config.tasks and the registry name different tasks")


def get(name: str) -> Task:
    """The task of a name that the configuration has checked."""
    return REGISTRY[name]

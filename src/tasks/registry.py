"""The tasks: what a run is judged by while it trains.

A task is configuration (which objectives have a weight), the held-out figures that are logged, and the one of them
that makes a checkpoint the best.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from src.config import TASKS, Config
from src.evaluation.evaluate import Evaluator

HELD_OUT = 500  # items of the held-out split that are looked at during training: a glance, not the final figure


@dataclass(frozen=True)
class Task:
    """How a run is judged during training.

    Args:
        figures: (evaluator, config) → figures of data.eval_split by name, higher is better.
        best: name of the figure that marks the best checkpoint.
    """

    figures: Callable[[Evaluator, Config], dict[str, float]]
    best: str


def _measure(evaluator: Evaluator, config: Config) -> dict[str, Any]:
    return evaluator.run(config.data.eval_split, gallery=HELD_OUT, captions=HELD_OUT, rerank=0)


def _retrieval(metrics: dict[str, Any]) -> dict[str, float]:
    recalls = {f"{direction}_r1": figures["r1"] for direction, figures in metrics["retrieval"].items()}
    return recalls | {"mean_r1": sum(recalls.values()) / len(recalls)}


def _caption(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics["caption"][name] for name in ("facts_right", "cider_d") if name in metrics["caption"]}


def pretrain_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    metrics = _measure(evaluator, config)
    probe = {name: value for name, value in metrics.get("probe", {}).items() if name.endswith(("accuracy", "cosine"))}
    return _retrieval(metrics) | _caption(metrics) | probe


def retrieval_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    return _retrieval(_measure(evaluator, config))


def caption_figures(evaluator: Evaluator, config: Config) -> dict[str, float]:
    return _caption(_measure(evaluator, config))


REGISTRY = {
    "pretrain": Task(pretrain_figures, "mean_r1"),
    "retrieval": Task(retrieval_figures, "mean_r1"),
    "caption": Task(caption_figures, "cider_d"),
}
if REGISTRY.keys() != set(TASKS):
    raise RuntimeError("src.config.TASKS and the registry name different tasks")


def get(name: str) -> Task:
    """The task of a name that the configuration has checked."""
    return REGISTRY[name]

"""Chooses the weights of the second ranking (eval.rerank_*) on a split that nothing is reported of.

The terms of every candidate's score are computed once; the weights are then tried on a grid. Only their ratio matters
to an order, so that the largest is 1.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import locate
from src.config import ConfigError
from src.evaluation.retrieval import TERMS, Scored
from src.evaluation.run import Evaluator
from src.files import write_json, write_text
from src.inference.encode import encode_split
from src.inference.load import load_model
from src.metrics.recall import recall
from src.report.tables import table
from src.runtime import setup

STEPS = (0.0, 0.125, 0.25, 0.5, 1.0)
KEYS = ("r1", "r5", "r10")  # means over the directions, the earlier the more important

Weights = tuple[float, ...]  # of TERMS


def grid() -> list[Weights]:
    """All weights out of STEPS whose largest is 1; those with fewer terms first, which cost less to use."""
    found = [weights for weights in itertools.product(STEPS, repeat=len(TERMS)) if max(weights) == 1.0]
    return sorted(found, key=lambda weights: sum(weight > 0 for weight in weights))


def measure(scored: Sequence[Scored], weights: Weights) -> dict[str, float]:
    """Means over the directions of recall after ranking again."""
    figures = []
    for direction, items, terms in scored:
        scores = sum(weight * terms[name] for name, weight in zip(TERMS, weights, strict=True) if weight > 0)
        figures.append(recall(direction.reranked(items, scores)[0]))
    return {key: float(np.mean([found[key] for found in figures])) for key in KEYS}


def tune(evaluator: Evaluator, split: str, output: Path) -> Weights:
    """Prints what weights reach and writes the best: rerank.json, and rerank.yaml to name as a ``base:``.

    Raises:
        ConfigError: the split is the one that is reported, or there is nothing to choose.
    """
    settings = evaluator.config.eval
    if split == settings.split:
        raise ConfigError(f"--split {split}: it is eval.split, which is reported: choose the weights on another split")
    if not settings.rerank:
        raise ConfigError("eval.rerank=0 ranks nothing again: there is no weight to choose")
    items = evaluator.for_retrieval(encode_split(evaluator.encoder, evaluator.loader(split), settings.gallery))
    scored = evaluator.retriever.scored(evaluator.retriever.first_stage(items, settings.rerank), TERMS)
    figures = {weights: measure(scored, weights) for weights in grid()}
    best = max(figures, key=lambda weights: [figures[weights][key] for key in KEYS])
    shown: dict[str, Weights] = {f"{name} alone": _alone(name) for name in TERMS} | {"best": best}
    rows = [[label, *weights, *figures[weights].values()] for label, weights in shown.items()]
    print(f"{split}, mean of {', '.join(direction.name for direction, _, _ in scored)}\n")
    print(table(rows, ["weights", *TERMS, "R@1", "R@5", "R@10"]), end="\n\n")
    _write(output, split, figures, best)
    return best


def _alone(name: str) -> Weights:
    return tuple(float(term == name) for term in TERMS)


def _write(output: Path, split: str, figures: dict[Weights, dict[str, float]], best: Weights) -> None:
    tried: list[dict[str, Any]] = [dict(zip(TERMS, weights, strict=True)) | found for weights, found in figures.items()]
    write_json(output / "rerank.json", {"split": split, "tried": tried})
    keys = {f"rerank_{name}": weight for name, weight in zip(TERMS, best, strict=True)}
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    write_text(output / "rerank.yaml", f"# chosen on the split {split}\neval:\n{lines}")
    print("eval.py " + " ".join(f"eval.{key}={value}" for key, value in keys.items()))
    print(output / "rerank.yaml")


def run(checkpoint: Path, settings: Sequence[str], split: str | None, output: Path | None) -> None:
    """Tunes a checkpoint's re-ranking on a split (None: data.eval_split); results go to ``output``, else beside it."""
    folder = locate(checkpoint)
    config = load_checkpoint_config(folder, settings)
    if config.task not in ("pretrain", "retrieval"):
        raise ConfigError(f"{folder} is a checkpoint of task={config.task}: retrieval alone is ranked again")
    setup(replace(config.runtime, distributed=False), config.seed)
    config, model = load_model(folder, settings)
    tune(Evaluator(config, model), split or config.data.eval_split, output or checkpoint)

"""Chooses the weights of re-ranking (eval.rerank) on a split that is not reported.

The terms of every candidate's score are computed once; the weights are then tried on a grid. Only their ratio matters
to an order, so the largest is 1.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.checkpoints.files import RERANKING
from src.config import ConfigError
from src.data.errors import DataError
from src.evaluation.retrieval import RetrievalEvaluator, Scored
from src.evaluation.run import Evaluation
from src.files import write_json, write_text
from src.inference.encode import encode_split
from src.inference.rerank import TERMS
from src.metrics.recall import recall
from src.report.tables import RECALLS, table

STEPS = (0.0, 0.125, 0.25, 0.5, 1.0)

Weights = tuple[float, ...]  # of TERMS


def grid() -> list[Weights]:
    """All weights out of STEPS whose largest is 1; those that cost less to use first.

    Cosines are there already. Matching is a pass of the cross-modal encoder for each candidate, likelihood one of the
    decoder, and a transcript of each clip before.
    """
    found = [weights for weights in itertools.product(STEPS, repeat=len(TERMS)) if max(weights) == 1.0]
    return sorted(found, key=_cost)


def _cost(weights: Weights) -> tuple[int, ...]:
    embedding, matching, likelihood = (int(weight > 0) for weight in weights)
    return matching + likelihood, likelihood, embedding


def measure(scored: Sequence[Scored], weights: Weights) -> dict[str, float]:
    """Recall after re-ranking, mean over the directions."""
    recalls = []
    for one in scored:
        scores = sum(weight * one.terms[name] for name, weight in zip(TERMS, weights, strict=True) if weight > 0)
        recalls.append(recall(one.direction.reranked(scores)[0]))
    return {key: float(np.mean([found[key] for found in recalls])) for key in RECALLS}


def tune(evaluation: Evaluation, split: str, output: Path) -> Weights:
    """Prints what weights reach and writes the best: reranking.json, and reranking.yaml, which a checkpoint carries.

    Raises:
        ConfigError: the task is not judged by retrieval, the split is the reported one, or nothing is re-ranked.
        DataError: the split has nothing to rank.
    """
    config, engine = evaluation.config, evaluation.engine
    settings = config.eval
    evaluator = next((one for one in evaluation.evaluators if isinstance(one, RetrievalEvaluator)), None)
    if evaluator is None:
        raise ConfigError(f"task={config.task} is not judged by retrieval: only retrieval is re-ranked")
    if split == settings.split:
        raise ConfigError(f"--split {split} is eval.split, which is reported: choose the weights on another split")
    if not settings.rerank.top_k:
        raise ConfigError("eval.rerank.top_k=0 re-ranks nothing: there is no weight to choose")
    items = encode_split(engine.encoder, evaluation.loader(split), settings.retrieval.gallery_size)
    items = evaluator.with_transcripts(items)
    scored = evaluator.second_stage(evaluator.first_stage(items, settings.rerank.top_k), TERMS)
    if not scored:
        raise DataError(f"split {split!r} has no pairs of text, image and audio to rank: choose another --split")
    recalls = {weights: measure(scored, weights) for weights in grid()}
    # the earlier of RECALLS counts more
    best = max(recalls, key=lambda weights: [recalls[weights][key] for key in RECALLS])
    shown: dict[str, Weights] = {f"{name} only": _only(name) for name in TERMS} | {"best": best}
    rows = [[label, *weights, *recalls[weights].values()] for label, weights in shown.items()]
    print(f"{split}, mean of {', '.join(one.direction.name for one in scored)}\n")
    print(table(rows, ["weights", *TERMS, *RECALLS]), end="\n\n")
    _write(output, split, recalls, best)
    return best


def _only(name: str) -> Weights:
    return tuple(float(term == name) for term in TERMS)


def _write(output: Path, split: str, recalls: dict[Weights, dict[str, float]], best: Weights) -> None:
    tried: list[dict[str, Any]] = [dict(zip(TERMS, weights, strict=True)) | found for weights, found in recalls.items()]
    write_json(output / "reranking.json", {"split": split, "tried": tried})
    chosen = dict(zip(TERMS, best, strict=True))
    settings = {"eval": {"rerank": chosen | {"tuned_on": split}}}
    write_text(output / RERANKING, yaml.safe_dump(settings, sort_keys=False))
    print("eval.py " + " ".join(f"eval.rerank.{name}={weight}" for name, weight in chosen.items()))
    print(output / RERANKING)

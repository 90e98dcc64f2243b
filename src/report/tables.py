"""Results as tables to read: text columns that line up with Chinese in them."""

import platform
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from src.data.schema import MATCH_CASES

RECALLS = ("R@1", "R@5", "R@10")
COUNTS = ("gallery", "different")  # means over folds are not whole
COUNTED = ("images", "clips")  # how much was measured
LIMITS = {"gallery": "items", "different": "different", "best_R@1": "best R@1", "chance_R@1": "by chance"}
RECONSTRUCTION = {
    "psnr": "PSNR in dB, mean of the images",
    "perplexity": "perplexity of the codes",
    "usage": "share of the codebook in use",
}
TEXT_METRICS = {
    "facts_right": "all facts right",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "character_error_rate": "character error rate",
    "word_error_rate": "word error rate",
    "sentences_right": "whole sentences right",
}
MASKED = {
    "mlm_accuracy": "masked words right",
    "mvm_code_accuracy": "codes of masked patches right",
    "mvm_class_accuracy": "classes of masked regions right",
    "patch_cosine": "cosine of masked patches",
    "frame_cosine": "cosine of masked audio frames",
    "matching_accuracy": "matching, five cases",
}


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A text table in which wide East Asian characters count as two columns; numbers, also as text, are flush right."""
    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"table row {number} has {len(row)} cells for {len(headers)} headers")
    cells = [[_cell(value) for value in row] for row in rows]
    columns = [[header, *(row[place] for row in cells)] for place, header in enumerate(headers)]
    widths = [max(map(_width, column)) for column in columns]
    right = [all(_is_number(row[place]) for row in rows) for place in range(len(headers))]
    lines = [list(headers), ["─" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(_pad(*spec) for spec in zip(line, widths, right, strict=True)).rstrip() for line in lines
    )


def retrieval_table(
    retrieval: Mapping[str, Mapping[str, float]], reranked: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """Recall by direction ({"text_to_image": {"R@1": …, "R@5": …, "R@10": …, "median_rank": …}}), re-ranked at right.

    ``gallery`` among the metrics is how many items were ranked, ``different`` how many of them the model can tell
    apart, ``best_R@1`` the highest R@1 that equal inputs allow, ``chance_R@1`` that of a random order. Results
    of earlier versions lack some of these.
    """
    reranked = reranked or {}
    limits = {key: name for key, name in LIMITS.items() if any(key in found for found in retrieval.values())}
    headers = ["query → gallery", *limits.values(), *RECALLS, "median"]
    headers += ["re-ranked R@1", *RECALLS[1:]] if reranked else []
    rows = []
    for direction, found in retrieval.items():
        row: list[Any] = [direction.replace("_to_", " → ")]
        row += [f"{found[key]:.0f}" if key in COUNTS and key in found else found.get(key) for key in limits]
        row += [found[key] for key in RECALLS]
        row.append(f"{found['median_rank']:.1f}")
        if reranked:
            row += [reranked.get(direction, {}).get(key) for key in RECALLS]
        rows.append(row)
    return table(rows, headers)


def reranking_note(rerank: Mapping[str, Any]) -> str:
    """By what the candidates were re-ranked, and whether that was chosen for this checkpoint."""
    terms = " + ".join(f"{weight:g} · {name}" for name, weight in rerank["weights"].items())
    chosen = f"chosen on the split {rerank['tuned_on']}" if rerank["tuned_on"] else "not chosen for this checkpoint"
    hint = "" if rerank["tuned_on"] else ": they can lower recall, tools/tune_reranking.py chooses them"
    return f"Re-ranked: the top {rerank['top_k']} by {terms}; weights {chosen}{hint}"


def text_table(metrics: Mapping[str, Any], title: str = "captions") -> str:
    """Metrics of generated texts, one a line: {"facts_right": …, "bleu4": …, "characters": {"bleu4": …}, …}.

    ``chance`` holds the same metrics of texts that stand at other items' places, and becomes a column.
    """
    chance = metrics.get("chance", {})
    rows = []
    for name, value in metrics.items():
        if name == "chance":
            continue
        if isinstance(value, Mapping):
            others = chance.get(name, {})
            rows += [
                [f"{TEXT_METRICS.get(inner, inner)}, {name}", number, others.get(inner)]
                for inner, number in value.items()
            ]
        else:
            rows.append([TEXT_METRICS.get(name, name), value, None if name in COUNTED else chance.get(name)])
    if chance:
        return table(rows, [title, "model", "chance"])
    return table([row[:2] for row in rows], [title, ""])


def masked_table(masked: Mapping[str, Any]) -> str:
    """What was learned ("mlm_accuracy", …) beside what looking at nothing reaches ("mlm_chance", …)."""
    names = [name for name in MASKED if name in masked]
    rows = [[MASKED[name], masked[name], masked[f"{name.rpartition('_')[0]}_chance"]] for name in names]
    return table(rows, ["held-out", "model", "chance"])


def confusion_table(counts: Sequence[Sequence[int]]) -> str:
    """The five cases of matching, [truth][answer], as shares of each truth."""
    rows = []
    for name, line in zip(MATCH_CASES, counts, strict=True):
        rows.append([name, *(count / max(1, sum(line)) for count in line), sum(line)])
    return table(rows, ["truth, answer →", *MATCH_CASES, "rows"])


def classes_table(found: Mapping[str, Any]) -> str:
    """Zero-shot classes beside chance, and the recall of every class."""
    rows = [[f"top-{k}", found[f"top_{k}"], found[f"chance_top_{k}"]] for k in (1, 5) if f"top_{k}" in found]
    rows.append(["mean recall of the classes", found["mean_recall"], found["chance_top_1"]])
    rows.append(["always the most frequent class", found["majority"], None])
    title = f"{found['items']:,} items, {len(found['recall'])} classes"
    classes = [[label, share, found["count"][label]] for label, share in found["recall"].items()]
    return table(rows, [title, "model", "chance"]) + "\n\n" + table(classes, ["class", "recall", "items"])


def vqa_table(found: Mapping[str, Any], given: str) -> str:
    """Accuracy of answers by type of question, beside the best constant answer of each type.

    Args:
        found: ``accuracy``, ``majority``, ``questions`` and by type the same with ``answer``.
        given: what the questions were answered from.
    """
    rows = [
        [kind, one["accuracy"], one["majority"], one["answer"], one["questions"]]
        for kind, one in found["types"].items()
    ]
    rows.append(["all", found["accuracy"], found["majority"], None, found["questions"]])
    return table(rows, [f"questions, answered from {given}", "VQA accuracy", "majority", "always", "questions"])


def summary(metrics: Mapping[str, Any]) -> str:
    """What an evaluation found, as text: ``retrieval`` with ``gallery``, ``reranked`` and ``folds``,
    ``embeddings``, ``reconstruction``, ``caption``, ``transcription``, ``transcription_with_image``,
    ``image_generation``, ``masked``, ``zero_shot``, ``vqa``, ``parameters``.

    What is absent is left out.
    """
    parts = []
    if metrics.get("retrieval"):
        parts.append(f"Retrieval, gallery of {metrics['gallery']:,}")
        parts.append(retrieval_table(metrics["retrieval"], metrics.get("reranked")))
    if metrics.get("rerank"):
        parts.append(reranking_note(metrics["rerank"]))
    if metrics.get("folds"):
        folds = metrics["folds"]
        parts.append(f"Retrieval, mean of {folds['count']} galleries of {folds['gallery']:,}")
        parts.append(retrieval_table(folds["retrieval"], folds["reranked"]))
    if metrics.get("embeddings"):
        measures = ("mean_cosine", "effective_rank", "dimensions")
        rows = [[name, *(found[key] for key in measures)] for name, found in metrics["embeddings"].items()]
        parts.append(table(rows, ["embeddings", "mean cosine", "effective rank", "dimensions"]))
    if metrics.get("reconstruction"):
        rows = [[name, metrics["reconstruction"][key]] for key, name in RECONSTRUCTION.items()]
        parts.append(table(rows, ["codes", ""]))
    for section, title in (
        ("caption", "captions"),
        ("transcription", "transcripts of speech"),
        ("transcription_with_image", "transcripts of speech with its image"),
    ):
        if metrics.get(section):
            parts.append(text_table(metrics[section], title))
    if metrics.get("image_generation"):
        rows = [
            [name, found.get("chance_R@1"), *(found[key] for key in RECALLS)]
            for name, found in metrics["image_generation"].items()
        ]
        parts.append(table(rows, ["text found by the image generated from", LIMITS["chance_R@1"], *RECALLS]))
    if metrics.get("masked"):
        parts.append(masked_table(metrics["masked"]))
        if "confusion" in metrics["masked"]:
            parts.append(confusion_table(metrics["masked"]["confusion"]))
    if metrics.get("zero_shot"):
        parts.append(classes_table(metrics["zero_shot"]))
    for given, found in metrics.get("vqa", {}).items():
        parts.append(vqa_table(found, given))
    if metrics.get("parameters"):
        parts.append(table(list(metrics["parameters"].items()), ["parameters", ""]))
    return "\n\n".join(parts)


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("mindspore", "numpy")}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    return str(value)


def _width(text: str) -> int:
    """Columns that the text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.replace(",", "").replace(".", "").isdecimal()
    return value is None or isinstance(value, int | float | np.number)

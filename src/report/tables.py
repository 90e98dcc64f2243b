"""Results as files and as tables to read: JSON written in one piece, text columns that line up with Chinese in them."""

import platform
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from src.data.schema import MATCH_CASES

DIRECTIONS = {
    "t2i": "text → image",
    "i2t": "image → text",
    "a2i": "speech → image",
    "i2a": "image → speech",
    "t2a": "text → speech",
    "a2t": "speech → text",
    "i2ta": "image → text + speech",
    "ta2i": "text + speech → image",
}
RECONSTRUCTION = {
    "psnr": "PSNR in dB, mean of the images",
    "perplexity": "perplexity of the codes",
    "usage": "share of the codebook in use",
}
FIGURES = {
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


PROBES = {
    "mlm_accuracy": "hidden words right",
    "mvm_code_accuracy": "codes of hidden patches right",
    "mvm_class_accuracy": "classes of hidden regions right",
    "patch_cosine": "cosine of hidden patches",
    "frame_cosine": "cosine of hidden audio",
    "matching_accuracy": "matching, five cases",
}


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A text table in which wide East Asian characters count as two columns; numbers, also as text, are flush right."""
    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"table row {number} has {len(row)} cells for {len(headers)} headers")
    cells = [[_cell(value) for value in row] for row in rows]
    columns = [[header, *(row[at] for row in cells)] for at, header in enumerate(headers)]
    widths = [max(map(_width, column)) for column in columns]
    right = [all(_is_number(row[at]) for row in rows) for at in range(len(headers))]
    lines = [list(headers), ["─" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(_pad(*spec) for spec in zip(line, widths, right, strict=True)).rstrip() for line in lines
    )


def retrieval_table(
    retrieval: Mapping[str, Mapping[str, float]], reranked: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """Recall by direction ({"t2i": {"r1": …, "r5": …, "r10": …, "median_rank": …}, …}), re-ranked at the right.

    ``gallery`` among the figures is how many items were ranked.
    """
    reranked = reranked or {}
    sized = any("gallery" in figures for figures in retrieval.values())
    headers = ["query → gallery", *(["items"] if sized else []), "R@1", "R@5", "R@10", "median"]
    headers += ["re-ranked R@1", "R@5", "R@10"] if reranked else []
    rows = []
    for direction, figures in retrieval.items():
        row = [DIRECTIONS.get(direction, direction), *([f"{figures['gallery']:.0f}"] if sized else [])]
        row += [figures[key] for key in ("r1", "r5", "r10")]
        row.append(f"{figures['median_rank']:.1f}")
        if reranked:
            row += [reranked.get(direction, {}).get(key) for key in ("r1", "r5", "r10")]
        rows.append(row)
    return table(rows, headers)


def caption_table(caption: Mapping[str, Any], title: str = "captions") -> str:
    """Caption figures, one a line: {"facts_right": …, "bleu4": …} or by tokens {"words": {"bleu4": …}, …}."""
    rows = []
    for name, value in caption.items():
        if isinstance(value, Mapping):
            rows += [[f"{FIGURES.get(inner, inner)}, {name}", figure] for inner, figure in value.items()]
        else:
            rows.append([FIGURES.get(name, name), value])
    return table(rows, [title, ""])


def probe_table(probe: Mapping[str, Any]) -> str:
    """What was learned ("mlm_accuracy", …) beside what looking at nothing reaches ("mlm_chance", …)."""
    names = [name for name in PROBES if name in probe]
    rows = [[PROBES[name], probe[name], probe[f"{name.rpartition('_')[0]}_chance"]] for name in names]
    return table(rows, ["held-out", "model", "chance"])


def confusion_table(counts: Sequence[Sequence[int]]) -> str:
    """The five cases of matching, [truth][answer], as shares of each truth."""
    rows = []
    for name, line in zip(MATCH_CASES, counts, strict=True):
        rows.append([name, *(count / max(1, sum(line)) for count in line), sum(line)])
    return table(rows, ["truth, answer →", *MATCH_CASES, "rows"])


def summary(metrics: Mapping[str, Any]) -> str:
    """What an evaluation found, as text: ``retrieval`` with ``gallery``, ``reranked`` and ``folds``,
    ``reconstruction``, ``caption``, ``transcription``, ``transcription_with_image``, ``drawing``, ``probe``,
    ``parameters``.

    What is absent is left out.
    """
    parts = []
    if metrics.get("retrieval"):
        parts.append(f"Retrieval, gallery of {metrics['gallery']:,}")
        parts.append(retrieval_table(metrics["retrieval"], metrics.get("reranked")))
    if metrics.get("folds"):
        folds = metrics["folds"]
        parts.append(f"Retrieval, mean of {folds['count']} galleries of {folds['gallery']:,}")
        parts.append(retrieval_table(folds["retrieval"], folds["reranked"]))
    if metrics.get("reconstruction"):
        parts.append(
            table([[name, metrics["reconstruction"][key]] for key, name in RECONSTRUCTION.items()], ["codes", ""])
        )
    if metrics.get("caption"):
        parts.append(caption_table(metrics["caption"]))
    if metrics.get("transcription"):
        parts.append(caption_table(metrics["transcription"], "transcripts of speech"))
    if metrics.get("transcription_with_image"):
        parts.append(caption_table(metrics["transcription_with_image"], "transcripts of speech with its image"))
    if metrics.get("drawing"):
        rows = [[name, *(figures[key] for key in ("r1", "r5", "r10"))] for name, figures in metrics["drawing"].items()]
        parts.append(table(rows, ["text found by what was drawn from", "R@1", "R@5", "R@10"]))
    if metrics.get("probe"):
        parts.append(probe_table(metrics["probe"]))
        if "confusion" in metrics["probe"]:
            parts.append(confusion_table(metrics["probe"]["confusion"]))
    if metrics.get("parameters"):
        parts.append(table(list(metrics["parameters"].items()), ["parameters", ""]))
    return "\n\n".join(parts)


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
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

"""The metrics of evaluations as flat rows that can stand side by side, and the sentences that sum them up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.report.tables import MASKED, RECALLS, RECONSTRUCTION, TEXT_METRICS

LOWER = {"median_rank", "character_error_rate", "word_error_rate"}  # the less the better
NEUTRAL = {"perplexity"}  # neither more nor less is better
TEXTS = {
    "caption": ("Captions of {images:,} images", "images"),
    "transcription": ("Transcripts of {clips:,} audio clips", "clips"),
    "transcription_with_image": ("Transcripts of {clips:,} audio clips with their images", "clips"),
}

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation.

    Attributes:
        section: what was measured, on how many items: numbers of one section may be compared.
        group: which of several alike, such as a direction of retrieval; may be empty.
        name: of the metric.
        chance: what looking at nothing reaches; None where that is not known.
        sign: 1 where more is better, −1 where less is, 0 where neither.
    """

    section: str
    group: str
    name: str
    value: float
    chance: float | None = None
    sign: int = 1

    @property
    def at_chance(self) -> bool:
        """Whether looking at nothing reaches as much."""
        return self.chance is not None and self.sign * (self.value - self.chance) <= 0


def measures(metrics: Metrics) -> list[Measure]:
    """All numbers of a metrics.json, in the order in which eval.py prints them."""
    return [row for part in PARTS for row in part(metrics)]


def headlines(rows: Sequence[Measure]) -> list[Measure]:
    """The numbers by which each section is judged: of several directions the mean."""
    found: dict[tuple[str, str], list[Measure]] = {}
    for row in rows:
        if row.name in HEADLINES and not (row.name in WHOLE and row.group not in ("", "all")):
            found.setdefault((row.section, row.name), []).append(row)
    return [_mean(alike) for alike in found.values()]


def _mean(rows: Sequence[Measure]) -> Measure:
    first, count = rows[0], len(rows)
    if count == 1:
        return first
    chances = [row.chance for row in rows if row.chance is not None]
    chance = sum(chances) / count if len(chances) == count else None
    name = f"{first.name}, mean of {count}"
    return Measure(first.section, "", name, sum(row.value for row in rows) / count, chance, first.sign)


def _retrieval(metrics: Metrics) -> Iterator[Measure]:
    first, second = metrics.get("retrieval") or {}, metrics.get("reranked") or {}
    gallery = metrics.get("gallery", 0)
    chances = {direction: found.get("chance_R@1") for direction, found in first.items()}
    yield from _recalls(f"Retrieval by embeddings among {gallery:,}", first, chances)
    yield from _recalls(f"Retrieval re-ranked among {gallery:,}", second, chances)
    folds = metrics.get("folds") or {}
    if folds:
        title = f"{{}}, mean of {folds['count']} galleries of {folds['gallery']:,}"
        chances = {direction: found.get("chance_R@1") for direction, found in folds["retrieval"].items()}
        yield from _recalls(title.format("Retrieval by embeddings"), folds["retrieval"], chances)
        yield from _recalls(title.format("Retrieval re-ranked"), folds.get("reranked") or {}, chances)


def _recalls(section: str, found: Metrics, chances: Metrics) -> Iterator[Measure]:
    for direction, recall in found.items():
        group = direction.replace("_to_", " → ")
        for name in RECALLS:
            yield Measure(section, group, name, recall[name], chances.get(direction) if name == "R@1" else None)
        yield Measure(section, group, "median rank", recall["median_rank"], sign=-1)
        if recall.get("best_R@1", 1) < 1:
            yield Measure(section, group, "best R@1 that equal inputs allow", recall["best_R@1"], sign=0)


def _texts(metrics: Metrics) -> Iterator[Measure]:
    for key, (title, counted) in TEXTS.items():
        found = metrics.get(key) or {}
        if not found:
            continue
        section, chance = title.format_map(found), found.get("chance") or {}
        for name, value in found.items():
            if isinstance(value, Mapping) and name != "chance":
                others = chance.get(name) or {}
                for inner, number in value.items():
                    yield _text_measure(section, name, inner, number, others.get(inner))
            elif name not in ("chance", counted):
                yield _text_measure(section, "", name, value, chance.get(name))


def _text_measure(section: str, group: str, name: str, value: float, chance: float | None) -> Measure:
    return Measure(section, group, TEXT_METRICS.get(name, name), value, chance, -1 if name in LOWER else 1)


def _masked(metrics: Metrics) -> Iterator[Measure]:
    found = metrics.get("masked") or {}
    for name, title in MASKED.items():
        if name in found:
            chance = found.get(f"{name.rpartition('_')[0]}_chance")
            yield Measure("Masked modelling and matching", "", title, found[name], chance)


def _reconstruction(metrics: Metrics) -> Iterator[Measure]:
    found = metrics.get("reconstruction") or {}
    for name, title in RECONSTRUCTION.items():
        if name in found:
            section = f"Image codes, {found['images']:,} images"
            yield Measure(section, "", title, found[name], sign=0 if name in NEUTRAL else 1)


def _image_generation(metrics: Metrics) -> Iterator[Measure]:
    for source, found in (metrics.get("image_generation") or {}).items():
        section = "Text found by the image generated from it"
        for name in RECALLS:
            chance = found.get("chance_R@1") if name == "R@1" else None
            yield Measure(section, f"generated from {source}", name, found[name], chance)
        yield Measure(section, f"generated from {source}", "median rank", found["median_rank"], sign=-1)


def _embeddings(metrics: Metrics) -> Iterator[Measure]:
    for name, found in (metrics.get("embeddings") or {}).items():
        section = f"Embeddings of {found['items']:,} items, {found['dimensions']} dimensions"
        yield Measure(section, name, "mean cosine of pairs", found["mean_cosine"], sign=0)
        yield Measure(section, name, "effective rank", found["effective_rank"], sign=0)


def _zero_shot(metrics: Metrics) -> Iterator[Measure]:
    found = metrics.get("zero_shot") or {}
    if not found:
        return
    section = f"Zero-shot classes, {found['items']:,} items of {len(found['recall'])} classes"
    for k in (1, 5):
        if f"top_{k}" in found:
            yield Measure(section, "", f"top-{k}", found[f"top_{k}"], found.get(f"chance_top_{k}"))
    yield Measure(section, "", "mean recall of the classes", found["mean_recall"], found.get("chance_top_1"))
    yield Measure(section, "", "always the most frequent class", found["majority"], sign=0)
    for label, share in found["recall"].items():
        yield Measure(section, label, "recall", share)


def _vqa(metrics: Metrics) -> Iterator[Measure]:
    for given, found in (metrics.get("vqa") or {}).items():
        section = f"{found['questions']:,} questions answered from {given}"
        yield Measure(section, "all", "VQA accuracy", found["accuracy"], found["majority"])
        for kind, one in found["types"].items():
            yield Measure(section, kind, "VQA accuracy", one["accuracy"], one["majority"])


Part = Callable[[Metrics], Iterator[Measure]]
PARTS: tuple[Part, ...] = (
    *(_retrieval, _embeddings, _reconstruction, _texts, _image_generation, _masked, _zero_shot, _vqa),
)
WHOLE = {"VQA accuracy", "CIDEr-D"}  # these are judged as a whole, not by group
HEADLINES = {"R@1", "all facts right", "CIDEr-D", "character error rate", "top-1", "VQA accuracy"}
HEADLINES |= {*MASKED.values(), RECONSTRUCTION["psnr"]}

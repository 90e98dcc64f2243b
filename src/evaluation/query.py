"""A trained model on the user's own files: find what belongs to a query, write captions and transcripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.config import ModelConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation import media, recall
from src.evaluation.evaluate import Evaluator
from src.evaluation.figures import Query, retrieval_sheet
from src.evaluation.media import Medium
from src.evaluation.report import table, write_json
from src.evaluation.retrieval import softmax
from src.evaluation.sheets import save_captions


@dataclass(frozen=True)
class Found:
    """A file of the gallery with its cosine to the query and its share of the probability among the candidates."""

    medium: Medium
    share: float
    cosine: float


def read(
    query: str | None, gallery: Path | None, described: Path | None, model: ModelConfig
) -> tuple[Medium | None, list[Medium]]:
    """The query, if there is one, and the files to search or to describe, if there are any.

    Raises:
        DataError: a file or folder is missing, empty or unreadable.
    """
    if described is not None:
        return None, media.read_files(media.find_files(described, (IMAGE, AUDIO)), model)
    if query is None or gallery is None:
        return None, []
    if not gallery.is_dir():
        raise DataError(f"--gallery {gallery}: no such folder")
    asked = media.read_query(query, model)
    return asked, media.read_files(media.find_files(gallery, (TEXT, IMAGE, AUDIO)), model)


def search(evaluator: Evaluator, query: Medium, gallery: list[Medium], top: int) -> list[Found]:
    """The best of a gallery of one modality, the best first, ranked again as the configuration says.

    A gallery of the query's own modality is ranked by embeddings alone.
    """
    config, encoder, tokenizer = evaluator.config, evaluator.encoder, evaluator.tokenizer
    asked = media.encode(encoder, tokenizer, [query], config.model)
    offered = media.encode(encoder, tokenizer, gallery, config.model)
    depth = min(max(top, config.eval.rerank), len(gallery))
    (candidates,), (cosines,) = recall.top_k(asked.embeddings, offered.embeddings, depth)
    scores = None
    kind = gallery[0].modality
    if config.eval.rerank and kind != query.modality:
        pairs = np.stack([np.zeros_like(candidates), candidates], 1)
        pairs = pairs if query.modality < kind else pairs[:, ::-1]
        scores = evaluator.retriever.second_scores({query.modality: asked, kind: offered}, pairs, cosines)
    if scores is None:
        scores = evaluator.retriever.temperature() * cosines
    shares = softmax(scores)
    order = np.argsort(-scores, kind="stable")[:top]
    return [Found(gallery[candidates[i]], float(shares[i]), float(cosines[i])) for i in order]


def answer(evaluator: Evaluator, query: Medium, gallery: list[Medium], top: int, output: Path) -> dict[str, Any]:
    """Prints a ranked table for each modality of the gallery and writes query.json and a figure of each."""
    results: dict[str, Any] = {"query": query.name}
    for modality, members in media.group(gallery).items():
        found = search(evaluator, query, members, top)
        name = media.plural(modality)
        rows = [[rank, hit.medium.name, hit.share, hit.cosine] for rank, hit in enumerate(found, 1)]
        print(table(rows, ["", f"{len(members)} {name}", "share", "cosine"]), end="\n\n")
        results[name] = [{"file": hit.medium.name, "share": hit.share, "cosine": hit.cosine} for hit in found]
        title = f"{name.capitalize()} found for {query.name}"
        shown = [_hit(hit) for hit in found]
        retrieval_sheet(output / f"query-{name}.png", title, [(_query(query), shown)])
    write_json(output / "query.json", results)
    return results


def describe(evaluator: Evaluator, things: list[Medium], output: Path | None) -> list[str]:
    """Prints what the model writes about pictures and hears in sounds; saves it in COCO's result format."""
    names, texts = [], []
    for modality, members in media.group(things).items():
        items = media.encode(evaluator.encoder, evaluator.tokenizer, members, evaluator.config.model)
        given = {"image": items.tokens} if modality == IMAGE else {"audio": (items.tokens, items.mask)}
        names += [medium.name for medium in members]
        texts += evaluator.decoder.texts(evaluator.decoder.write(**given))
    print(table(list(zip(names, texts, strict=True)), ["file", "text"]))
    if output:
        save_captions(output / "captions.json", names, texts)
    return texts


def _query(query: Medium) -> Query:
    return query.content if query.modality == TEXT else (query.content, Path(query.name).name)


def _hit(found: Found) -> tuple[str, np.ndarray | None, float, bool]:
    medium = found.medium
    label = medium.content if medium.modality == TEXT else Path(medium.name).name
    return label, medium.content if medium.modality == IMAGE else None, found.share, False

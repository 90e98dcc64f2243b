"""A trained model on the user's own files: find what belongs to a query, write captions and transcripts, draw."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.config import Config, ConfigError, ModelConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.retrieval import softmax
from src.evaluation.run import Evaluator
from src.evaluation.sheets import save_captions
from src.files import write_json
from src.inference import gallery, media
from src.inference.encode import Items
from src.inference.gallery import Gallery, Plan
from src.inference.media import Medium
from src.metrics.nearest import top_k
from src.report.sheets import Query, album_sheet, retrieval_sheet
from src.report.tables import table

FEW = 64  # for a query in so few files compiling the graphs takes longer than running without


@dataclass(frozen=True)
class Search:
    """A query that was read, or none, and what the gallery's files are known as."""

    query: Medium | None
    plan: Plan
    fingerprint: str  # of the checkpoint

    @property
    def few(self) -> bool:
        """Whether little is left to encode."""
        return self.plan.fresh <= FEW

    def run(self, evaluator: Evaluator, top: int, output: Path, index: Path | None) -> None:
        """Answers the query and keeps the gallery in an index, or does one of both."""
        found = gallery.embed(self.plan, evaluator.encoder, evaluator.tokenizer, evaluator.config.model)
        if index is not None:
            gallery.keep(index, found, self.fingerprint)
            print(f"{index} holds {len(found.names)} files of {found.folder}", end="\n\n")
        if self.query is not None:
            answer(evaluator, self.query, found, top, output)


def prepare(
    query: str | None, folder: Path | None, index: Path | None, checkpoint: Path, config: Config
) -> Search | None:
    """Reads the query and looks at the gallery or its index; None where neither is named.

    Raises:
        DataError: a file or folder is missing, empty or unreadable, or the index is another checkpoint's.
    """
    if folder is None and index is None:
        return None
    _check_task(config)
    asked = media.read_query(query, config.model) if query is not None else None
    fingerprint = gallery.fingerprint_of(checkpoint, config.model)
    return Search(asked, gallery.plan(folder, index, fingerprint), fingerprint)


def read_things(path: Path, config: Config) -> list[Medium]:
    """The images and audio clips that are to be described; what of them the model does not read is said.

    Raises:
        DataError: there are none, or none can be read.
    """
    _check_task(config)
    things = media.read_files(media.find_files(path, (IMAGE, AUDIO)), config.model)
    for medium in things:
        if medium.cut:
            print(f"note: {medium.name} {medium.cut}", file=sys.stderr)
    return things


def _check_task(config: Config) -> None:
    if config.task == "image_tokenizer":
        raise ConfigError("task=image_tokenizer: an image tokenizer can be measured, but not asked")


def read_subject(subject: str, config: Config) -> Medium:
    """The text or the audio to draw.

    Raises:
        ConfigError: the model draws nothing, or nothing says whose codes it draws.
        DataError: the subject is empty, cannot be read, or is an image.
    """
    _check_task(config)
    if not config.model.image_codes:
        raise ConfigError("--draw: model.image_codes=false: this model was trained without an image decoder")
    if not config.data.codes:
        raise ConfigError("--draw: data.codes is empty: name the run folder of the image tokenizer")
    medium = media.read_query(subject, config.model, "--draw")
    if medium.modality == IMAGE:
        raise DataError(f"--draw {subject}: an image is drawn already; expected a text or an audio clip")
    return medium


def read_seen(image: Path, things: list[Medium], config: Config) -> Medium:
    """The image that belongs to the audio clips.

    Raises:
        DataError: it cannot be read, or there is no audio that it could belong to.
    """
    if all(medium.modality != AUDIO for medium in things):
        raise DataError(f"--seen {image}: --input holds no audio that it could belong to")
    if image.is_dir():
        raise DataError(f"--seen {image} is a folder: expected an image")
    (file,) = media.find_files(image, (IMAGE,))
    return media.read_file(file, config.model)


@dataclass(frozen=True)
class Found:
    """A file of the gallery with its cosine to the query and its share of the probability among the candidates."""

    medium: Medium
    share: float
    cosine: float


def search(
    evaluator: Evaluator, modality: int, asked: Items, offered: Gallery, places: np.ndarray, top: int
) -> list[Found]:
    """The best of a gallery, the best first, ranked again as the configuration says.

    What is of the query's own modality is ranked by embeddings alone.

    Args:
        evaluator: the model and its settings.
        modality: of the query.
        asked: the query, encoded.
        offered: where.
        places: the files that are ranked, all of one modality, int64 [n].
        top: how many are wanted.
    """
    config, encoder, tokenizer = evaluator.config, evaluator.encoder, evaluator.tokenizer
    depth = min(max(top, config.eval.rerank.top_k), len(places))
    (candidates,), (cosines,) = top_k(asked.embeddings, offered.embeddings[places], depth)
    files = [offered.folder / offered.names[place] for place in places[candidates]]
    read, failures = media.try_files(files, config.model)  # again: an index holds no content
    media.report(failures, len(files), len(failures) < len(files))
    kept = np.array([medium is not None for medium in read])
    found, cosines = [medium for medium in read if medium], cosines[kept]
    scores, kind = None, found[0].modality
    if config.eval.rerank.top_k and evaluator.retriever.reranks and kind != modality:
        items = {modality: asked, kind: media.encode(encoder, tokenizer, found, config.model)}
        pairs = np.stack([np.zeros(len(found), np.int64), np.arange(len(found))], 1)
        pairs = pairs if modality < kind else pairs[:, ::-1]
        scores = evaluator.retriever.second_scores(items, pairs, cosines)
    if scores is None:
        scores = evaluator.retriever.temperature() * cosines
    shares = softmax(scores)
    order = np.argsort(-scores, kind="stable")[:top]
    return [Found(found[i], float(shares[i]), float(cosines[i])) for i in order]


def answer(evaluator: Evaluator, query: Medium, offered: Gallery, top: int, output: Path) -> dict[str, Any]:
    """Prints a ranked table for each modality of the gallery and writes query.json and a figure of each."""
    for loss in media.losses(query, evaluator.tokenizer, evaluator.config.model):
        print(f"note: {loss}", file=sys.stderr)
    asked = media.encode(evaluator.encoder, evaluator.tokenizer, [query], evaluator.config.model)
    results: dict[str, Any] = {"query": query.name}
    for kind, places in offered.groups().items():
        found = search(evaluator, query.modality, asked, offered, places, top)
        name = media.plural(kind)
        rows = [[rank, hit.medium.name, hit.share, hit.cosine] for rank, hit in enumerate(found, 1)]
        print(table(rows, ["", f"{len(places)} {name}", "share", "cosine"]), end="\n\n")
        results[name] = [{"file": hit.medium.name, "share": hit.share, "cosine": hit.cosine} for hit in found]
        title = f"{name.capitalize()} found for {query.name}"
        model = evaluator.config.model
        row = (_query(query, model), [_hit(hit, model) for hit in found])
        retrieval_sheet(output / f"query-{name}.png", title, [row])
    write_json(output / "query.json", results)
    return results


def describe(evaluator: Evaluator, things: list[Medium], output: Path | None, seen: Medium | None = None) -> list[str]:
    """Prints what the model writes about images and hears in audio clips; saves it in COCO's result format.

    Args:
        seen: an image that belongs to every audio.
    """
    names, texts = [], []
    for modality, members in media.group(things).items():
        given = {modality: _encoded(evaluator, members)}
        if seen is not None and modality == AUDIO:
            given[IMAGE] = tuple(np.repeat(array, len(members), 0) for array in _encoded(evaluator, [seen]))
        names += [medium.name for medium in members]
        texts += evaluator.decoder.texts(evaluator.decoder.write(given))
    print(table(list(zip(names, texts, strict=True)), ["file", "text"]))
    if output:
        save_captions(output / "captions.json", names, texts)
    return texts


def draw(evaluator: Evaluator, subject: Medium, output: Path) -> list[float]:
    """Draws a text or an audio clip ``eval.image_generation.samples`` times; writes the images, the best first, a sheet and a table.

    Returns:
        how well each suits the subject (``eval.image_generation.rank_by``), the best first.
    """
    items = media.encode(evaluator.encoder, evaluator.tokenizer, [subject], evaluator.config.model)
    (images,), (scores,) = evaluator.image_generator.draw_all(subject.modality, items)
    order = np.argsort(-scores, kind="stable")
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"drawing-{rank}.png" for rank in range(1, len(order) + 1)]
    for file, image in zip(files, images[order], strict=True):
        Image.fromarray(image).save(file)
    found = scores[order].tolist()
    rows = [[rank, str(file), score] for rank, (file, score) in enumerate(zip(files, found, strict=True), 1)]
    print(table(rows, ["", f"drawn of {subject.name}", evaluator.config.eval.image_generation.rank_by]))
    shown = [f"{rank}  {score:.3f}" for rank, score in enumerate(found, 1)]
    album_sheet(output / "drawing.png", subject.name, list(zip(images[order], shown, strict=True)))
    entries = [{"file": file.name, "score": score} for file, score in zip(files, found, strict=True)]
    write_json(output / "drawing.json", {"subject": subject.name, "drawings": entries})
    return found


def _encoded(evaluator: Evaluator, members: list[Medium]) -> tuple[np.ndarray, np.ndarray]:
    items = media.encode(evaluator.encoder, evaluator.tokenizer, members, evaluator.config.model)
    return items.tokens, items.mask


def _query(query: Medium, model: ModelConfig) -> Query:
    if query.modality == TEXT:
        return query.content
    seen, name = media.shown(query, model), Path(query.name).name
    return name if seen is None else (seen, name)


def _hit(found: Found, model: ModelConfig) -> tuple[str, np.ndarray | None, float, bool]:
    medium = found.medium
    label = medium.content if medium.modality == TEXT else Path(medium.name).name
    return label, media.shown(medium, model) if medium.modality == IMAGE else None, found.share, False

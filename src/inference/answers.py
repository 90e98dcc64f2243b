"""Answers about the user's own files: rank a gallery for a query, caption images, transcribe audio, generate images."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.config import OPT, Config, ConfigError, ModelConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.files import write_json
from src.inference import gallery, media
from src.inference.encode import Items
from src.inference.engine import Engine
from src.inference.gallery import Gallery, Plan
from src.inference.media import Medium
from src.inference.rerank import Proposal, softmax
from src.metrics.nearest import top_k
from src.report.coco import save_captions
from src.report.sheets import Query, album_sheet, retrieval_sheet
from src.report.tables import table

FEW = 64  # for a query in so few files compiling the graphs takes longer than running without


@dataclass(frozen=True)
class Search:
    """A query that was read, or none, and what is known of the gallery's files."""

    query: Medium | None
    plan: Plan
    fingerprint: str  # of the checkpoint

    @property
    def few(self) -> bool:
        """Whether little is left to encode."""
        return self.plan.fresh <= FEW

    def run(self, engine: Engine, top: int, output: Path, index: Path | None) -> None:
        """Answers the query and keeps the gallery in an index, or does one of both."""
        found = gallery.embed(self.plan, engine)
        if index is not None:
            gallery.keep(index, found, self.fingerprint)
            print(f"{index} holds {len(found.names)} files of {found.folder}", end="\n\n")
        if self.query is not None:
            rank_gallery(engine, self.query, found, top, output)


def read_search(
    query: str | None, folder: Path | None, index: Path | None, checkpoint: Path, config: Config, ema: bool = False
) -> Search:
    """Reads the query and looks at the gallery or its index.

    Args:
        ema: the checkpoint's averaged weights will answer.

    Raises:
        DataError: a file or folder is missing, empty or unreadable, or the index is another checkpoint's.
    """
    asked = media.read_query(query, config.model) if query is not None else None
    fingerprint = gallery.fingerprint_of(checkpoint, config.model, ema)
    return Search(asked, gallery.plan(folder, index, fingerprint), fingerprint)


def read_input(path: Path, config: Config) -> list[Medium]:
    """The images and audio clips that are to be described; says what of them the model does not read.

    Raises:
        DataError: there are none, or none can be read.
    """
    found = media.read_files(media.find_files(path, (IMAGE, AUDIO)), config.model)
    for medium in found:
        if medium.cut:
            print(f"note: {medium.name} {medium.cut}", file=sys.stderr)
    return found


def read_companion(image: Path, clips: list[Medium], config: Config) -> Medium:
    """The image that belongs to the audio clips.

    Raises:
        DataError: it cannot be read, or there is no audio clip that it could belong to.
    """
    if all(medium.modality != AUDIO for medium in clips):
        raise DataError(f"--with-image {image}: --input holds no audio clip that it could belong to")
    if image.is_dir():
        raise DataError(f"--with-image {image} is a folder: expected an image")
    (file,) = media.find_files(image, (IMAGE,))
    return media.read_file(file, config.model)


def read_subject(subject: str, config: Config) -> Medium:
    """The text or the audio clip to generate images from.

    Raises:
        ConfigError: the model generates no images, or nothing says whose codes it generates.
        DataError: the subject is empty, cannot be read, or is an image.
    """
    if not config.model.image_codes:
        raise ConfigError("--generate: model.image_codes=false: this model was trained without an image decoder")
    if not config.data.codes:
        raise ConfigError("--generate: data.codes is empty: name the run folder of the image tokenizer")
    medium = media.read_query(subject, config.model, "--generate")
    if medium.modality == IMAGE:
        raise DataError(f"--generate {subject} is an image: expected a text or an audio clip")
    return medium


def check_request(args: Any, refuse: Callable[[str], None]) -> None:
    """Passes what contradicts itself among the options of infer.py to ``refuse``, as one line."""
    searches = args.gallery is not None or args.index is not None
    if searches != (args.query is not None or args.save_index is not None):
        refuse("--query or --save-index goes together with --gallery or --index")
    if args.with_image is not None and args.input is None:
        refuse("--with-image goes with --input")
    if args.samples is not None and (args.generate is None or args.samples < 1):
        refuse("--samples goes with --generate and must be at least 1")
    if searches + (args.input is not None) + (args.generate is not None) != 1:
        refuse("give one of --query (or --save-index), --input, --generate")
    if args.top < 1:
        refuse("--top must be at least 1")


def check_network(config: Config) -> None:
    """Raises ConfigError for an image tokenizer, which answers nothing."""
    if config.network != OPT:
        raise ConfigError(f"task={config.task}: an image tokenizer answers no questions: measure it with eval.py")


SCORES = (
    "share: of the probability among the candidates, 1 in all: which file fits best, not whether any fits\n"
    "cosine: of the two embeddings, −1 to 1: how alike query and file are by themselves"
)


@dataclass(frozen=True)
class Found:
    """A file of the gallery with its cosine to the query and its share of the probability among the candidates."""

    medium: Medium
    share: float
    cosine: float


def search(engine: Engine, modality: int, asked: Items, offered: Gallery, places: np.ndarray, top: int) -> list[Found]:
    """The best of a gallery, the best first, re-ranked as the configuration says.

    What is of the query's own modality is ranked by embeddings only.

    Args:
        engine: the model and its settings.
        modality: of the query.
        asked: the query, encoded.
        offered: where.
        places: the files that are ranked, all of one modality, int64 [n].
        top: how many are wanted.
    """
    config, reranker = engine.config, engine.reranker
    depth = min(max(top, config.eval.rerank.top_k), len(places))
    (candidates,), (cosines,) = top_k(asked.embeddings, offered.embeddings[places], depth)
    files = [offered.folder / offered.names[place] for place in places[candidates]]
    read, failures = media.try_files(files, config.model)  # an index holds no content
    media.report(failures, len(files), len(failures) < len(files))
    kept = np.array([medium is not None for medium in read])
    found, cosines = [medium for medium in read if medium], cosines[kept]
    kind = found[0].modality
    if config.eval.rerank.top_k and reranker.active and kind != modality:
        items = {modality: asked, kind: engine.encode(found)}
        pairs = np.stack([np.zeros(len(found), np.int64), np.arange(len(found))], 1)
        scores = reranker.scores(Proposal(items, pairs if modality < kind else pairs[:, ::-1], cosines))
    else:
        scores = reranker.logit_scale() * cosines
    shares = softmax(scores)
    order = np.argsort(-scores, kind="stable")[:top]
    return [Found(found[i], float(shares[i]), float(cosines[i])) for i in order]


def rank_gallery(engine: Engine, query: Medium, offered: Gallery, top: int, output: Path) -> dict[str, Any]:
    """Prints a ranked table for each modality of the gallery and writes query.json and a figure of each."""
    model = engine.config.model
    for loss in media.losses(query, engine.tokenizer, model):
        print(f"note: {loss}", file=sys.stderr)
    asked = engine.encode([query])
    results: dict[str, Any] = {"query": query.name}
    for kind, places in offered.groups().items():
        found = search(engine, query.modality, asked, offered, places, top)
        name = media.plural(kind)
        rows = [[rank, hit.medium.name, hit.share, hit.cosine] for rank, hit in enumerate(found, 1)]
        print(table(rows, ["", f"{len(places)} {name}", "share", "cosine"]), end="\n\n")
        results[MODALITIES[kind]] = [
            {"file": hit.medium.name, "share": hit.share, "cosine": hit.cosine} for hit in found
        ]
        title = f"{name.capitalize()} found for {query.name}"
        row = (_query(query, model), [_hit(hit, model) for hit in found])
        retrieval_sheet(output / f"query-{MODALITIES[kind]}.png", title, [row])
    print(SCORES)
    write_json(output / "query.json", results)
    return results


def describe(engine: Engine, things: list[Medium], output: Path | None, image: Medium | None = None) -> list[str]:
    """Prints captions of images and transcripts of audio clips; saves them in COCO's result format.

    Args:
        image: that belongs to every audio clip.
    """
    names, texts = [], []
    for modality, members in media.group(things).items():
        items = engine.encode(members)
        if modality == IMAGE:
            texts += engine.caption(items)
        elif image is None:
            texts += engine.text_generator.decode(engine.transcribe(items).ids)
        else:
            beside = engine.encode([image]).take(np.zeros(len(members), np.int64))
            texts += engine.text_generator.decode(engine.transcribe_with_images(items, beside))
        names += [medium.name for medium in members]
    print(table(list(zip(names, texts, strict=True)), ["file", "text"]))
    if output:
        save_captions(output / "captions.json", names, texts)
    return texts


def generate(engine: Engine, subject: Medium, output: Path) -> list[float]:
    """Generates ``eval.image_generation.samples`` images; writes them, the best first, a sheet and a table.

    Returns:
        how well each suits the subject (``eval.image_generation.rank_by``), the best first.
    """
    (images,), (scores,) = engine.image_generator.generate_all(subject.modality, engine.encode([subject]))
    order = np.argsort(-scores, kind="stable")
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"generated-{rank}.png" for rank in range(1, len(order) + 1)]
    for file, image in zip(files, images[order], strict=True):
        Image.fromarray(image).save(file)
    found = scores[order].tolist()
    rows = [[rank, str(file), score] for rank, (file, score) in enumerate(zip(files, found, strict=True), 1)]
    print(table(rows, ["", f"generated from {subject.name}", engine.config.eval.image_generation.rank_by]))
    shown = [f"{rank}  {score:.3f}" for rank, score in enumerate(found, 1)]
    album_sheet(output / "generated.png", subject.name, list(zip(images[order], shown, strict=True)))
    entries = [{"file": file.name, "score": score} for file, score in zip(files, found, strict=True)]
    write_json(output / "generated.json", {"subject": subject.name, "images": entries})
    return found


def _query(query: Medium, model: ModelConfig) -> Query:
    if query.modality == TEXT:
        return query.content
    seen, name = media.shown(query, model), Path(query.name).name
    return name if seen is None else (seen, name)


def _hit(found: Found, model: ModelConfig) -> tuple[str, np.ndarray | None, float, bool]:
    medium = found.medium
    label = medium.content if medium.modality == TEXT else Path(medium.name).name
    return label, media.shown(medium, model) if medium.modality == IMAGE else None, found.share, False

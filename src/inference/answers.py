"""Answers about the user's own files: rank, caption, transcribe, classify, answer questions, generate images."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.config import Config, ModelConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.files import require_writable, write_json
from src.inference import gallery, media
from src.inference.encode import ROWS
from src.inference.gallery import Files, Gallery, Plan
from src.inference.images import check_generates
from src.inference.inputs import collect
from src.inference.labelled import read_templates
from src.inference.library import Model
from src.inference.media import MODALITY, Medium
from src.inference.questions import check_answers, check_reads
from src.inference.results import Hit
from src.report.coco import keys_of_files, save_captions
from src.report.sheets import Query, album_sheet, retrieval_sheet
from src.report.tables import table

FEW = 1000  # for a query in so few files compiling the graphs takes longer than running without


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

    def run(self, model: Model, top: int, output: Path, index: Path | None) -> None:
        """Keeps the gallery in an index and answers the query, or does one of both.

        Raises:
            DataError, OSError: the index cannot be written; the query is answered before.
        """
        found, failed = gallery.embed(self.plan, model), None
        if index is not None:
            try:
                gallery.keep(index, found, self.fingerprint)
                print(f"{index} holds {len(found.names)} files of {found.folder}", end="\n\n")
            except (OSError, DataError) as error:
                failed = error
        if self.query is not None:
            rank_gallery(model, self.query, found, top, output)
        if failed:
            raise failed


def read_search(
    query: str | None,
    folder: Path | None,
    index: Path | None,
    kept: Path | None,
    checkpoint: Path,
    config: Config,
    ema: bool = False,
) -> Search:
    """Reads the query and looks at the gallery or its index.

    Args:
        kept: the index that will be written.
        ema: the checkpoint's averaged weights will answer.

    Raises:
        DataError: a file or folder is missing, empty or unreadable, or the index is another checkpoint's.
        OSError: the folder of the index that will be written cannot be made or written to.
    """
    if kept is not None:
        if kept.is_dir():
            raise DataError(f"--save-index {kept} is a folder: name a file")
        require_writable(kept.parent)
    asked = media.read_query(query, config.model) if query is not None else None
    fingerprint = gallery.fingerprint_of(checkpoint, config.model, ema)
    return Search(asked, gallery.plan(folder, index, fingerprint), fingerprint)


def find_input(path: Path, config: Config) -> list[Path]:
    """The files of images and audio clips that are to be described.

    Raises:
        DataError: there are none, or none can be read.
    """
    files = media.find_files(path, (IMAGE, AUDIO))
    failures: list[str] = []
    for file in files:  # up to the first that can be read: the others may be more than memory holds
        read, errors = media.try_files([file], config.model)
        if read[0]:
            return files
        failures += errors
    media.report(failures, len(files), False)
    return []


def read_companion(image: Path, files: list[Path], config: Config) -> Medium:
    """The image that belongs to the audio clips among the files.

    Raises:
        DataError: it cannot be read, or there is no audio clip that it could belong to.
    """
    if all(MODALITY[file.suffix.lower()] != AUDIO for file in files):
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
    check_generates(config)
    medium = media.read_query(subject, config.model, "--generate")
    if medium.modality == IMAGE:
        raise DataError(f"--generate {subject} is an image: expected a text or an audio clip")
    return medium


def read_question(question: str, files: list[Path], config: Config) -> Medium:
    """The question, text or an audio clip, that is asked about the images among the files.

    Raises:
        ConfigError: the model answers no such questions.
        DataError: the question is empty, cannot be read, or is an image, or there is no image to ask about.
    """
    check_answers(config)
    medium = media.read_query(question, config.model, "--ask")
    if medium.modality == IMAGE:
        raise DataError(f"--ask {question} is an image: expected a question, as text or an audio clip")
    check_reads(config, medium.modality)
    if not images_among(files):
        raise DataError("--ask: --input holds no image that the question could be about")
    return medium


def images_among(files: list[Path]) -> list[Path]:
    return [file for file in files if MODALITY[file.suffix.lower()] == IMAGE]


SCORES = (
    "share: of the probability among the candidates, 1 in all: which file fits best, not whether any fits\n"
    "cosine: of the two embeddings, −1 to 1: how alike query and file are by themselves"
)


def rank_gallery(model: Model, query: Medium, offered: Gallery, top: int, output: Path) -> dict[str, Any]:
    """Prints a ranked table for each modality of the gallery and writes query.json and a figure of each."""
    (query,) = read_closely(model, [query])
    _remove_earlier(output, r"query-(text|image|audio)\.png")
    results: dict[str, Any] = {"query": query.name}
    for kind, places in offered.groups().items():
        failures: list[str] = []  # of files that have gone since an index was made
        found = model.rank(query, Files(offered, places), top, offered.embeddings[places], collect(failures))
        media.report(failures, len(places), True)
        name = media.plural(kind)
        rows = [[rank, hit.medium.name, hit.share, hit.cosine] for rank, hit in enumerate(found, 1)]
        print(table(rows, ["", f"{len(places)} {name}", "share", "cosine"]), end="\n\n")
        results[MODALITIES[kind]] = [
            {"file": hit.medium.name, "share": hit.share, "cosine": hit.cosine} for hit in found
        ]
        title = f"{name.capitalize()} found for {query.name}"
        row = (_query(query, model.config.model), [_hit(hit, model.config.model) for hit in found])
        retrieval_sheet(output / f"query-{MODALITIES[kind]}.png", title, [row])
    print(SCORES)
    write_json(output / "query.json", results)
    return results


def read_closely(model: Model, asked: list[Medium]) -> list[Medium]:
    """Media of one modality, encoded once for all that follows; on stderr stands what of them means little.

    That is what the model does not read, and which are far from all that it was trained on.
    """
    known = model.encoded(asked)
    _remark([note for medium in known for note in model.notes(medium)])
    _remark(model.unlike(known))
    return known


def _remark(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def read_inputs(model: Model, files: list[Path], modality: int, failures: list[str]) -> Iterator[list[Medium]]:
    """The files of a modality, some at a time, as :func:`read_closely` has them; failures get what is left out."""
    own = [file for file in files if MODALITY[file.suffix.lower()] == modality]
    for start in range(0, len(own), ROWS):
        read, errors = media.try_files(own[start : start + ROWS], model.config.model)
        failures += errors
        if things := [medium for medium in read if medium]:
            yield read_closely(model, things)


def describe(model: Model, files: list[Path], output: Path, image: Medium | None = None) -> list[str]:
    """Prints captions of images and transcripts of audio clips, and saves them in COCO's result format.

    What of a file the model does not read is said; what cannot be read is named and left out.

    Args:
        image: that belongs to every audio clip.
    """
    names, texts, failures = [], [], []
    for kind, read in ((IMAGE, images_among(files)), (AUDIO, len(files) - len(images_among(files)))):
        if read and not _was_trained(model.config, kind):
            what = f"its training has no objective that writes texts from {media.plural(kind)}"
            _remark([f"{model.name}: {what} (objectives.denoise_text): what it writes may mean nothing"])
    if image is not None:
        (image,) = read_closely(model, [image])
    for things in read_inputs(model, files, IMAGE, failures):
        texts += model.caption(things)
        names += [medium.name for medium in things]
    for things in read_inputs(model, files, AUDIO, failures):
        texts += model.transcribe(things, None if image is None else [image] * len(things))
        names += [medium.name for medium in things]
    media.report(failures, len(files), bool(names))
    print(table(list(zip(names, texts, strict=True)), ["file", "text"]))
    save_captions(output / "captions.json", keys_of_files(names), texts)
    return texts


def classify(model: Model, files: list[Path], labels: list[str], output: Path) -> dict[str, str]:
    """Prints which label is nearest to each image and audio clip; writes classes.json with the share of every label."""
    templates = read_templates(model.config.eval.zero_shot.templates)
    # a label alone is unlike a caption, and meant to be
    _remark([note for label in labels for note in model.notes(Medium(label, TEXT, label))])
    results: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    for modality in (IMAGE, AUDIO):
        names: list[str] = []
        things = _noting(read_inputs(model, files, modality, failures), names)
        found = model.classify(things, labels, templates)
        for name, shares in zip(names, found.shares.tolist(), strict=True):
            results[name] = dict(zip(labels, shares, strict=True))
    media.report(failures, len(files), bool(results))
    best = {name: max(shares, key=shares.get) for name, shares in results.items()}
    print(table([[name, label, results[name][label]] for name, label in best.items()], ["file", "class", "share"]))
    print("share: of the probability among these labels, 1 in all: which fits best, not whether any fits")
    write_json(output / "classes.json", results)
    return best


def _noting(batches: Iterator[list[Medium]], names: list[str]) -> Iterator[Medium]:
    """Media one by one, whose names are noted as they pass."""
    for medium in chain.from_iterable(batches):
        names.append(medium.name)
        yield medium


def ask(model: Model, files: list[Path], question: Medium, output: Path) -> dict[str, str]:
    """Prints the answer to a question about each image, and writes answers.json."""
    (question,) = read_closely(model, [question])
    found: dict[str, str] = {}
    failures: list[str] = []
    for things in read_inputs(model, files, IMAGE, failures):
        answers = model.answer(things, [question] * len(things))
        found |= {medium.name: answer for medium, answer in zip(things, answers, strict=True)}
    media.report(failures, len(images_among(files)), bool(found))
    print(table(list(found.items()), ["file", question.name]))
    write_json(output / "answers.json", {"question": question.name, "answers": found})
    return found


def generate(model: Model, subject: Medium, output: Path) -> list[float | None]:
    """Generates ``eval.image_generation.samples`` images; writes them, the best first, a sheet and a table.

    Returns:
        how well each suits the subject (``eval.image_generation.rank_by``), the best first; None of what is not scored,
        which stands as it was sampled.
    """
    (subject,) = read_closely(model, [subject])
    (made,) = model.generate_image([subject])
    output.mkdir(parents=True, exist_ok=True)
    _remove_earlier(output, r"generated-\d+\.png")
    files = [output / f"generated-{rank}.png" for rank in range(1, len(made.images) + 1)]
    for file, image in zip(files, made.images, strict=True):
        Image.fromarray(image).save(file)
    found = made.known_scores
    rows = [[rank, str(file), score] for rank, (file, score) in enumerate(zip(files, found, strict=True), 1)]
    print(table(rows, ["", f"generated from {subject.name}", model.config.eval.image_generation.rank_by]))
    shown = [f"{rank}" if score is None else f"{rank}  {score:.3f}" for rank, score in enumerate(found, 1)]
    album_sheet(output / "generated.png", subject.name, list(zip(made.images, shown, strict=True)))
    entries = [{"file": file.name, "score": score} for file, score in zip(files, found, strict=True)]
    write_json(output / "generated.json", {"subject": subject.name, "images": entries})
    return found


def _was_trained(config: Config, modality: int) -> bool:
    """Whether texts are written from a modality by what a run trained, or perhaps by what it started from."""
    objectives = config.objectives
    given = "+".join(objectives.denoise_text.given).split("+")
    trained = objectives.weights.denoise_text > 0 and MODALITIES[modality] in given
    return trained or bool(config.train.init_from)


def _remove_earlier(output: Path, pattern: str) -> None:
    """Pictures of an earlier answer, of which there may be more than of this one."""
    for path in output.glob("*.png"):
        if re.fullmatch(pattern, path.name):
            path.unlink()


def _query(query: Medium, model: ModelConfig) -> Query:
    if query.modality == TEXT:
        return query.content
    seen, name = media.shown(query, model), Path(query.name).name
    return name if seen is None else (seen, name)


def _hit(found: Hit, model: ModelConfig) -> tuple[str, np.ndarray | None, float, bool]:
    medium = found.medium
    label = medium.content if medium.modality == TEXT else Path(medium.name).name
    return label, media.shown(medium, model) if medium.modality == IMAGE else None, found.share, False

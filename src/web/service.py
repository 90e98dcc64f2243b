"""What the page asks of the models that it shows: every call goes through the worker and through the library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from src.config import Config, ConfigError
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES
from src.inference import gallery, load, media
from src.inference.answers import FEW
from src.inference.gallery import Files, Gallery
from src.inference.images import check_generates
from src.inference.inputs import Item, collect, modality_of, read_item
from src.inference.library import Model
from src.inference.loading import check_network
from src.inference.media import Medium
from src.inference.questions import check_answers
from src.inference.results import Generated, Hit, MatchMap
from src.web.worker import Worker

MOST_SAMPLES = 8  # images that one request generates
MOST_HITS = 24
FIRST = 12  # files of the gallery that are shown before a visitor asks
EXAMPLES = 3  # texts that a visitor may try


@dataclass(frozen=True)
class Shown:
    """A model that the page shows, and its gallery."""

    name: str
    model: Model
    offered: Gallery
    first: list[Medium]  # some of the gallery's images and audio clips
    examples: list[str]  # texts to try: captions of some of its images

    @property
    def config(self) -> Config:
        return self.model.config


@dataclass(frozen=True)
class Found:
    """What a search found: hits by modality, the best first, and what there is to say of the query."""

    query: Medium
    hits: dict[int, list[Hit]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """Texts that a model generated, and what there is to say of what they are about."""

    texts: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Made:
    """Images that a model generated, and what there is to say of what they were generated from."""

    generated: Generated
    notes: list[str]


@dataclass(frozen=True)
class Matched:
    """Where a model looks in an image or audio clip for each word of a text, and what there is to say of both."""

    found: MatchMap
    medium: Medium
    notes: list[str]


class Service:
    """Models that answer visitors, one request at a time.

    Args:
        worker: in whose thread the models were loaded.
        shown: the models; the first answers where only one is asked.
    """

    def __init__(self, worker: Worker, shown: Sequence[Shown]) -> None:
        self.worker, self.shown = worker, list(shown)

    def lacks(self, check: Callable[[Config], None]) -> str:
        """Why the first model lacks the ability that ``check`` asks for; empty if it has it."""
        try:
            check(self.shown[0].config)
        except ConfigError as error:
            return str(error)
        return ""

    def search(self, query: Item, top: int, which: int = 0) -> Found:
        """The gallery's best files of each modality for a text, an image or an audio clip.

        Raises:
            DataError: the query cannot be read.
        """
        return self.worker.call(_search, self.shown[which], query, max(1, min(top, MOST_HITS)))

    def describe(self, image: Path | None, clip: Path | None, which: int = 0) -> Told:
        """The caption of an image, the transcript of a clip, or both, the clip then heard beside the image.

        Raises:
            DataError: neither is given, or one cannot be read.
        """
        return self.worker.call(_describe, self.shown[which], image, clip)

    def ask(self, image: Path, question: str | Path) -> Told:
        """The answer to a question, a text or an audio clip, about an image.

        Raises:
            ConfigError: the model answers no such questions.
            DataError: the image or the question cannot be read.
        """
        return self.worker.call(_ask, self.shown[0], image, question)

    def generate(self, prompt: str | Path, samples: int, guidance: float, seed: int) -> Made:
        """Images of a text or of speech, the best first if they were scored.

        Raises:
            ConfigError: the model generates no images.
            DataError: the prompt cannot be read.
        """
        return self.worker.call(_generate, self.shown[0], prompt, max(1, min(samples, MOST_SAMPLES)), guidance, seed)

    def match(self, text: str, image: Path | None, clip: Path | None) -> Matched:
        """Where the first model looks in an image or in an audio clip for each word of a text.

        Args:
            text: if it is empty, what the model says of the image or hears in the clip.

        Raises:
            DataError: not just one of image and clip is given, or something cannot be read.
        """
        return self.worker.call(_match, self.shown[0], text, image, clip)


def open_service(
    worker: Worker,
    checkpoints: Sequence[Path],
    folder: Path | None,
    index: Path | None,
    settings: Sequence[str] = (),
    ema: bool = False,
) -> Service:
    """Loads the models and encodes the gallery with each; an index is of the first. To be called by the worker.

    Where there is an index alone, the gallery of all is the folder that it was made of.

    Raises:
        CheckpointError, ConfigError: a checkpoint cannot be loaded, or a setting is wrong.
        DataError: the gallery is missing or empty, or the index is another checkpoint's.
    """
    first = _open(checkpoints[0], folder, index, settings, ema)
    others = [_open(path, first.offered.folder, None, settings, ema) for path in checkpoints[1:]]
    return Service(worker, [first, *others])


def _open(path: Path, folder: Path | None, index: Path | None, settings: Sequence[str], ema: bool) -> Shown:
    place = locate(path, ema)
    config = load_checkpoint_config(place, settings)
    check_network(config)
    # before the model is built, so that mistakes are told at once
    planned = gallery.plan(folder, index, gallery.fingerprint_of(place, config.model, ema))
    if planned.fresh <= FEW:
        settings = ["runtime.mode=pynative", *settings]
    model = load(place, settings, ema=ema)
    offered = gallery.embed(planned, model)
    seen = [place for kind in (IMAGE, AUDIO) for place in offered.groups().get(kind, [])[:FIRST]]
    read = media.try_files(list(Files(offered, seen)), config.model)[0]
    first = [medium for medium in read if medium is not None]
    images = [medium for medium in first if medium.modality == IMAGE]
    return Shown(str(path), model, offered, first, model.caption(images[:EXAMPLES]))


def read(shown: Shown, item: Item) -> Medium:
    """A visitor's text, image or audio clip, named without the folder of uploads.

    Raises:
        DataError: it cannot be read.
    """
    if not isinstance(item, Path):
        return read_item(item, modality_of(item, "input"), "input", shown.config.model)
    try:
        medium = read_item(item, modality_of(item, item.name), item.name, shown.config.model)
    except DataError as error:
        raise DataError(str(error).replace(f"{item.parent}/", "")) from None
    return replace(medium, name=item.name)


def remarks(shown: Shown, *asked: Medium) -> list[str]:
    """What of media the model does not read, and which are unlike all that it was trained on."""
    model = shown.model
    return [note for medium in asked for note in (*model.notes(medium), *model.unlike([medium]))]


def pixels(shown: Shown, medium: Medium):
    """What is seen of a medium, as :func:`src.inference.media.shown` has it."""
    return media.shown(medium, shown.config.model)


def _search(shown: Shown, query: Item, top: int) -> Found:
    asked, offered = read(shown, query), shown.offered
    notes = remarks(shown, asked)
    hits: dict[int, list[Hit]] = {}
    for modality, places in offered.groups().items():
        files = Files(offered, places)
        hits[modality] = shown.model.rank(asked, files, top, offered.embeddings[places], collect(notes))
    return Found(asked, hits, notes)


def _describe(shown: Shown, image: Path | None, clip: Path | None) -> Told:
    seen, heard = (None if path is None else read(shown, path) for path in (image, clip))
    texts: list[str] = []
    if seen is not None:
        texts += shown.model.caption([seen])
    if heard is not None:
        texts += shown.model.transcribe([heard], None if seen is None else [seen])
    if not texts:
        raise DataError("give an image or an audio clip")
    return Told(texts, remarks(shown, *(medium for medium in (seen, heard) if medium is not None)))


def _ask(shown: Shown, image: Path, question: str | Path) -> Told:
    check_answers(shown.config)
    asked, seen = read(shown, question), read(shown, image)
    return Told(shown.model.answer([seen], [asked]), remarks(shown, asked, seen))


def _generate(shown: Shown, prompt: str | Path, samples: int, guidance: float, seed: int) -> Made:
    check_generates(shown.config)
    asked = read(shown, prompt)
    (made,) = shown.model.generate_image([asked], seed, guidance, samples)
    return Made(made, remarks(shown, asked))


def _match(shown: Shown, text: str, image: Path | None, clip: Path | None) -> Matched:
    if (image is None) == (clip is None):
        raise DataError("give either an image or an audio clip")
    medium, model = read(shown, image or clip), shown.model
    if not text.strip():
        (text,) = model.caption([medium]) if medium.modality == IMAGE else model.transcribe([medium])
    told = read(shown, text)
    found = model.match_map(told, **{MODALITIES[medium.modality]: medium})
    return Matched(found, medium, remarks(shown, told, medium))

"""What an evaluation shows: samples from all over a split with what was retrieved, captioned and generated."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from src.config import AudioEncoderConfig
from src.data.audio import spectrogram
from src.data.image import decode_image
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.playback import sound
from src.data.regions import sketch
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, MODALITIES, TEXT
from src.demo.facts import FactMetric
from src.evaluation.relevance import relevance
from src.files import write_json
from src.inference.encode import Items
from src.inference.rerank import Ranking
from src.report.coco import save_captions
from src.report.examples import RATE, Card, ExampleBook
from src.report.plots import confusion_matrix
from src.report.sheets import (
    Hit,
    Query,
    album_sheet,
    caption_sheet,
    generation_sheet,
    reconstruction_sheet,
    retrieval_sheet,
    spectrogram_image,
)

ROWS = 6  # queries of a sheet
HITS = 5
CAPTIONS = 24
TRANSCRIPTS = 12
TRANSCRIPT_TITLES = {
    "transcripts.json": "Transcripts of speech",
    "transcripts_with_image.json": "Transcripts of speech with its image",
}
GENERATED, ALBUM = 8, 32
SHEETS = {  # direction → query, gallery, file and title
    "text_to_image": (TEXT, IMAGE, "retrieval_by_text.png", "Images found by text"),
    "audio_to_image": (AUDIO, IMAGE, "retrieval_by_speech.png", "Images found by speech"),
    "image_to_text": (IMAGE, TEXT, "retrieval_by_image.png", "Texts found by image"),
    "audio_to_text": (AUDIO, TEXT, "texts_by_speech.png", "Texts found by speech"),
}
EXAMPLES, CAPTIONS_FILE = "examples.json", "captions.json"
FILES = (  # all that an evaluation may show, and so what an earlier one may have left in its folder
    EXAMPLES,
    CAPTIONS_FILE,
    *TRANSCRIPT_TITLES,
    *(f"figures/{file}" for _, _, file, _ in SHEETS.values()),
    *(f"figures/{name}.png" for name in ("captions", "classes", "generated", "generated_album", "matching")),
    "figures/reconstruction.png",
)


@dataclass(frozen=True)
class Media:
    """What a sample has to be seen, read and heard."""

    image: np.ndarray | None  # uint8 [S, S, 3]
    caption: str
    clip: np.ndarray | None  # as schema.audio_layout stores it
    audio: AudioEncoderConfig

    @property
    def spectrogram(self) -> np.ndarray | None:
        """uint8 [M, N]; None without audio, and of features."""
        return None if self.clip is None else spectrogram(self.clip, self.audio)

    def card(self, which: int, head: str = "", detail: str = "", right: bool | None = None) -> Card:
        """The caption with what else of the sample is shown: its image, or its audio."""
        if which == IMAGE and self.image is not None:
            return Card(self.caption, (self.image,), None, head, detail, right)
        if which == AUDIO and self.spectrogram is not None:
            picture, play = spectrogram_image(self.spectrogram), partial(sound, self.clip, self.audio, RATE)
            return Card(self.caption, (picture,), play, head, detail, right)
        return Card(self.caption, head=head, detail=detail, right=right)


class Sheets:
    """Writes FILES into a folder; media are read again from the dataset, so that no evaluation keeps them in memory.

    Args:
        loader: of the split; None where only images in pairs are shown.
        folder: of the evaluation.
    """

    def __init__(self, loader: Loader | None, folder: Path) -> None:
        self.loader, self.folder = loader, folder
        self.book = ExampleBook()
        self._written: set[str] = set()

    def save(self) -> None:
        """Writes the examples of all sheets as data, for a report; what an earlier evaluation left beside them goes."""
        self.book.save(self._place(EXAMPLES))
        for name in set(FILES) - self._written:
            (self.folder / name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        """Where one of FILES is written."""
        self._written.add(name)
        return self.folder / name

    def retrieval(self, items: dict[int, Items], rankings: dict[str, Ranking]) -> None:
        """A sheet for each direction of SHEETS that was ranked."""
        for direction, (query, gallery, file, title) in SHEETS.items():
            if direction not in rankings:
                continue
            asked, offered, ranking = items[query].samples, items[gallery].samples, rankings[direction]
            shown = evenly_apart(len(ranking.queries), ROWS)
            queries, best, shares = (part[shown] for part in (ranking.queries, ranking.indices, ranking.shares))
            best, shares = best[:, :HITS], shares[:, :HITS]
            right = relevance(items, query, gallery).take(queries).at(best)
            rows, cards = [], []
            for item, *columns in zip(queries, best, shares, right, strict=True):
                found = self.media(int(asked[item]))
                hits = [
                    (self.media(int(offered[index])), share, bool(relevant))
                    for index, share, relevant in zip(*columns, strict=True)
                ]
                rows.append((_query(found, query), [_hit(gallery, *hit) for hit in hits]))
                ranked = [hit.card(gallery, "", f"share {share:.2f}", relevant) for hit, share, relevant in hits]
                cards.append([found.card(query, "query"), *ranked])
            note = f"each with its share among {ranking.indices.shape[1]} candidates"
            retrieval_sheet(self._place(f"figures/{file}"), f"{title}, {note}", rows)
            self.book.add(title, cards, f"The best {HITS}, {note}; the right ones are framed.")

    def media(self, sample: int) -> Media:
        """What a sample has."""
        model, dataset = self.loader.config.model, self.loader.dataset
        record_index, caption, _ = dataset.samples[sample]
        record = next(dataset.read([record_index]))
        text, size = record.captions[caption] if caption >= 0 else "", model.image.size
        image = None
        if record.image is not None:
            image = decode_image(record.image, size, model.image.resize, record.key)
        elif record.regions is not None:
            image = sketch(record.regions, size)
        return Media(image, text, record.audio[max(caption, 0)] if record.audio else None, model.audio)

    def generated(self, subjects: dict[int, Items], images: dict[int, np.ndarray]) -> None:
        """Originals, each beside what was generated from its text and speech; more, from text only."""
        texts = subjects[TEXT].samples
        samples = texts[evenly_apart(len(texts), GENERATED)].tolist()
        places = {which: {s: row for row, s in enumerate(subjects[which].samples.tolist())} for which in images}
        names = ("original", *(f"from {MODALITIES[which]}" for which in images))
        rows, cards = [], []
        for sample in samples:
            given = self.media(sample)
            made = [images[which][row[sample]] if sample in row else None for which, row in places.items()]
            rows.append((given.caption, [given.image, *made]))
            shown = zip(names, rows[-1][1], strict=True)
            pictured = [Card(images=(image,), head=name) for name, image in shown if image is not None]
            cards.append([given.card(AUDIO if AUDIO in images else TEXT, "query"), *pictured])
        title = "Images generated from text and from speech"
        generation_sheet(self._place("figures/generated.png"), title, names, rows)
        self.book.add(title, cards)
        album = [(images[TEXT][row], self.media(int(texts[row])).caption) for row in evenly_apart(len(texts), ALBUM)]
        album_sheet(self._place("figures/generated_album.png"), "Images generated from text", album)
        self.book.add("Images generated from text", [[Card(text, (image,)) for image, text in album]])

    def reconstructions(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Images above what the image tokenizer keeps of them."""
        title = "Images, and what their codes keep"
        reconstruction_sheet(self._place("figures/reconstruction.png"), title, pairs)
        self.book.add(title, [[Card(images=pair) for pair in pairs]], "Above the image, below what is decoded.")

    def confusion(self, counts: list[list[int]]) -> None:
        """What matching answered in each of its five cases."""
        title = "Which of text, image and audio belong together"
        confusion_matrix(self._place("figures/matching.png"), title, MATCH_CASES, counts)

    def classes(self, labels: list[str], counts: np.ndarray) -> None:
        """The confusion of classes, [truth][answer]."""
        confusion_matrix(self._place("figures/classes.png"), "Zero-shot classes: share of each truth", labels, counts)

    def transcripts(self, file: str, clips: Items, texts: list[str]) -> None:
        """All transcripts, each with the id of its record and which of its captions was spoken; some to show."""
        records, captions = self.loader.dataset.samples[clips.samples, :2].T.tolist()
        keys = [record.key for record in self.loader.dataset.read(records)]
        rows = zip(keys, captions, texts, strict=True)
        entries = [{"id": key, "caption": caption, "transcript": text} for key, caption, text in rows]
        write_json(self._place(file), entries)
        cards = []
        for row in evenly_apart(len(texts), TRANSCRIPTS):
            said = self.media(int(clips.samples[row]))
            right = texts[row] == said.caption
            card = said.card(AUDIO, detail="" if right else f"said: {said.caption}", right=right)
            cards.append(replace(card, text=texts[row] or "–"))
        self.book.add(TRANSCRIPT_TITLES[file], [cards], "Framed green: exactly what was said.")

    def captions(
        self, images: Items, generated: list[str], references: list[list[str]], facts: FactMetric | None
    ) -> None:
        """Captions under their images, and all of them as a COCO result file."""
        shown = []
        for row in evenly_apart(len(images), CAPTIONS):
            text, group = generated[row], references[row]
            right = all(facts.compare(text, group).values()) if facts else text in group
            shown.append((self.media(int(images.samples[row])).image, text, group[0], right))
        title = "Captions generated from the image only"
        caption_sheet(self._place("figures/captions.png"), title, shown)
        cards = [
            Card(text or "–", (image,), detail=f"reference: {one}", right=right) for image, text, one, right in shown
        ]
        stated = "every fact is right" if facts else "it is one of the references"
        self.book.add(title, [cards], f"✓, framed green: {stated}.")
        dataset = self.loader.dataset
        keys = [record.key for record in dataset.read(dataset.samples[images.samples, 0])]
        save_captions(self._place(CAPTIONS_FILE), keys, generated)


def _query(found: Media, which: int) -> Query:
    shown = {TEXT: None, IMAGE: found.image, AUDIO: found.spectrogram}[which]
    return found.caption if shown is None else (shown, found.caption)


def _hit(which: int, found: Media, share: float, relevant: bool) -> Hit:
    return found.caption, found.image if which == IMAGE else None, share, relevant

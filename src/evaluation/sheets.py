"""What an evaluation shows: samples from all over a split with what was retrieved, captioned and generated."""

from pathlib import Path

import numpy as np

from src.data.audio import spectrogram
from src.data.image import decode_image
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.regions import sketch
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, MODALITIES, TEXT
from src.demo.facts import FactMetric
from src.evaluation.relevance import relevance
from src.files import write_json
from src.inference.encode import Items
from src.inference.rerank import Ranking
from src.report.coco import save_captions
from src.report.plots import confusion_matrix
from src.report.sheets import (
    Hit,
    Query,
    album_sheet,
    caption_sheet,
    generation_sheet,
    reconstruction_sheet,
    retrieval_sheet,
)

ROWS = 6  # queries of a sheet
HITS = 5
CAPTIONS = 24
GENERATED, ALBUM = 8, 32
SHEETS = {  # direction → query, gallery, file and title
    "text_to_image": (TEXT, IMAGE, "retrieval_by_text.png", "Images found by text"),
    "audio_to_image": (AUDIO, IMAGE, "retrieval_by_speech.png", "Images found by speech"),
    "image_to_text": (IMAGE, TEXT, "retrieval_by_image.png", "Texts found by image"),
    "audio_to_text": (AUDIO, TEXT, "texts_by_speech.png", "Texts found by speech"),
}


class Sheets:
    """Writes into a folder; media are read again from the dataset, so that no evaluation keeps them in memory.

    Args:
        loader: of the split; None where only images in pairs are shown.
        folder: of the figure files.
    """

    def __init__(self, loader: Loader | None, folder: Path) -> None:
        self.loader, self.folder = loader, folder

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
            rows = []
            for item, *columns in zip(queries, best, shares, right, strict=True):
                hits = [
                    self._hit(gallery, int(offered[index]), share, bool(relevant))
                    for index, share, relevant in zip(*columns, strict=True)
                ]
                rows.append((self._query(query, int(asked[item])), hits))
            title += f", each with its share among {ranking.indices.shape[1]} candidates"
            retrieval_sheet(self.folder / file, title, rows)

    def _query(self, modality: int, sample: int) -> Query:
        image, caption, clip = self.media(sample)
        shown = {TEXT: None, IMAGE: image, AUDIO: clip}[modality]
        return caption if shown is None else (shown, caption)

    def _hit(self, modality: int, sample: int, share: float, relevant: bool) -> Hit:
        image, caption, _ = self.media(sample)
        return caption, image if modality == IMAGE else None, share, relevant

    def media(self, sample: int) -> tuple[np.ndarray | None, str, np.ndarray | None]:
        """A sample's image uint8 [S, S, 3], caption, and log-mel uint8 [M, N]; None where there is nothing to see."""
        model, dataset = self.loader.config.model, self.loader.dataset
        record_index, caption, _ = dataset.samples[sample]
        record = next(dataset.read([record_index]))
        text, size = record.captions[caption] if caption >= 0 else "", model.image.size
        image = None
        if record.image is not None:
            image = decode_image(record.image, size, model.image.resize, record.key)
        elif record.regions is not None:
            image = sketch(record.regions, size)
        clip = record.audio[max(caption, 0)] if record.audio else None
        return image, text, None if clip is None else spectrogram(clip, model.audio)

    def generated(self, subjects: dict[int, Items], images: dict[int, np.ndarray]) -> None:
        """Originals, each beside what was generated from its text and speech; more, from text only."""
        texts = subjects[TEXT].samples
        samples = texts[evenly_apart(len(texts), GENERATED)].tolist()
        places = {which: {s: row for row, s in enumerate(subjects[which].samples.tolist())} for which in images}
        rows = []
        for sample in samples:
            original, caption, _ = self.media(sample)
            made = [images[which][row[sample]] if sample in row else None for which, row in places.items()]
            rows.append((caption, [original, *made]))
        names = ("original", *(f"from {MODALITIES[which]}" for which in images))
        generation_sheet(self.folder / "generated.png", "Images generated from text and from speech", names, rows)
        album = [(images[TEXT][row], self.media(int(texts[row]))[1]) for row in evenly_apart(len(texts), ALBUM)]
        album_sheet(self.folder / "generated_album.png", "Images generated from text", album)

    def reconstructions(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Images above what the image tokenizer keeps of them."""
        reconstruction_sheet(self.folder / "reconstruction.png", "Images, and what their codes keep", pairs)

    def confusion(self, counts: list[list[int]]) -> None:
        """What matching answered in each of its five cases."""
        title = "Which of text, image and audio belong together"
        confusion_matrix(self.folder / "matching.png", title, MATCH_CASES, counts)

    def classes(self, labels: list[str], counts: np.ndarray) -> None:
        """The confusion of classes, [truth][answer]."""
        confusion_matrix(self.folder / "classes.png", "Zero-shot classes: share of each truth", labels, counts)

    def transcripts(self, file: str, clips: Items, texts: list[str]) -> None:
        """All transcripts, each with the id of its record and which of the record's captions was spoken."""
        records, captions = self.loader.dataset.samples[clips.samples, :2].T.tolist()
        keys = [record.key for record in self.loader.dataset.read(records)]
        rows = zip(keys, captions, texts, strict=True)
        entries = [{"id": key, "caption": caption, "transcript": text} for key, caption, text in rows]
        write_json(self.folder.parent / file, entries)

    def captions(
        self, images: Items, generated: list[str], references: list[list[str]], facts: FactMetric | None
    ) -> None:
        """Captions under their images, and all of them as a COCO result file."""
        shown = []
        for row in evenly_apart(len(images), CAPTIONS):
            text, group = generated[row], references[row]
            right = all(facts.compare(text, group).values()) if facts else text in group
            shown.append((self.media(int(images.samples[row]))[0], text, group[0], right))
        caption_sheet(self.folder / "captions.png", "Captions generated from the image only", shown)
        dataset = self.loader.dataset
        keys = [record.key for record in dataset.read(dataset.samples[images.samples, 0])]
        save_captions(self.folder.parent / "captions.json", keys, generated)

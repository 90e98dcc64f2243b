"""Images of an evaluation: what was found for the first queries of a split, and what was written under images."""

from pathlib import Path

import numpy as np

from src.data.audio import spectrogram
from src.data.image import decode_image
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, MODALITIES, TEXT
from src.demo.facts import FactMetric
from src.evaluation.reconstruction import SHEET, TITLE
from src.evaluation.retrieval import SHOWN, Ranking
from src.files import write_json
from src.inference.encode import Items
from src.inference.media import sketch
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

ROWS = 6  # queries of a sheet: the first of the split, not the best
CAPTIONS = 24
DRAWINGS, ALBUM = 8, 32
SHEETS = {  # direction → file and title
    "t2i": ("retrieval_text.png", "Images found by text"),
    "a2i": ("retrieval_voice.png", "Images found by voice"),
    "i2t": ("retrieval_image.png", "Texts found by image"),
}
MODALITY = {"t": TEXT, "i": IMAGE, "a": AUDIO}


class Sheets:
    """Draws into a folder; media are read again from the dataset, so that no evaluation keeps them in memory."""

    def __init__(self, loader: Loader, folder: Path) -> None:
        self.loader, self.folder = loader, folder
        self.model = loader.config.model

    def retrieval(self, items: dict[int, Items], rankings: dict[str, Ranking]) -> None:
        """A sheet for each direction of SHEETS that was ranked."""
        for direction, (file, title) in SHEETS.items():
            if direction not in rankings:
                continue
            asked, offered = items[MODALITY[direction[0]]], items[MODALITY[direction[2]]]
            ranking = rankings[direction]
            rows = []
            for row in range(min(ROWS, len(ranking.queries))):
                query = int(ranking.queries[row])
                best = zip(ranking.indices[row, :SHOWN], ranking.shares[row, :SHOWN], strict=True)
                hits = [
                    self.hit(direction[2], offered, int(index), share, asked.images[query]) for index, share in best
                ]
                rows.append((self.query(direction[0], int(asked.samples[query])), hits))
            title += f", each with its share among {ranking.indices.shape[1]} candidates"
            retrieval_sheet(self.folder / file, title, rows)

    def query(self, letter: str, sample: int) -> Query:
        image, caption, clip = self.media(sample)
        seen = {"t": None, "i": image, "a": clip}[letter]
        return caption if seen is None else (seen, caption)

    def hit(self, letter: str, offered: Items, index: int, share: float, wanted: int) -> Hit:
        image, caption, _ = self.media(int(offered.samples[index]))
        return caption, image if letter == "i" else None, share, bool(offered.images[index] == wanted)

    def media(self, sample: int) -> tuple[np.ndarray | None, str, np.ndarray | None]:
        """A sample's image uint8 [S, S, 3], caption, and audio uint8 [M, N]; None where there is nothing to see."""
        record_index, caption, _ = self.loader.dataset.samples[sample]
        record = next(self.loader.dataset.read([record_index]))
        text, size = record.captions[caption] if caption >= 0 else "", self.model.image.size
        image = None
        if record.image is not None:
            image = decode_image(record.image, size, record.key)
        elif record.regions is not None:
            image = sketch(record.regions, size)
        clip = record.audio[max(caption, 0)] if record.audio else None
        return image, text, None if clip is None else spectrogram(clip, self.model.audio)

    def drawings(self, subjects: dict[int, Items], drawn: dict[int, np.ndarray]) -> None:
        """The first images, and beside each what was drawn of its text and of its speech; more, of texts alone."""
        samples = subjects[TEXT].samples[:DRAWINGS].tolist()
        places = {which: {s: at for at, s in enumerate(subjects[which].samples.tolist())} for which in drawn}
        rows = []
        for sample in samples:
            image, caption, _ = self.media(sample)
            made = [drawn[which][at[sample]] if sample in at else None for which, at in places.items()]
            rows.append((caption, [image, *made]))
        names = ("original", *(f"from {MODALITIES[which]}" for which in drawn))
        generation_sheet(self.folder / "drawings.png", "Images drawn from text and from speech", names, rows)
        shown = zip(drawn[TEXT], subjects[TEXT].samples[:ALBUM].tolist(), strict=False)
        album = [(image, self.media(sample)[1]) for image, sample in shown]
        album_sheet(self.folder / "drawn_texts.png", "Images drawn from text", album)

    def reconstructions(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """The first images above what the image tokenizer keeps of them."""
        reconstruction_sheet(self.folder / SHEET, TITLE, pairs)

    def confusion(self, counts: list[list[int]]) -> None:
        """What matching answered in each of its five cases."""
        title = "Which of text, image and audio belong together"
        confusion_matrix(self.folder / "matching.png", title, MATCH_CASES, counts)

    def captions(
        self, images: Items, written: list[str], references: list[list[str]], world: FactMetric | None
    ) -> None:
        """The first captions under their images, and all of them as a COCO result file."""
        shown = []
        for sample, text, group in list(zip(images.samples, written, references, strict=True))[:CAPTIONS]:
            right = all(world.compare(text, group).values()) if world else text in group
            shown.append((self.media(int(sample))[0], text, group[0], right))
        caption_sheet(self.folder / "captions.png", "Captions written from the image alone", shown)
        keys = [record.key for record in self.loader.dataset.read(self.loader.dataset.samples[images.samples, 0])]
        save_captions(self.folder.parent / "captions.json", keys, written)


def save_captions(path: Path, names: list[str], written: list[str]) -> None:
    """The COCO result format: a list of {"image_id", "caption"}."""
    write_json(path, [{"image_id": coco_id(name), "caption": text} for name, text in zip(names, written, strict=True)])


def coco_id(name: str) -> int | str:
    """An image's number in COCO, which stands behind the split in the keys of its records; other names as they are."""
    number = name.rpartition("/")[2]
    return int(number) if number.isdecimal() and str(int(number)) == number else name

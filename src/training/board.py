"""What TensorBoard shows beside numbers: the first batch, an evaluation's sheets and texts, and embeddings.

Nothing here ends a run: a sheet that cannot be drawn is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.audio import spectrogram
from src.data.decoding import brief, read_bytes
from src.data.image import encode_png, open_rgb
from src.data.order import evenly_apart
from src.data.pipeline import Batch, Loader
from src.evaluation.sheets import Sheets
from src.files import write_bytes, write_text
from src.inference.encode import NAMES, Items
from src.inference.rerank import Ranking

SAMPLES = 8  # of the first batch
TEXTS = 12  # generated texts of an evaluation
POINTS = 200  # embeddings of each modality
THUMBNAIL = 32  # pixels on a side, in the projector's sprite
SHEET_WIDTH = 1200  # pixels; wider sheets are made smaller
HEADER = ("modality", "text", "image")
PROJECTOR = "projector"  # folder in that of the events


@dataclass(frozen=True)
class Points:
    """Embeddings: vectors float32 [n, E], of each a row of :data:`HEADER` and a thumbnail uint8 [32, 32, 3]."""

    vectors: np.ndarray
    rows: list[tuple[str, str, str]]
    thumbnails: np.ndarray


@dataclass
class Shown:
    """Images uint8 [H, W, 3] and Markdown by tag, and embeddings."""

    images: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    points: Points | None = None


def of_batch(batch: Batch, loader: Loader) -> Shown:
    """The first rows of a batch as the network reads them: images and log-mels in a row each, texts with their masks.

    An image tokenizer's batches hold images alone.
    """
    rows = slice(0, SAMPLES)
    shown = Shown()
    if "image" in batch:
        shown.images["first_batch/image"] = np.concatenate(list(batch["image"][rows]), 1)
    if "text_ids" in batch:
        decode = loader.tokenizer.decode
        texts = zip(batch["text_ids"][rows], batch["mlm_ids"][rows], strict=True)
        lines = [(str(row), decode(ids), decode(masked)) for row, (ids, masked) in enumerate(texts)]
        shown.texts["first_batch/text"] = markdown(("row", "text", "with masked words"), lines)
    if "audio" in batch:
        clips = [spectrogram(clip, loader.config.model.audio) for clip in batch["audio"][rows]]
        if all(clip is not None for clip in clips):
            grey = np.concatenate([clip.T[::-1] for clip in clips], 0)  # time to the right, pitch upwards
            shown.images["first_batch/audio"] = np.repeat(grey[..., None], 3, 2).astype(np.uint8)
    return shown


class EvaluationSheets:
    """The sheets of an evaluation in a folder for a while, and what else TensorBoard shows of it.

    It stands in for :class:`src.evaluation.sheets.Sheets`. What cannot be drawn is noted in ``failed``.

    Args:
        loader: of the split.
        folder: an empty one.
    """

    def __init__(self, loader: Loader | None, folder: Path) -> None:
        self.sheets, self.folder = Sheets(loader, folder), folder / "figures"
        self.shown, self.failed = Shown(), list[str]()

    def __getattr__(self, name: str) -> Callable[..., None]:
        draw = getattr(self.sheets, name)
        return lambda *args: self._attempt(name, draw, *args)

    def retrieval(self, items: dict[int, Items], rankings: dict[str, Ranking]) -> None:
        self._attempt("retrieval", self.sheets.retrieval, items, rankings)
        self._attempt("embeddings", self._keep_points, items)

    def transcripts(self, file: str, clips: Items, texts: list[str]) -> None:
        self._attempt("transcripts", self._keep_transcripts, Path(file).stem, clips, texts)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Reads what was drawn, and what ``metrics`` hold of texts."""
        self._attempt("texts", self._keep_texts, metrics)
        for path in sorted(self.folder.glob("*.png")):
            self._attempt(path.name, self._keep_sheet, path)

    def _attempt(self, name: str, draw: Callable[..., None], *args: Any) -> None:
        try:
            draw(*args)
        except Exception as error:  # a font, a library, a sample: metrics do not depend on what is shown of them
            self.failed.append(f"{name}: {brief(error)}")

    def _keep_sheet(self, path: Path) -> None:
        found = open_rgb(read_bytes(path, "figure"), str(path))
        if found.width > SHEET_WIDTH:
            found = found.resize((SHEET_WIDTH, round(found.height * SHEET_WIDTH / found.width)))
        self.shown.images[f"evaluation/{path.stem}"] = np.asarray(found)

    def _keep_transcripts(self, name: str, clips: Items, texts: list[str]) -> None:
        chosen = evenly_apart(len(clips), TEXTS).tolist()
        rows = [(texts[row], self.sheets.media(int(clips.samples[row])).caption) for row in chosen]
        self.shown.texts[f"evaluation/{name}"] = markdown(("transcript", "said"), rows)

    def _keep_texts(self, metrics: Mapping[str, Any]) -> None:
        if metrics.get("examples"):
            rows = [(one["caption"], " / ".join(one["references"])) for one in metrics["examples"][:TEXTS]]
            self.shown.texts["evaluation/captions"] = markdown(("caption", "references"), rows)
        for given, found in metrics.get("vqa", {}).items():
            rows = [(one["question"], one["answer"], " / ".join(one["answers"])) for one in found["examples"][:TEXTS]]
            tag = f"evaluation/answers_from_{given.replace('+', '_')}"
            self.shown.texts[tag] = markdown(("question", "answer", "right"), rows)

    def _keep_points(self, items: Mapping[int, Items]) -> None:
        """Embeddings of the same images, texts and clips, each with its text and its image."""
        images = np.unique(np.concatenate([group.images for group in items.values()]))
        wanted = images[evenly_apart(len(images), POINTS)]
        vectors, rows, thumbnails = [], [], []
        for which, group in sorted(items.items()):
            chosen = np.flatnonzero(np.isin(group.images, wanted))[:POINTS]
            vectors.append(group.embeddings[chosen])
            for row in chosen.tolist():
                found = self.sheets.media(int(group.samples[row]))
                rows.append((NAMES[which], _cell(found.caption), str(int(group.images[row]))))
                thumbnails.append(_thumbnail(found.image))
        self.shown.points = Points(np.concatenate(vectors), rows, np.stack(thumbnails))


def write_points(folder: Path, points: Points) -> None:
    """The projector's files beside the events: those of the latest evaluation alone, so that they stay small.

    Raises:
        OSError: they cannot be written.
    """
    place = folder / PROJECTOR
    lines = ("\t".join(f"{value:.6g}" for value in vector) for vector in points.vectors.tolist())
    write_text(place / "vectors.tsv", "".join(line + "\n" for line in lines))
    write_text(place / "metadata.tsv", "".join("\t".join(row) + "\n" for row in (HEADER, *points.rows)))
    write_bytes(place / "sprite.png", encode_png(_sprite(points.thumbnails)))
    config = (
        "embeddings {\n"
        '  tensor_name: "held-out embeddings"\n'
        f'  tensor_path: "{PROJECTOR}/vectors.tsv"\n'
        f'  metadata_path: "{PROJECTOR}/metadata.tsv"\n'
        "  sprite {\n"
        f'    image_path: "{PROJECTOR}/sprite.png"\n'
        f"    single_image_dim: {THUMBNAIL}\n"
        f"    single_image_dim: {THUMBNAIL}\n"
        "  }\n"
        "}\n"
    )
    write_text(folder / "projector_config.pbtxt", config)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text on one line of a table, without tabs."""
    return " ".join(text.split())


def _thumbnail(image: np.ndarray | None) -> np.ndarray:
    """uint8 [32, 32, 3]; grey where there is no image."""
    if image is None:
        return np.full((THUMBNAIL, THUMBNAIL, 3), 200, np.uint8)
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL)))


def _sprite(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails row by row in a square, as the projector cuts them out: uint8 [n, S, S, 3] → [N·S, N·S, 3]."""
    side = int(np.ceil(np.sqrt(len(thumbnails))))
    grid = np.zeros((side * side, *thumbnails.shape[1:]), np.uint8)
    grid[: len(thumbnails)] = thumbnails
    size = side * THUMBNAIL
    return grid.reshape(side, side, THUMBNAIL, THUMBNAIL, 3).swapaxes(1, 2).reshape(size, size, 3)

"""Rows to records: images and audio clips are read, checked and converted to their stored form. Runs in workers."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from src.config import AudioEncoderConfig, ModelConfig
from src.data.audio import read_audio
from src.data.decoding import read_bytes
from src.data.errors import DataError
from src.data.image import open_rgb, quiet
from src.data.prepare.rows import Clip, Row
from src.data.record import ROOM, Packed, Record, image_room, pack_record
from src.data.regions import load_regions

JPEG_QUALITY = 95
SMALLER = 0.7  # of its sides, where an image takes more bytes than its record has room for


@dataclass(frozen=True)
class Media:
    """How media are stored."""

    model: ModelConfig  # its encoders determine the stored form
    max_side: int  # larger images are stored smaller, in pixels

    def read_all(self, rows: list[Row | None]) -> list[Packed | str | None]:
        """For each row its record or the reason why there is none; None for None."""
        return [None if row is None else self.read(row) for row in rows]

    def read(self, row: Row) -> Packed | str:
        """The row's record, or the reason why there is none."""
        if row.reason:
            return row.reason
        try:
            file = None if row.image is None else read_bytes(row.image, "image file")
            return pack_record(read_row(row, file, self.model, self.max_side), self.model.audio, file)
        except DataError as error:
            return str(error)
        except UnicodeEncodeError:
            return "the id or a path is not valid Unicode text"


def read_row(row: Row, file: bytes | None, model: ModelConfig, max_side: int) -> Record:
    """The media of a row as a record, in the form that the model's encoders read; ``file`` is what its image holds."""
    image = None if file is None else pack_image(file, row.image, max_side)
    regions = None if row.regions is None else load_regions(row.regions, model.image.region_dim)
    clips = tuple(None if clip is None else _audio(clip, model.audio) for clip in row.audio)
    record = Record(row.key, image, row.captions, clips, regions, row.questions)
    if image is not None and len(image) > (room := image_room(record)):
        record = replace(record, image=pack_image(file, row.image, max_side, room))
    return record


def _audio(clip: Path | Clip, audio: AudioEncoderConfig) -> np.ndarray:
    if isinstance(clip, Clip):
        return read_audio(clip.path, audio, clip.start, clip.seconds)
    return read_audio(clip, audio)


def pack_image(data: bytes, path: Path, max_side: int, room: int = ROOM) -> bytes:
    """The bytes of an image file that decodes; a larger image is scaled down and written as JPEG or PNG.

    Args:
        data: the file's bytes.
        path: the file, for messages.
        max_side: pixels of its longer side.
        room: bytes that it may take. A file that takes more, such as an animation, is written anew: its first frame as
            PNG, or else as JPEG, or else smaller.
    """
    with quiet():
        image = open_rgb(data, str(path))
    if max(image.size) <= max_side and len(data) <= room:
        return data
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    image.info.clear()  # the rotation is applied, and colour profiles no longer apply
    for kind in ("JPEG",) if data.startswith(b"\xff\xd8") else ("PNG", "JPEG"):
        data = _encode(image, kind)
        if len(data) <= room:
            return data
    while len(data) > room and min(image.size) > 1:
        image = image.resize([max(1, int(side * SMALLER)) for side in image.size], Image.Resampling.BICUBIC)
        data = _encode(image, "JPEG")
    return data


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue()

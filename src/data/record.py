"""A record: an image, its captions (or questions about it) and their audio, and how MindRecord keeps it as one row."""

import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig
from src.data.decoding import whole_text
from src.data.errors import DataError
from src.data.regions import Regions
from src.data.schema import audio_layout

BYTES = ("image", "regions", "sounds")
COLUMNS = ("key", "image", "regions", "captions", "sounds", "sizes")
SCHEMA = {name: {"type": "bytes" if name in BYTES else "string"} for name in COLUMNS}
REGION_TYPES = (np.float32, np.int32, np.float32, np.float16)  # boxes, classes, scores, features: in this order
PAGE_BYTES = 1 << 22  # MindRecord's unit of writing, into which a record must fit
ROOM = PAGE_BYTES - 4096  # bytes of a record's content

# Words that a mirrored image would contradict; words that begin with them count («leftmost»), those that end so do not.
SIDES = re.compile(r"[左右]|(?<![a-z])(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What makes a caption of a record a question."""

    kind: str  # by which accuracies are grouped
    answers: tuple[str, ...]  # one of each person who was asked, at least one


@dataclass(frozen=True)
class Record:
    """An image, its captions and their audio clips; a part that is absent is None or empty."""

    key: str  # name in its corpus: for messages and results
    image: bytes | None  # encoded file (PNG, JPEG, WebP)
    captions: tuple[str, ...]
    # a caption's audio, as schema.audio_layout says for its kind: uint8 [frames, mels]; without captions at most one
    audio: tuple[np.ndarray | None, ...]
    regions: Regions | None = None  # what a detector found in the image
    questions: tuple[Question, ...] = ()  # one for each caption, where these are questions about the image

    def presence(self, caption: int, image_input: str = "patch") -> list[int]:
        """1 where the sample of this caption (−1: without one) has text, image (or regions), audio."""
        clip = self.audio[max(caption, 0)] if self.audio else None
        image = self.regions if image_input == "region" else self.image
        return [int(caption >= 0), int(image is not None), int(clip is not None)]

    def tells_sides(self) -> bool:
        """Whether what is said of the image, a caption, question or answer, tells left from right.

        Speech without a caption might.
        """
        spoken = not self.captions and any(clip is not None for clip in self.audio)
        answers = (answer for question in self.questions for answer in question.answers)
        return spoken or any(SIDES.search(text) for text in (*self.captions, *answers))

    def image_digest(self) -> bytes | None:
        """Equal for records of the same image; None without one."""
        if self.image is None and self.regions is None:
            return None
        content = self.image if self.image is not None else self.regions.features.tobytes()
        return hashlib.blake2b(content, digest_size=12).digest()


def pack(record: Record, audio: AudioEncoderConfig) -> dict[str, Any]:
    """A record as a MindRecord row. MindSpore reads empty bytes as one zero byte, hence the sizes."""
    imaged = record.image is not None or record.regions is not None
    if not imaged and not record.captions and not any(clip is not None for clip in record.audio):
        raise DataError(f"record {record.key!r} has neither image nor caption nor audio")
    if len(record.audio) not in (0, len(record.captions) or 1):
        raise DataError(
            f"record {record.key!r} has {len(record.captions)} captions but {len(record.audio)} audio clips"
        )
    if len(record.questions) not in (0, len(record.captions)):
        raise DataError(f"record {record.key!r} has {len(record.captions)} questions, {len(record.questions)} answered")
    dtype, frame = audio_layout(audio.input, audio.mels, audio.feature_dim)
    for clip in record.audio:
        if clip is not None and (clip.dtype != dtype or clip.shape[1:] != frame or not len(clip)):
            wanted = f"{np.dtype(dtype)} [{', '.join(map(str, ('frames', *frame)))}]"
            raise DataError(f"record {record.key!r}: an audio clip is {clip.dtype}{list(clip.shape)}, not {wanted}")
    clips = b"".join(clip.tobytes() for clip in record.audio if clip is not None)
    sizes = {
        "image": None if record.image is None else len(record.image),
        "regions": _region_sizes(record.regions),
        "frames": [None if clip is None else len(clip) for clip in record.audio],
    }
    row = {
        "key": record.key,
        "image": record.image or b"",
        "regions": b"" if record.regions is None else _pack_regions(record.regions),
        "captions": _pack_texts(record),
        "sounds": clips,
        "sizes": json.dumps(sizes),
    }
    if _content_bytes(row) > ROOM:
        hint = "make its image smaller or its audio clips shorter"
        raise DataError(f"record {record.key!r} is larger than {PAGE_BYTES >> 20} MB: {hint}")
    return row


def _content_bytes(row: dict[str, Any]) -> int:
    return sum(len(row[name]) for name in (*BYTES, "captions"))


def image_room(record: Record) -> int:
    """Bytes that an image may take beside the rest of a record."""
    clips = sum(clip.nbytes for clip in record.audio if clip is not None)
    regions = 0 if record.regions is None else len(_pack_regions(record.regions))
    return ROOM - clips - regions - len(_pack_texts(record))


def _pack_texts(record: Record) -> str:
    """JSON: a caption is a text, a question an object of it, its type and its answers."""
    if not record.questions:
        return json.dumps(record.captions)
    pairs = zip(record.captions, record.questions, strict=True)
    return json.dumps([{"question": text, "type": asked.kind, "answers": asked.answers} for text, asked in pairs])


def _unpack_texts(packed: str) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    entries = json.loads(packed)
    if not entries or isinstance(entries[0], str):
        return tuple(map(whole_text, entries)), ()
    texts = tuple(whole_text(entry["question"]) for entry in entries)
    return texts, tuple(Question(entry["type"], tuple(map(whole_text, entry["answers"]))) for entry in entries)


def _region_sizes(regions: Regions | None) -> list[int] | None:
    return None if regions is None else [*regions.features.shape, regions.width, regions.height]


def _pack_regions(regions: Regions) -> bytes:
    arrays = regions.boxes, regions.classes, regions.scores, regions.features
    return b"".join(array.astype(dtype).tobytes() for array, dtype in zip(arrays, REGION_TYPES, strict=True))


def _unpack_regions(data: bytes, count: int, dim: int, width: int, height: int) -> Regions:
    found, start = [], 0
    for shape, dtype in zip(((count, 4), (count,), (count,), (count, dim)), REGION_TYPES, strict=True):
        values = np.frombuffer(data, dtype, math.prod(shape), start)
        found.append(values.reshape(shape))
        start += values.nbytes
    boxes, classes, scores, features = found
    return Regions(features, boxes, classes, scores, width, height)


def unpack(row: Mapping[str, Any], dtype: type, frame: tuple[int, ...]) -> Record:
    """The record of a row; type and frame shape of its audio clips are those of ``schema.audio_layout``."""
    size = json.loads(row["sizes"])
    texts, questions = _unpack_texts(row["captions"])
    data, start, waves = row["sounds"], 0, []
    for frames in size["frames"]:
        shape = (frames or 0, *frame)
        values = np.frombuffer(data, dtype, math.prod(shape), start) if frames else None
        waves.append(None if values is None else values.reshape(shape))
        start += 0 if values is None else values.nbytes
    encoded = None if size["image"] is None else row["image"]
    found = None if size["regions"] is None else _unpack_regions(row["regions"], *size["regions"])
    return Record(row["key"], encoded, texts, tuple(waves) or (None,) * len(texts), found, questions)


def checksum(row: Mapping[str, Any]) -> int:
    """The CRC-32 of a row's columns, in the order of COLUMNS."""
    crc = 0
    for name in COLUMNS:
        value = row[name]
        crc = zlib.crc32(value.encode() if isinstance(value, str) else value or b"\0", crc)
    return crc


@dataclass(frozen=True)
class Packed:
    """A record as it is stored, and what the index needs to know about it."""

    row: dict[str, Any]  # MindRecord's columns
    presence: tuple[tuple[int, ...], ...]  # of each sample: 1 where it has text, image, audio
    regions: bool
    image: int  # digest; 0 without an image
    checksum: int
    sided: bool = False  # whether it tells left from right
    source: int = 0  # digest by which its split is chosen: of the image before it was made smaller; 0 without an image


def pack_record(record: Record, audio: AudioEncoderConfig, file: bytes | None = None) -> Packed:
    """Checks a record and brings it into its stored form; needs no MindSpore.

    Args:
        file: the image file that the record's image was made of.
    """
    row = pack(record, audio)
    presence = tuple(tuple(record.presence(caption)) for caption in range(len(record.captions)) or (-1,))
    image, source = (_short(given.image_digest()) for given in (record, replace(record, image=file or record.image)))
    return Packed(row, presence, record.regions is not None, image, checksum(row), record.tells_sides(), source)


def _short(digest: bytes | None) -> int:
    """The first 64 bits of a digest; 0 for none, and for nothing else."""
    return 0 if digest is None else int.from_bytes(digest[:8], "big") or 1

"""The user's own images, audio clips and texts: finds and reads them, and names what cannot be read."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig, ModelConfig
from src.data.audio import FEATURE_ENDINGS, KINDS, check_kind, load_audio, longest, spectrogram
from src.data.decoding import decoding, read_bytes, whole_text
from src.data.errors import DataError
from src.data.image import decode_image, quiet
from src.data.regions import Regions, load_features, load_regions, sketch
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REGIONS = ".npz"  # of an image, for a model that reads them
ENDINGS = {
    IMAGE: (*IMAGES, REGIONS),
    AUDIO: (".wav", ".flac", ".ogg", ".mp3", *FEATURE_ENDINGS),  # the last: for a model that reads features
    TEXT: (".txt",),
}
MODALITY = {ending: modality for modality, endings in ENDINGS.items() for ending in endings}
MODALITY[REGIONS] = IMAGE  # where nothing but the ending says what a file is
LONGEST_TEXT = 1 << 20  # bytes of a .txt file
NAMED = 20  # unknown characters that a remark names


@dataclass(frozen=True)
class Medium:
    """One image uint8 [S, S, 3] or its regions, audio [M, …] as ``schema.audio_layout`` says, or text."""

    name: str  # file, or the text itself
    modality: int
    content: np.ndarray | Regions | str
    cut: str = ""  # what of it the model does not read, if reading shows it
    encoding: tuple[Any, Any] | None = None  # the engine that has encoded it and its Items (Engine.with_encodings)


def find_files(path: Path, modalities: tuple[int, ...]) -> list[Path]:
    """The file itself, or the files of a folder and those inside it that are of the modalities, by name.

    Hidden files and folders are passed over.

    Raises:
        DataError: there is no such file or folder, or it holds none.
    """
    if os.path.isdir(path):  # unlike Path's it takes a name that is too long
        endings = [ending for ending, modality in MODALITY.items() if modality in modalities]
        files = sorted(file for file in _walk(path) if file.suffix.lower() in endings and file.is_file())
        if not files:
            raise DataError(f"{path} holds nothing to read: expected files that end in {' '.join(endings)}")
        return files
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file or folder")
    endings = list(dict.fromkeys(ending for modality in modalities for ending in ENDINGS[modality]))
    if path.suffix.lower() not in endings:
        raise DataError(f"{path}: expected a file that ends in {' '.join(endings)}")
    return [path]


def _walk(folder: Path) -> Iterator[Path]:
    """What is not hidden in a folder and those inside it, linked ones too, each once; what is closed is named."""

    def skip(error: OSError) -> None:
        print(f"skipped: {error.filename}: {error.strerror}", file=sys.stderr)

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=skip, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in files if not name.startswith("."))


def try_files(files: list[Path], model: ModelConfig) -> tuple[list[Medium | None], list[str]]:
    """Each file, or None where it cannot be read, and why not."""
    read: list[Medium | None] = []
    failures = []
    for file in files:
        try:
            read.append(read_file(file, model))
        except DataError as error:
            read.append(None)
            failures.append(str(error))
    return read, failures


def report(failures: list[str], total: int, some_read: bool) -> None:
    """Names on stderr what could not be read, with a count; a DataError where nothing could."""
    if not some_read:
        many = f"none of {len(failures)} files can be read; " if len(failures) > 1 else ""
        raise DataError(many + failures[0])
    for failure in failures:
        print(f"skipped: {failure}", file=sys.stderr)
    if failures:
        print(f"skipped {len(failures)} of {total} files", file=sys.stderr)


def read_file(file: Path, model: ModelConfig, modality: int | None = None) -> Medium:
    """One file of a modality, by default of that which its ending says.

    Raises:
        DataError: it cannot be read.
    """
    modality = MODALITY[file.suffix.lower()] if modality is None else modality
    with decoding(f"{file}: not a readable file"), quiet():
        if modality == IMAGE and (model.image.input == "region") != (file.suffix.lower() == REGIONS):
            wanted = f"regions ({REGIONS})" if model.image.input == "region" else "images"
            raise DataError(f"{file}: model.image.input={model.image.input} reads {wanted}")
        if modality == IMAGE and model.image.input == "region":
            return Medium(str(file), IMAGE, load_regions(file, model.image.region_dim))
        if modality == IMAGE:
            content = read_bytes(file, "image file")
            return Medium(str(file), IMAGE, decode_image(content, model.image.size, model.image.resize, str(file)))
        if modality == AUDIO:
            return _read_audio(file, model.audio)
        try:
            text = read_bytes(file, "text file", LONGEST_TEXT).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"{file}: not UTF-8 text") from None
        if not text:
            raise DataError(f"{file}: the text is empty")
        return Medium(str(file), TEXT, text)


def read_query(query: str, model: ModelConfig, option: str = "--query") -> Medium:
    """An image or audio where the query ends like a file of one, otherwise text."""
    if os.path.isdir(query):
        raise DataError(f"{option} {query} is a folder: expected a text, an image or an audio clip")
    if Path(query).suffix.lower() in MODALITY:
        (file,) = find_files(Path(query), (IMAGE, AUDIO, TEXT))
        return read_file(file, model)
    if not query.strip():
        raise DataError(f"{option} is empty: expected a text, an image or an audio clip")
    known = " ".join(MODALITY)
    if os.path.isfile(query):
        raise DataError(f"{option} {query} is a file of another kind: expected a text, or a file that ends in {known}")
    if re.fullmatch(r"\S+\.(?=\w*[A-Za-z])[A-Za-z0-9]{1,5}", query):
        print(f"note: {option} {query} is read as a text: files end in {known}", file=sys.stderr)
    return Medium(query, TEXT, whole_text(query))


def _read_audio(file: Path, config: AudioEncoderConfig) -> Medium:
    """An audio clip as the model reads it, and how much of it that is."""
    check_kind(file, config)
    if config.input == "feature":
        frames = load_features(file, config.feature_dim)
        cut = f"is cut to its first {config.length} frames (model.audio.max_frames)"
        return Medium(str(file), AUDIO, frames[: config.length], cut if len(frames) > config.length else "")
    wave, rate = load_audio(file, longest(config))  # a sample more than is read, where there is more
    return clip_of(str(file), wave, rate, config)


def clip_of(name: str, wave: np.ndarray, rate: int, config: AudioEncoderConfig) -> Medium:
    """An audio clip of samples, mono float32 [n], for a model that reads audio."""
    limit = config.max_frames * config.hop_ms / 1000
    cut = f"is cut to its first {limit:.1f} s (model.audio.max_frames)" if len(wave) / rate > limit else ""
    return Medium(name, AUDIO, KINDS[config.input](wave, rate, config), cut)


def shown(medium: Medium, model: ModelConfig) -> np.ndarray | None:
    """What a figure shows of an image [S, S, 3] or an audio clip [M, N]; None where there is nothing to see."""
    if medium.modality == AUDIO:
        return spectrogram(medium.content, model.audio)
    if isinstance(medium.content, Regions):
        return sketch(medium.content, model.image.size)
    return medium.content if medium.modality == IMAGE else None


def losses(medium: Medium, tokenizer: Tokenizer, model: ModelConfig) -> list[str]:
    """What of a medium the model does not read."""
    if medium.modality != TEXT:
        return [f"{medium.name} {medium.cut}"] if medium.cut else []
    text, room = medium.content, model.text.max_len - 1  # a text that is cut has no [SEP]
    if remark := meaningless(text, tokenizer):
        return [remark]
    pieces, found = tokenizer.tokens(text), []
    if len(pieces) > room:
        found.append(f"{text[:20]!r}… is cut to its first {room} tokens (model.text.max_len)")
    if unknown := unknown_of(text, tokenizer):
        share = f"{pieces.count('[UNK]') / len(pieces):.0%} of the tokens of {text[:20]!r}"
        found.append(f"not in the vocabulary: {unknown} ({share})")
    return found


def meaningless(text: str, tokenizer: Tokenizer) -> str:
    """Says so, and names the characters, where the vocabulary has no token of a text; otherwise empty."""
    if set(tokenizer.tokens(text)) - {"[UNK]"}:
        return ""
    lacking = f" (it lacks {unknown})" if (unknown := unknown_of(text, tokenizer)) else ""
    return f"no token of {text[:20]!r} is in the vocabulary{lacking}: results are meaningless"


def unknown_of(text: str, tokenizer: Tokenizer) -> str:
    """The characters of a text that the vocabulary lacks, each once; of many the first."""
    unknown = sorted(set(tokenizer.unknown_characters(text)))
    return " ".join(unknown[:NAMED]) + (f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else "")


def plural(modality: int) -> str:
    """What a list of them is called."""
    return {TEXT: "texts", IMAGE: "images", AUDIO: "audio clips"}[modality]

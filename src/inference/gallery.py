"""A folder of the user's own files as embeddings. An index file can keep them, a second query then encodes only itself.

An index is a safetensors file of ``embeddings`` float32 [n, E], ``stamps`` int64 [n, 2] (bytes, and time of the last
change) and ``files`` uint8: JSON of the folder and of the files' names in it, for which safetensors' header may be too
small. The header holds the fingerprint of the checkpoint, without which embeddings mean nothing. Tokens, which
re-ranking reads, are not kept: they take a hundred times the space; the top k files are read for every query anyway, to
be shown.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from src.checkpoints.files import VOCAB, weights_file
from src.config import ModelConfig
from src.data.decoding import parse_json
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.files import content_digest, digest, write_bytes
from src.inference import media
from src.inference.inputs import collect
from src.inference.library import Model
from src.inference.media import MODALITY
from src.models.batches import progress

FORMAT = "2"  # "1" had the folder and the names in its header


@dataclass(frozen=True)
class Gallery:
    """Files of a folder by name, that is by their path in it, and their embeddings."""

    folder: Path
    names: list[str]
    stamps: np.ndarray  # int64 [n, 2]
    embeddings: np.ndarray  # float32 [n, E]

    def groups(self) -> dict[int, np.ndarray]:
        """Places of the files of each modality, int64 [n]."""
        kinds = np.array([MODALITY[Path(name).suffix.lower()] for name in self.names], np.int64)
        places = {modality: np.flatnonzero(kinds == modality) for modality in range(len(MODALITIES))}
        return {modality: found for modality, found in places.items() if len(found)}


class Files(Sequence[Path]):
    """Paths of some of a gallery's files, each made when it is asked for: an index may hold millions.

    Args:
        offered: the gallery.
        places: int64 [n].
    """

    def __init__(self, offered: Gallery, places: np.ndarray) -> None:
        self.offered, self.places = offered, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int) -> Path:
        return self.offered.folder / self.offered.names[self.places[at]]


@dataclass(frozen=True)
class Plan:
    """What a folder holds now, and where an index knows it from."""

    folder: Path
    files: list[Path]
    stamps: np.ndarray  # int64 [n, 2]
    known: np.ndarray  # int64 [n]: place in the index, −1 where the file is not in it or has changed since
    index: Gallery | None

    @property
    def fresh(self) -> int:
        """How many files have to be read."""
        return int((self.known < 0).sum())


def fingerprint_of(checkpoint: Path, model: ModelConfig, ema: bool = False) -> str:
    """What tells a model from all others: the sha256 of its weights, its vocabulary and its settings.

    Args:
        ema: its weights are the averaged ones.
    """
    settings = asdict(model)
    settings["text"].pop("vocab")  # a path
    if model.image.resize == "crop":  # as in indexes that were made before there was a choice
        settings["image"].pop("resize")
    whole = json.dumps(settings, sort_keys=True) + digest(checkpoint / weights_file(ema)) + digest(checkpoint / VOCAB)
    return hashlib.sha256(whole.encode()).hexdigest()


def plan(folder: Path | None, index: Path | None, fingerprint: str) -> Plan:
    """Looks at the folder and at the index, or at one of them; the folder is by default the index's.

    Raises:
        DataError: a folder or an index that is missing, empty, or of another checkpoint.
    """
    known = load(index, fingerprint) if index is not None else None
    if folder is None and known is not None:
        folder = known.folder
        if not folder.is_dir():
            raise DataError(f"{index}: its folder {folder} is gone: say with --gallery where the files are")
    if folder is None or not folder.is_dir():
        raise DataError(f"--gallery {folder}: no such folder")
    files = media.find_files(folder, (TEXT, IMAGE, AUDIO))
    stats = [file.stat() for file in files]
    stamps = np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64)
    places = np.full(len(files), -1)
    if known is not None:
        held = zip(known.names, map(tuple, known.stamps.tolist()), strict=True)
        place = {entry: at for at, entry in enumerate(held)}
        now = zip(_names(files, folder), map(tuple, stamps.tolist()), strict=True)
        places = np.array([place.get(entry, -1) for entry in now])
    made = Plan(folder, files, stamps, places, known)
    if known is not None:
        gone = len(set(known.names) - set(_names(files, folder)))
        if made.fresh or gone:
            note = f"note: {index} lacks {made.fresh} files as they are now, and holds {gone} that are gone"
            print(note, file=sys.stderr)
    return made


def embed(plan: Plan, model: Model) -> Gallery:
    """Encodes what the index does not hold; what cannot be read is named on stderr, counted and left out.

    Raises:
        DataError: nothing could be read.
    """
    fresh = np.flatnonzero(plan.known < 0).tolist()
    found = {at: plan.index.embeddings[row] for at, row in enumerate(plan.known.tolist()) if row >= 0}
    failures: list[str] = []
    cut = 0
    for modality, kind in enumerate(MODALITIES):
        own = [at for at in fresh if MODALITY[plan.files[at].suffix.lower()] == modality]
        files = progress([plan.files[at] for at in own], f"reading {media.plural(modality)}")
        for batch in model.embed_each(kind, files, collect(failures)):
            cut += sum(bool(model.notes(medium)) for medium in batch.media)
            found |= dict(zip((own[number] for number in batch.numbers), batch.vectors, strict=True))
    media.report(failures, len(plan.files), bool(found))
    if cut:
        print(f"note: of {cut} files the model reads only a part", file=sys.stderr)
    places = sorted(found)
    names = _names([plan.files[at] for at in places], plan.folder)
    return Gallery(plan.folder, names, plan.stamps[places], np.stack([found[at] for at in places]))


def keep(path: Path, gallery: Gallery, fingerprint: str) -> None:
    """Writes an index whole or not at all."""
    # as ASCII, which spells also names that are not UTF-8
    files = json.dumps({"folder": str(gallery.folder.resolve()), "names": gallery.names}).encode()
    arrays = {"embeddings": gallery.embeddings, "stamps": gallery.stamps, "files": np.frombuffer(files, np.uint8)}
    about = {"format": FORMAT, "checkpoint": fingerprint, "sha256": content_digest(arrays)}
    write_bytes(path, save(arrays, about))


def load(path: Path, fingerprint: str) -> Gallery:
    """Reads an index.

    Raises:
        DataError: there is none, or another checkpoint made it.
    """
    if not os.path.isfile(path):
        raise DataError(f"--index {path}: no such file: make one with --gallery FOLDER --save-index {path}")
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in ("embeddings", "stamps")}
            made = about["checkpoint"]
            folder, names = _stored_files(file, about)
            if "sha256" in about:  # those of earlier versions have none
                arrays["files"] = file.get_tensor("files")
        whole = len(names) == len(arrays["embeddings"]) == len(arrays["stamps"])
        whole = whole and about.get("sha256") in (None, content_digest(arrays))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, DataError):
        whole = False
    if not whole:
        again = f"make one with --gallery FOLDER --save-index {path}"
        raise DataError(f"--index {path} is no index of a gallery, or damaged: {again}")
    if made != fingerprint:
        raise DataError(
            f"--index {path}: checkpoint {made[:12]} made it, this one is {fingerprint[:12]}: "
            f"make it again with --gallery {folder} --save-index {path}"
        )
    return Gallery(folder, names, arrays["stamps"], arrays["embeddings"])


def _stored_files(file: Any, about: dict[str, str]) -> tuple[Path, list[str]]:
    """Folder and names of an open index."""
    if about["format"] == "1":
        return Path(about["folder"]), parse_json(about["names"], "no JSON")
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}")
    files = parse_json(file.get_tensor("files").tobytes(), "no JSON")
    return Path(files["folder"]), files["names"]


def _names(files: Sequence[Path], folder: Path) -> list[str]:
    """Paths inside the folder."""
    return [file.relative_to(folder).as_posix() for file in files]

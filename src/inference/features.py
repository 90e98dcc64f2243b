"""Writes features of a manifest's images and audio clips with trained encoders, for models that read features instead.

The folder gets an image's patches as regions in regions/….npz, an audio clip's tokens in audio/….npy, and
manifest.jsonl, which names them. Features that are there already are not made again, unless their image or clip has
changed: repeat an interrupted call.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from src.checkpoints.pretrained import init_encoders
from src.config import AudioEncoderConfig, Config, ImageEncoderConfig, ModelConfig, load_config
from src.data.audio import read_audio
from src.data.decoding import read_bytes
from src.data.errors import DataError
from src.data.image import Placement, open_rgb, place, quiet, read_part
from src.data.regions import half
from src.data.schema import audio_layout
from src.files import is_same_file, write_text
from src.inference.feature_manifest import (
    MANIFEST,
    Entry,
    count_own_regions,
    named_files,
    read_manifest,
    safe_name,
    write_manifest,
)
from src.inference.feature_sources import Job, Sources
from src.inference.loading import load_model
from src.models.batches import pad_rows
from src.models.build import build_model
from src.models.encoding import EncodeAudio, EncodeImage
from src.models.opt import OPT
from src.runtime import setup

ABOUT = "features.json"
KINDS = ("image", "audio")
Arrays = dict[str, np.ndarray]


class ImageFeatures:
    """The tokens of an image's patches, stored as a detector's regions are."""

    folder, suffix = "regions", ".npz"

    def __init__(self, model: OPT, config: ModelConfig) -> None:
        self.encode = EncodeImage(model)
        self.config = config.image

    def read(self, path: Path) -> tuple[tuple[np.ndarray, ...], Arrays]:
        """What the graph reads of a file, and what is written beside the features: where the patches are."""
        size, resize = self.config.size, self.config.resize
        with quiet():
            image = open_rgb(read_bytes(path, "image file"), str(path), size)
        width, height = image.size
        placed = place(read_part(width, height, resize), size, resize)
        boxes = patch_boxes(placed, width, height, size // self.config.patch)
        beside = {"boxes": boxes, "width": np.array(width), "height": np.array(height)}
        return (placed.frame(placed.cut(image)),), beside

    def write(self, path: Path, features: np.ndarray, beside: Arrays) -> None:
        boxes = beside["boxes"]
        shown = (boxes[:, 2:] > boxes[:, :2]).all(1)  # patches of the bars alone are no regions of the image
        np.savez(path, **(beside | {"features": features[shown], "boxes": boxes[shown]}))


class AudioFeatures:
    """An audio clip's tokens."""

    folder, suffix = "audio", ".npy"

    def __init__(self, model: OPT, config: ModelConfig) -> None:
        self.encode, self.config = EncodeAudio(model), config.audio

    def read(self, path: Path) -> tuple[tuple[np.ndarray, ...], Arrays]:
        """What the graph reads of a file; nothing is written beside the features."""
        clip, config = read_audio(path, self.config), self.config
        dtype, frame = audio_layout(config.input, config.mels, config.feature_dim)
        room = np.zeros((config.length, *frame), dtype)
        room[: len(clip)] = clip
        return (room, np.array(len(clip), np.int32)), {}

    def write(self, path: Path, features: np.ndarray, beside: Arrays) -> None:
        np.save(path, features)


Extractor = ImageFeatures | AudioFeatures
EXTRACTORS: dict[str, type[Extractor]] = {"image": ImageFeatures, "audio": AudioFeatures}


def patch_boxes(placed: Placement, width: int, height: int, side: int) -> np.ndarray:
    """float32 [side², 4]: what the patches of the square show of an image, x1, y1, x2, y2 in its pixels, row by row.

    A patch that lies on a bar shows nothing: its box is empty.
    """
    edges = np.arange(side + 1) * (placed.side / side)
    x, y = (np.clip(placed.source(edges, axis), 0, length) for axis, length in enumerate((width, height)))
    rows, columns = np.divmod(np.arange(side**2), side)
    return np.stack([x[columns], y[rows], x[columns + 1], y[rows + 1]], 1).astype(np.float32)


def extract_features(
    manifest: Path,
    output: Path,
    checkpoint: Path | None = None,
    config_file: Path | None = None,
    media: Path | None = None,
    only: str | None = None,
    settings: Sequence[str] = (),
    ema: bool = False,
) -> None:
    """Writes the features of a manifest's media and a manifest that names them; prints how a model reads them.

    Args:
        manifest: manifest.jsonl.
        output: folder of features, new or begun.
        checkpoint: run or checkpoint folder of the encoders; None: those that ``config_file`` names by ``init_from``.
        config_file: configuration, in place of a checkpoint.
        media: folder that the manifest's paths start from; None: the manifest's own.
        only: of KINDS; None: what the encoders read.
        settings: ``key=value`` settings that win over the configuration.
        ema: use the average of the checkpoint's weights.

    Raises:
        DataError: nothing can be read, or the folder holds a manifest or features of something else.
    """
    media = media or manifest.parent
    entries = read_manifest(manifest)
    if not media.is_dir():
        raise DataError(f"--media {media}: no such folder")
    check_output(output, manifest)
    sources = Sources(output, begun=(output / ABOUT).is_file())
    jobs = {kind: plan(entries, kind, media, output) for kind in KINDS}
    todo = {kind: [job for job in jobs[kind].values() if not sources.has_features(job)] for kind in KINDS}
    folder = None if config_file else locate(checkpoint, ema)
    config = load_config(config_file, settings) if config_file else load_checkpoint_config(folder, settings)
    kinds = usable(config.model, only)
    if "image" in kinds and (count := count_own_regions(entries)):
        print(f"note: features of the images replace the regions of rows: {count} (with --only audio they stay)")
    setup(replace(config.runtime, distributed=False), config.seed)
    model = initialised(config, kinds) if config_file else load_model(folder, settings, ema=ema)[1]
    model.set_train(False)
    claim(output, model, config.model, kinds)
    failed = 0
    lacking = {kind: set(todo[kind]) for kind in KINDS}
    for kind in kinds:
        extractor = EXTRACTORS[kind](model, config.model)
        lacking[kind] = extract(extractor, todo[kind], len(jobs[kind]), config.eval.batch_size, sources)
        failed += len(lacking[kind])
    names = {kind: {name: job.target for name, job in jobs[kind].items() if job not in lacking[kind]} for kind in KINDS}
    names = {kind: found for kind, found in names.items() if found or kind in kinds}  # also what earlier calls made
    for kind, found in names.items():
        print(f"{kind}: {len(found)} of {len(jobs[kind])} files in {output / EXTRACTORS[kind].folder}")
        if kind not in kinds and lacking[kind]:
            print(
                f"note: rows of the others have no {kind}: repeat --only {kind} if it was interrupted or rows are new"
            )
    write_manifest(output, entries, media, names)
    print(f"{output / MANIFEST}; skipped files: {failed}")
    others = [f" and what --only {kind} printed" for kind in names if kind not in kinds]  # by another model perhaps
    print("read them with " + " ".join(reading_settings(model, kinds)) + "".join(others))


def initialised(config: Config, kinds: Sequence[str]) -> OPT:
    """A network with the encoders that ``init_from`` names; the rest of it is untrained and not used."""
    for kind in kinds:
        if not getattr(config.model, kind).init_from:
            key = f"model.{kind}.init_from"
            hint = "set it, or extract only the other kind by --only"
            raise DataError(f"{key} is empty: features of an untrained encoder are useless; {hint}")
    model = build_model(config)
    for report in init_encoders(model, config.model):
        print(report)
    return model


def usable(config: ModelConfig, only: str | None) -> list[str]:
    """The KINDS that the encoders read as pixels or audio, and can therefore extract features of."""
    reads = {"image": config.image.input == "patch", "audio": config.audio.input != "feature"}
    wanted = [kind for kind in KINDS if only in (None, kind)]
    found = [kind for kind in wanted if reads[kind]]
    if not found:
        what = " and ".join(f"model.{kind}.input={getattr(config, kind).input}" for kind in wanted)
        raise DataError(f"{what}: such an encoder reads features already; use one that reads pixels or audio")
    return found


def claim(folder: Path, model: OPT, config: ModelConfig, kinds: Sequence[str]) -> None:
    """Writes into the folder which encoders make its features.

    Raises:
        DataError: the folder holds features of other encoders.
    """
    path = folder / ABOUT
    known: dict[str, str] = {}
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise DataError(f"{path} does not describe features: choose another --output") from None
    for kind in kinds:
        encoder, settings = getattr(model, f"{kind}_encoder"), getattr(config, kind)
        # where the weights came from makes no features; folders of earlier versions tell it apart
        digest = encoder_digest(encoder, replace(settings, init_from="", dropout=0.0))
        if known.get(kind, digest) != digest and known[kind] != encoder_digest(encoder, settings):
            raise DataError(f"{folder} holds features of another {kind} encoder: choose another --output")
        known[kind] = digest
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=1) + "\n")


def encoder_digest(encoder: nn.Cell, settings: ImageEncoderConfig | AudioEncoderConfig) -> str:
    """The sha256 of an encoder's settings and weights."""
    # a folder that was begun before there was model.image.resize holds features of crops
    found = hashlib.sha256(repr(settings).replace("resize='crop', ", "").encode())
    for name, parameter in encoder.parameters_and_names():
        found.update(name.encode() + parameter.asnumpy().tobytes())
    return found.hexdigest()


def check_output(output: Path, manifest: Path) -> None:
    """Raises DataError if the folder has a manifest of the user's, which the new one would replace."""
    made = output / MANIFEST
    if is_same_file(made, manifest):
        raise DataError(f"--output {output} would replace {made}, which is --input: choose another folder")
    if made.exists() and not (output / ABOUT).is_file():
        raise DataError(f"--output {output} would replace {made}, which names no features: choose another folder")


def plan(entries: Sequence[Entry], kind: str, media: Path, output: Path) -> dict[str, Job]:
    """The files to read by their name in the manifest, each once."""
    extractor = EXTRACTORS[kind]
    jobs: dict[str, Job] = {}
    for entry in entries:
        for name in named_files(entry, kind):
            place = output / extractor.folder / (safe_name(name) + extractor.suffix)
            jobs.setdefault(name, Job(media / name, place))
    return jobs


def extract(extractor: Extractor, jobs: Sequence[Job], total: int, batch_size: int, sources: Sources) -> set[Job]:
    """Writes features; files that cannot be read are named and skipped.

    Args:
        total: jobs with those that were done before, for the display.

    Returns:
        The jobs that failed.
    """
    failed: set[Job] = set()
    with tqdm(total=total, initial=total - len(jobs), desc=extractor.folder, dynamic_ncols=True) as bar:
        for ready in _batches(extractor, jobs, batch_size, failed, bar):
            columns = zip(*(inputs for _, inputs, _ in ready), strict=True)
            outputs = extractor.encode(*[Tensor(pad_rows(np.stack(column), batch_size)) for column in columns])
            _, tokens, mask = (output.asnumpy() for output in outputs)
            for (job, _, beside), row, here in zip(ready, tokens, mask, strict=False):
                try:
                    _write(extractor, job, half(row[here == 1], job.source, "the features"), beside)
                    sources.note(job)
                except DataError as error:
                    _skip(job, error, failed)
                bar.update()
    return failed


def _batches(
    extractor: Extractor, jobs: Sequence[Job], batch_size: int, failed: set[Job], bar: tqdm
) -> Iterator[list[tuple[Job, tuple[np.ndarray, ...], Arrays]]]:
    """Batches of the media that can be read."""
    ready = []
    for job in jobs:
        try:
            ready.append((job, *extractor.read(job.source)))
        except DataError as error:
            _skip(job, error, failed)
            bar.update()
        if len(ready) == batch_size:
            yield ready
            ready = []
    if ready:
        yield ready


def _skip(job: Job, error: DataError, failed: set[Job]) -> None:
    tqdm.write(f"skipped: {error}")
    failed.add(job)


def _write(extractor: Extractor, job: Job, features: np.ndarray, beside: Arrays) -> None:
    """The file appears whole or not at all."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = job.target.with_name(f".writing-{job.target.name}")
    extractor.write(unfinished, features, beside)
    os.replace(unfinished, job.target)


def reading_settings(model: OPT, kinds: Sequence[str]) -> list[str]:
    """The settings with which a model reads these features."""
    (patches, width), (frames, audio_width) = model.image_shape, model.audio_shape
    found = {
        "image": [f"model.image.{key}" for key in ("input=region", f"regions={patches}", f"region_dim={width}")],
        "audio": ["input=feature", f"feature_dim={audio_width}", f"max_frames={frames}", "stride=1"],
    }
    found["audio"] = [f"model.audio.{key}" for key in found["audio"]]
    return [setting for kind in kinds for setting in found[kind]]

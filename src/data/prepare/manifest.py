"""manifest.jsonl: one image a line, with captions and audio clips, any of which may be missing.

    {"id": "42", "image": "42.jpg", "captions": ["一只猫", "猫在睡觉"], "audio": ["42a.wav", null], "split": "train"}
    {"id": "43", "regions": "43.npz", "caption": "一只狗", "audio": "43.npy"}

A caption that several people spoke has a list of recordings in its place of ``audio``: [["42a.ogg", "42b.ogg"], null].
It is stored once with each of them: as many samples, of which a training step samples one.

``regions`` names a file of region features (docs/data.md), beside the image or in its place. With a --config whose
model.audio.input is feature, ``audio`` names files of audio features instead of audio clips.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare.common import add_common_arguments, check_split, write_dataset
from src.data.prepare.rows import (
    Corpus,
    Row,
    check_captions,
    check_folder,
    count_lines,
    describe_inputs,
    guard,
    read_objects,
)

KEYS = ("id", "image", "regions", "caption", "captions", "audio", "split")


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--input", type=user_path, required=True, metavar="FILE", help="the manifest, one JSON object a line"
    )
    parser.add_argument(
        "--media", type=user_path, help="folder that the media paths start from (default: the manifest's)"
    )
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    about = describe_inputs("manifest", [args.input], "--input")
    media = check_folder(args.media or args.input.parent, "--media")
    write_dataset(Corpus(read_rows(args.input, media), count_lines([args.input]), about), args)


def read_rows(path: Path, media: Path) -> Iterator[Row]:
    """The rows of a manifest; those that cannot be used carry the reason."""
    for number, entry in read_objects(path):
        if isinstance(entry, Row):
            yield entry
            continue
        key = entry.get("id")
        key = str(key) if isinstance(key, (str, int)) else ""
        yield guard(functools.partial(_parse, entry, key, path.name, number, media), path.name, number, key)


def _parse(entry: dict[str, Any], key: str, file: str, number: int, media: Path) -> Row:
    entry = {name: value for name, value in entry.items() if value is not None}
    for name in entry:
        if name not in KEYS:
            raise DataError(f"unknown key {name!r}: the keys are {', '.join(KEYS)}")
    if not key:
        raise DataError("the id is missing or neither a text nor a whole number")
    if "caption" in entry and "captions" in entry:
        raise DataError("there is both a caption and captions")
    captions = check_captions(entry.get("captions", entry.get("caption", [])))
    image, regions = (_path(entry, name, media) for name in ("image", "regions"))
    split = check_split(entry["split"]) if "split" in entry else None
    captions, clips = _spoken(captions, entry.get("audio"), media)
    return Row(file, number, key, image, captions, clips, split, regions=regions)


def _path(entry: dict[str, Any], name: str, media: Path) -> Path | None:
    path = entry.get(name)
    if path is not None and not (isinstance(path, str) and path):
        raise DataError(f"{name} is not a path")
    return None if path is None else media / path


def _spoken(captions: tuple[str, ...], audio: Any, media: Path) -> tuple[tuple[str, ...], tuple[Path | None, ...]]:
    """The captions, each as often as it has recordings, and these; of a row without captions at most one recording."""
    listed = [audio] if isinstance(audio, str) else audio
    if listed is None or listed == []:
        return captions, ()
    if not isinstance(listed, list) or not all(path is None or _is_path(path) or _are_paths(path) for path in listed):
        raise DataError("the audio is neither a path nor a list of paths, lists of paths, and nulls")
    if len(listed) != max(len(captions), 1):
        raise DataError(
            f"there are {len(captions)} captions but {len(listed)} audio clips: give one (or null) for each caption, "
            "and several of one caption as a list in the list"
        )
    groups = [path if isinstance(path, list) else [path] for path in listed]
    clips = tuple(None if path is None else media / path for group in groups for path in group)
    if not captions and len(clips) > 1:
        raise DataError(f"{len(clips)} recordings have no caption: make a row of each")
    spoken = [caption for caption, group in zip(captions, groups, strict=False) for _ in group]
    return tuple(spoken), clips


def _is_path(path: Any) -> bool:
    return isinstance(path, str) and bool(path)


def _are_paths(paths: Any) -> bool:
    return isinstance(paths, list) and bool(paths) and all(map(_is_path, paths))

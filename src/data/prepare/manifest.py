"""manifest.jsonl: one image a line, with captions and audio clips, any of which may be missing.

    {"id": "42", "image": "42.jpg", "captions": ["一只猫", "猫在睡觉"], "audio": ["42a.wav", null], "split": "train"}
    {"id": "43", "regions": "43.npz", "caption": "一只狗", "audio": "43.npy"}

``regions`` is a file of a detector's features (:mod:`src.data.regions`), beside the image or in place of it. With a
--config whose model.audio.input is feature, ``audio`` names files of features instead of audio clips.
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
    parser.add_argument("--input", type=user_path, required=True, help="the manifest, one JSON object a line")
    parser.add_argument(
        "--media", type=user_path, help="folder that the media paths start from (default: the manifest's)"
    )
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    about = describe_inputs("manifest", [args.input], "--input")
    media = check_folder(args.media or args.input.parent, "--media")
    write_dataset(Corpus(read_rows(args.input, media), count_lines([args.input]), about), args)


def read_rows(path: Path, media: Path) -> Iterator[Row]:
    """The manifest's rows; those that cannot be used carry the reason."""
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
    clips = _audio(entry.get("audio"), len(captions), media)
    return Row(file, number, key, image, captions, clips, split, regions=regions)


def _path(entry: dict[str, Any], name: str, media: Path) -> Path | None:
    path = entry.get(name)
    if path is not None and not (isinstance(path, str) and path):
        raise DataError(f"{name} is not a path")
    return None if path is None else media / path


def _audio(audio: Any, captions: int, media: Path) -> tuple[Path | None, ...]:
    """The audio of each caption; a lone one without captions."""
    if audio is None:
        return ()
    listed = [audio] if isinstance(audio, str) else audio
    if not isinstance(listed, list) or not all(path is None or (isinstance(path, str) and path) for path in listed):
        raise DataError("the audio is neither a path nor a list of paths and nulls")
    if listed and len(listed) != max(captions, 1):
        raise DataError(f"there are {captions} captions but {len(listed)} audio clips: one (or null) for each caption")
    return tuple(None if path is None else media / path for path in listed)

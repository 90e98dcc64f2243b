"""Files with the names of their classes: a folder with a folder for each class, or a CSV; and the prompts of classes.

FOLDER/cat/1.png FOLDER/cat/2.png FOLDER/dog/1.png       of images with their audio also FOLDER/cat/1.wav
path,label      relative to the CSV's folder; of images with their audio: image,audio,label
"""

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.data.decoding import decoding, read_bytes
from src.data.errors import DataError
from src.data.schema import MODALITIES
from src.inference.media import MODALITY, find_files


@dataclass(frozen=True)
class Labelled:
    """An item: its file, or its image and its audio clip, and its class."""

    files: tuple[Path, ...]
    label: str


def read_labelled(path: Path, given: tuple[str, ...], option: str = "eval.zero_shot.path") -> list[Labelled]:
    """All items of a folder or a CSV.

    Args:
        given: of MODALITIES: what an item is made of.
        option: by which the path was named, for errors.

    Raises:
        DataError: there is no such folder or file, or it holds no items.
    """
    if os.path.isdir(path):
        found = list(_of_folder(path, given))
    elif os.path.isfile(path):
        found = list(_of_table(path, given))
    else:
        raise DataError(f"{option}={path}: no such folder or CSV")
    if not found:
        raise DataError(f"{option}={path} holds no {' with '.join(given)} in a folder of a class")
    return found


def read_templates(path: str) -> list[str]:
    """The texts of a file, one a line; without a file the label alone.

    Raises:
        DataError: there is no such file, or a line has no {} for the label.
    """
    if not path:
        return ["{}"]
    lines = [line.strip() for line in _text(Path(path)).splitlines()]
    for number, line in enumerate(lines, 1):
        if line and "{}" not in line:
            raise DataError(f"{path}, line {number}: no {{}}, which the label takes the place of: {line[:40]!r}")
    if not any(lines):
        raise DataError(f"{path} holds no template: write texts with {{}} in the label's place")
    return [line for line in lines if line]


def read_names(path: str, labels: list[str]) -> list[str]:
    """What each label is called in texts, by a CSV of label and name; without a file by itself.

    Raises:
        DataError: there is no such file, or it has no name of a label.
    """
    if not path:
        return labels
    names = {row["label"]: row["name"] for _, row in _rows(Path(path), ("label", "name"))}
    missing = [label for label in labels if label not in names]
    if missing:
        raise DataError(f"{path}: no name of the class {missing[0]!r}: add a line of it")
    return [names[label] for label in labels]


def _of_folder(folder: Path, given: tuple[str, ...]) -> Iterator[Labelled]:
    """Files of a class that lack their partner, which has the same name up to the ending, are counted and left out."""
    lonely = 0
    kinds = tuple(MODALITIES.index(kind) for kind in given)
    for place in sorted(folder.iterdir()):
        if not place.is_dir() or place.name.startswith("."):
            continue
        together: dict[Path, dict[int, Path]] = {}
        for file in _files(place, kinds):
            # of one kind every file is an item; of two those that differ in their ending alone are one
            together.setdefault(file if len(kinds) == 1 else file.with_suffix(""), {})[
                MODALITY[file.suffix.lower()]
            ] = file
        for files in together.values():
            if files.keys() == set(kinds):
                yield Labelled(tuple(files[kind] for kind in kinds), place.name)
            else:
                lonely += 1
    if lonely:
        print(f"note: {folder}: {lonely} files have no {' and '.join(given)} of one name", file=sys.stderr)


def _files(place: Path, kinds: tuple[int, ...]) -> list[Path]:
    try:
        return find_files(place, kinds)
    except DataError:  # a class without items, or a folder of something else
        return []


def _of_table(path: Path, given: tuple[str, ...]) -> Iterator[Labelled]:
    columns = ("path",) if len(given) == 1 else given
    for number, row in _rows(path, (*columns, "label")):
        files = tuple(path.parent / row[column] for column in columns)
        for file, kind in zip(files, given, strict=True):
            if MODALITY.get(file.suffix.lower()) != MODALITIES.index(kind):
                raise DataError(f"{path}, line {number}: {file.name} is no {kind} (given: {'+'.join(given)})")
        yield Labelled(files, row["label"])


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV by their number, from 2 on behind the header, which must name the columns."""
    with decoding(f"{path}: not a readable CSV"):
        table = csv.DictReader(_text(path).splitlines())
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: its first line names no column {missing[0]}: expected {','.join(columns)}")
        for number, row in enumerate(table, 2):
            empty = [column for column in columns if not (row[column] or "").strip()]
            if empty:
                raise DataError(f"{path}, line {number}: no {empty[0]}")
            yield number, {column: row[column].strip() for column in columns}


def _text(path: Path) -> str:
    content = read_bytes(path, "text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None

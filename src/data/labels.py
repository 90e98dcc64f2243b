"""Labels of images, any number of each, from a CSV of a line for each image and label.

id,label                                    by the id of a record of a dataset
ImageID,Source,LabelName,Confidence         Open Images' image-level labels, checked by people or by machine
LabelName,DisplayName                       their names, with this first line or without: class-descriptions
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from src.data.decoding import check_file, decoding
from src.data.errors import DataError

OWN, OPEN_IMAGES, NAMED = ("id", "label"), ("ImageID", "LabelName", "Confidence"), ("LabelName", "DisplayName")
CONFIDENT = 0.5  # from here on an image has a label; people's yes is 1, their no 0


@dataclass(frozen=True)
class Labels:
    """The names of images' labels by id; what is not listed is not known, and an image may have none of the labels."""

    of: dict[str, tuple[str, ...]]

    def find(self, key: str) -> tuple[str, ...] | None:
        """The labels of a record: of its own id, or of what stands before a slash in it, as ``image/annotator`` has.

        None where nothing is known of it.
        """
        return self.of.get(key, self.of.get(key.split("/", 1)[0]))


def read_labels(paths: Sequence[Path], wanted: Collection[str], named: Path | None = None) -> Labels:
    """The labels of some images.

    Args:
        paths: CSVs of ids and labels.
        wanted: ids; of the others nothing is kept.
        named: CSV of labels and their names; only the labels that it lists count.

    Raises:
        DataError: a file or a row of it cannot be used.
    """
    names = None if named is None else read_label_names(named)
    found: dict[str, dict[str, bool]] = {}  # of each image its labels, in their order
    for key, label, has in chain.from_iterable(map(_rows, paths)):
        if key in wanted:
            own = found.setdefault(key, {})
            name = label if names is None else names.get(label)
            if name is not None:
                own[name] = own.get(name, False) or has
    return Labels({key: tuple(name for name, has in own.items() if has) for key, own in found.items()})


def read_label_names(path: Path) -> dict[str, str]:
    """Names by label; labels of one name get their label behind it.

    Raises:
        DataError: there is no such file, or a line has not two columns.
    """
    found: dict[str, str] = {}
    for number, row in _lines(path):
        if number == 1 and tuple(row) == NAMED:
            continue
        if len(row) != 2 or not all(row):
            raise DataError(f"{path}, line {number}: expected {','.join(NAMED)}")
        found[row[0]] = row[1]
    counts: dict[str, int] = {}
    for name in found.values():
        counts[name] = counts.get(name, 0) + 1
    return {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in found.items()}


def _rows(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Id and label of each line, and whether the image has the label."""
    lines = _lines(path)
    _, header = next(lines, (1, []))
    known = next((columns for columns in (OWN, OPEN_IMAGES) if set(columns) <= set(header)), None)
    if known is None:
        raise DataError(f"{path}: its first line names neither {','.join(OWN)} nor {','.join(OPEN_IMAGES)}")
    columns = [header.index(name) for name in known]
    for number, row in lines:
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} columns, the first line has {len(header)}")
        key, label, *confidence = (row[column] for column in columns)
        if not key or not label:
            raise DataError(f"{path}, line {number}: no {known[0] if not key else known[1]}")
        yield key, label, not confidence or _share(confidence[0], path, number) >= CONFIDENT


def _share(text: str, path: Path, number: int) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # also not a number
        raise DataError(f"{path}, line {number}: Confidence {text!r}: expected a number from 0 to 1")
    return share


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV that are not empty, from 1 on, read one by one: Open Images has 60 million."""
    check_file(path, "CSV")
    with decoding(f"{path}: not a readable CSV"), open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file)
        for row in table:
            if row:
                yield table.line_num, [cell.strip() for cell in row]

"""What a linear probe learns from and is measured on: items of three splits with their labels.

of a dataset        labels by id of a record (src/data/labels.py), or those that the corpus itself knows
of labelled files   a folder with a folder for each class, a CSV of path and label (src/inference/labelled.py)
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from src.config import Config
from src.data.bad_records import LenientReader
from src.data.errors import DataError
from src.data.image import decode_image
from src.data.labels import read_labels
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.prepare.common import split_by_digest
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.data.store import Dataset
from src.demo.facts import FactMetric
from src.inference.labelled import Labelled, read_labelled
from src.inference.media import Medium, read_file
from src.inference.representations import Example

SPLITS = ("train", "dev", "test")
FOLDERS = {"train": ("train",), "dev": ("dev", "val", "valid", "validation"), "test": ("test",)}
DEV_SHARE, TEST_SHARE = 0.1, 0.2  # of files without splits


@dataclass(frozen=True)
class ProbeSplit:
    """Items of a split; they are read one by one, as features are wanted of them."""

    name: str
    labels: csr_matrix  # float32 [N, C], 1 where an item has a label
    read: Callable[[int], Example]

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class ProbeData:
    """All three splits.

    Args:
        multiple: whether an item may have any number of labels, and not exactly one.
        left_out: labels with too few items.
        about: where the items and their labels were read: ``data`` (with the sha256 of each split) or ``input``,
            ``label_files``, ``names``.
    """

    source: str
    labels: list[str]
    multiple: bool
    modalities: tuple[int, ...]
    train: ProbeSplit
    dev: ProbeSplit
    test: ProbeSplit
    left_out: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[ProbeSplit, ProbeSplit, ProbeSplit]:
        return self.train, self.dev, self.test


@dataclass(frozen=True)
class _Found:
    """A split with its labels by name, before it is known which labels are used."""

    name: str
    labels: list[tuple[str, ...]]
    read: Callable[[int], Example]


def read_data(
    config: Config,
    path: Path | None = None,
    given: str | None = None,
    labels: Sequence[Path] = (),
    names: Path | None = None,
    most: int = 0,
    fewest: int = 1,
) -> ProbeData:
    """Labelled files if a path names them, otherwise a dataset; as :func:`of_files` and :func:`of_dataset` have them.

    Args:
        given: modalities with a + between.
    """
    kinds = given.split("+") if given else ["image"] if path else []
    known = (MODALITIES[IMAGE], MODALITIES[AUDIO]) if path else MODALITIES
    if wrong := [kind for kind in kinds if kind not in known]:
        raise DataError(f"--given {given}: {wrong[0]!r} is none of {', '.join(known)}")
    if path and (labels or names):
        raise DataError("--labels and --names go with a dataset: the files of --input have their labels beside them")
    if names and not labels:
        raise DataError("--names goes with --labels")
    if most < 0 or fewest < 1:
        raise DataError(f"--items {most}, --min-items {fewest}: expected 0 or more, and at least 1")
    modalities = tuple(sorted(MODALITIES.index(kind) for kind in set(kinds)))
    if path:
        return of_files(config, path, modalities, most, fewest)
    return of_dataset(config, modalities, labels, names, most, fewest)


def of_dataset(
    config: Config,
    modalities: Collection[int] = (),
    labels: Sequence[Path] = (),
    names: Path | None = None,
    most: int = 0,
    fewest: int = 1,
) -> ProbeData:
    """Items of a dataset: an image each, with the first of its captions that has all modalities.

    Args:
        config: data says where, and which splits are trained on, chosen on and reported.
        modalities: that every item must have; none: all that the training split has.
        labels: CSVs of ids and labels; none: what the corpus itself knows, as the demo's does its objects.
        names: CSV of the labels that count, and their names.
        most: images of the training split, evenly apart; 0: all.
        fewest: training items of a label, of which one with fewer is left out.

    Raises:
        DataError: a split or a table cannot be read, or nothing is left.
    """
    wanted = {"train": config.data.train_split, "dev": config.data.eval_split, "test": config.eval.split}
    if len(set(wanted.values())) < len(wanted):
        raise DataError(
            f"data.train_split={wanted['train']}, data.eval_split={wanted['dev']}, eval.split={wanted['test']}: "
            "a probe is trained, chosen and reported on three different splits"
        )
    datasets = {name: _open(config, name, split) for name, split in wanted.items()}
    train, test = datasets["train"], datasets["test"]
    given = tuple(sorted(modalities or (modality for modality in (TEXT, IMAGE, AUDIO) if train.count(modality))))
    facts = {} if labels else {name: _facts(dataset) for name, dataset in datasets.items()}
    chosen = {name: _choose(dataset, given, config) for name, dataset in datasets.items() if name != "train"}
    chosen["train"] = _choose(train, given, config, most, config.data.max_bad)
    if not labels:
        known = {name: [facts[name].objects(one.captions) for one in found] for name, found in chosen.items()}
    else:
        ids = {part for found in chosen.values() for one in found for part in (one.key, one.key.split("/", 1)[0])}
        table = read_labels(labels, ids, names)
        known = {name: [table.find(one.key) for one in found] for name, found in chosen.items()}
    parts = []
    for name, dataset in datasets.items():
        kept = [(one, own) for one, own in zip(chosen[name], known[name], strict=True) if own is not None]
        samples = np.array([one.sample for one, _ in kept], np.int64)
        parts.append(_Found(wanted[name], [own for _, own in kept], _SampleReader(dataset, samples, given, config)))
    folders = dict.fromkeys((str(train.folder), str(test.folder)))
    source = ", ".join([*folders, *(path.name for path in labels)])
    return replace(_assemble(source, parts, given, fewest, multiple=True), about=_about(datasets, labels, names))


def _open(config: Config, name: str, split: str) -> Dataset:
    """What is fitted to lies in the first dataset that training reads, the others where evaluations are."""
    if name == "train":
        folder, *others = [folder for folder, _ in config.data.mixture]
        if others:
            hint = "data.sources=[] data.path=… names another"
            print(
                f"note: the probe is fitted to {folder}, the first of {1 + len(others)} sources: {hint}",
                file=sys.stderr,
            )
        config = replace(config, data=config.data.alone(folder))
    return Loader.held_out(config, split).dataset


def _facts(dataset: Dataset) -> FactMetric:
    if (facts := FactMetric.of(dataset.info["about"])) is None:
        raise DataError(f"{dataset.folder}: the corpus knows no labels of its images: name a CSV of them by --labels")
    return facts


def _about(datasets: Mapping[str, Dataset], labels: Sequence[Path], names: Path | None) -> dict[str, Any]:
    """As the results name the data: the dataset that is fitted to, that of dev and test if it is another."""
    folder, held_out = (str(datasets[name].folder) for name in ("train", "test"))
    digests = {dataset.split: dataset.digest() for dataset in datasets.values()}
    data = {"path": folder} | ({} if held_out == folder else {"eval_path": held_out}) | {"sha256": digests}
    tables = {"label_files": [str(path) for path in labels], "names": str(names) if names else None}
    return {"data": data} | (tables if labels else {})


def of_files(
    config: Config, path: Path, modalities: Sequence[int] = (IMAGE,), most: int = 0, fewest: int = 1
) -> ProbeData:
    """Labelled files: a folder with folders train, dev (or val) and test, one without, or a CSV.

    What has no split gets one by the digest of its path: a tenth is dev, a fifth test. Of a folder with train and val
    alone, as ImageNet has them, val is the test and a tenth of train is dev. In a CSV a path may stand in several
    lines, with a label in each.

    Args:
        modalities: of an item: the image, the audio clip, or both.
        most, fewest: as :func:`of_dataset` has them.

    Raises:
        DataError: there is no such file or folder, or it holds nothing.
    """
    given = tuple(sorted(modalities))
    kinds = tuple(MODALITIES[modality] for modality in given)
    folders = {name: _folder(path, FOLDERS[name]) for name in SPLITS}
    if folders["train"] and any(entry.is_dir() for entry in folders["train"].iterdir()):  # or a class called train
        held = {name: read_labelled(place, kinds, "--input") for name, place in folders.items() if place}
        if "test" not in held and "dev" in held:
            held["test"] = held.pop("dev")
        found = {**_divided(held.pop("train"), path, "dev" not in held, "test" not in held), **held}
    else:
        found = _divided(read_labelled(path, kinds, "--input"), path, True, True)
    groups = {name: _together(items) for name, items in found.items()}
    if most and len(groups["train"]) > most:
        files = list(groups["train"])
        groups["train"] = {files[at]: groups["train"][files[at]] for at in evenly_apart(len(files), most)}
    multiple = any(len(own) > 1 for group in groups.values() for own in group.values())
    parts = []
    for name in SPLITS:
        group = groups.get(name, {})
        files = list(group)
        parts.append(_Found(name, [tuple(own) for own in group.values()], _FileReader(files, given, config)))
    return replace(_assemble(str(path), parts, given, fewest, multiple), about={"input": str(path)})


@dataclass(frozen=True)
class _Chosen:
    sample: int  # of the split
    key: str
    captions: tuple[str, ...]  # of the image's record


def _choose(dataset: Dataset, given: tuple[int, ...], config: Config, most: int = 0, max_bad: int = 0) -> list[_Chosen]:
    """Of each image the first sample that has all modalities, in a record that can be read."""
    read = LenientReader(dataset, max_bad)
    images = dataset.samples[:, 2]
    order = np.argsort(images, kind="stable")
    starts = np.flatnonzero(np.diff(images[order], prepend=-1))
    groups = np.split(order, starts[1:])
    kept = evenly_apart(len(groups), most or len(groups))
    found = []
    for group in (groups[at] for at in kept):
        for sample in group.tolist():
            record_index, caption, _ = dataset.samples[sample]
            record = read(int(record_index))
            if record and all(record.presence(caption, config.model.image.input)[modality] for modality in given):
                found.append(_Chosen(sample, record.key, record.captions))
                break
    return found


class _SampleReader:
    """Samples of a dataset as what the network reads."""

    def __init__(self, dataset: Dataset, samples: np.ndarray, given: tuple[int, ...], config: Config) -> None:
        self.dataset, self.samples, self.given, self.model = dataset, samples, given, config.model

    def __call__(self, number: int) -> Example:
        record_index, caption, _ = self.dataset.samples[self.samples[number]]
        record, model = next(self.dataset.read([record_index])), self.model
        found: Example = {}
        for modality in self.given:
            if modality == TEXT:
                content = record.captions[caption]
            elif modality == AUDIO:
                content = record.audio[max(caption, 0)][: model.audio.length]
            elif model.image.input == "region":
                content = record.regions
            else:
                content = decode_image(record.image, model.image.size, model.image.resize, record.key)
            found[modality] = Medium(record.key, modality, content)
        return found


class _FileReader:
    """Files as what the network reads."""

    def __init__(self, files: list[tuple[Path, ...]], given: tuple[int, ...], config: Config) -> None:
        self.files, self.given, self.model = files, given, config.model

    def __call__(self, number: int) -> Example:
        pairs = zip(self.given, self.files[number], strict=True)
        return {modality: read_file(file, self.model) for modality, file in pairs}


def _folder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if os.path.isdir(path / name)), None)


def _divided(items: list[Labelled], root: Path, dev: bool, test: bool) -> dict[str, list[Labelled]]:
    """Splits by the digest of a file's path, or the whole as train where none is wanted."""
    found: dict[str, list[Labelled]] = {"train": []} | ({"dev": []} if dev else {}) | ({"test": []} if test else {})
    for item in items:
        name = os.path.relpath(item.files[0], root if root.is_dir() else root.parent)
        content = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")
        found[split_by_digest(content, DEV_SHARE * dev, TEST_SHARE * test)].append(item)
    return found


def _together(items: Sequence[Labelled]) -> dict[tuple[Path, ...], list[str]]:
    """The labels of each item, in order."""
    found: dict[tuple[Path, ...], list[str]] = {}
    for item in items:
        own = found.setdefault(item.files, [])
        if item.label not in own:
            own.append(item.label)
    return found


def _assemble(source: str, parts: Sequence[_Found], given: tuple[int, ...], fewest: int, multiple: bool) -> ProbeData:
    """Which labels count: those that enough training items have, and some of the test."""
    counts = [Counter(label for own in part.labels for label in own) for part in parts]
    known = sorted(set().union(*counts))
    used = [label for label in known if counts[0][label] >= fewest and counts[2][label]]
    for part in parts:
        if not part.labels:
            kinds = " with ".join(MODALITIES[modality] for modality in given)
            raise DataError(f"{source}: split {part.name!r} has no {kinds} of which labels are known")
    if len(used) < 1 + (not multiple):
        raise DataError(f"{source}: no labels that {fewest} training items have and some of the test (--min-items)")
    place = {label: at for at, label in enumerate(used)}
    splits = [_split(part, place, multiple) for part in parts]
    for split in splits:
        if not split.labels.nnz:  # of labels that may meet, an item may have none
            wanted = f"{fewest} training items and some of the test have (--min-items)"
            raise DataError(f"{source}: no item of split {split.name!r} has a label that {wanted}")
    return ProbeData(source, used, multiple, given, *splits, left_out=len(known) - len(used))


def _split(part: _Found, place: dict[str, int], multiple: bool) -> ProbeSplit:
    """The labels as a table; of exclusive ones, items whose label does not count are left out."""
    rows = [[place[label] for label in own if label in place] for own in part.labels]
    kept = [number for number, row in enumerate(rows) if row or multiple]
    columns = [column for number in kept for column in rows[number]]
    ends = np.cumsum([0, *(len(rows[number]) for number in kept)])
    table = csr_matrix((np.ones(len(columns), np.float32), columns, ends), (len(kept), len(place)))
    read = part.read
    return ProbeSplit(part.name, table, lambda at: read(kept[at]))

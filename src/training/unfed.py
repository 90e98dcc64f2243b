"""Objectives that the training data cannot feed: they are named at the start and left out of the graph."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from src.config import TASKS, Config
from src.data.coverage import MEASURED
from src.data.errors import DataError
from src.data.masking import possible_given
from src.data.order import evenly_apart
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.data.store import Dataset
from src.objectives.table import CLASSES, ENCODERS, HEADS, PIXELS, TABLE, active_objectives, reached_parts

# what a row of the objectives' table needs, in messages
NEEDED = (*MODALITIES, "image to make codes of", f"known class of a region in up to {MEASURED:,} samples")


def absent_modalities(config: Config, datasets: Collection[Dataset]) -> list[int]:
    """Those that no sample has: nothing of them is encoded."""
    return [which for which in (TEXT, IMAGE, AUDIO) if not any(_has(config, data, which) for data in datasets)]


def unfed_objectives(config: Config, datasets: Collection[Dataset]) -> dict[str, str]:
    """The active objectives that cannot be learned, each with the reason: the loss would be 0 in every step, or all
    images would be generated from nothing.

    Raises:
        DataError: nothing is left to train, or not what the task is for.
    """
    sources = [_held(config, dataset) for dataset in datasets]
    found: dict[str, str] = {}
    for name in active_objectives(config.objectives):
        if all(_lacks(config, name, here) for here in sources):
            found[name] = _lacks(config, name, set().union(*sources)) or "no source has what it needs together"
    folders = ", ".join(str(dataset.folder) for dataset in datasets)
    own = TASKS[config.task].objective
    if own in found:
        raise DataError(f"{folders}: {found[own]}, which task={config.task} (objectives.weights.{own}) trains on")
    if len(found) == len(active_objectives(config.objectives)):
        reasons = ", ".join(f"{name}: {reason}" for name, reason in found.items())
        raise DataError(f"{folders}: the data feeds no objective ({reasons}): prepare it with what is missing")
    return found


def _held(config: Config, dataset: Dataset) -> set[int]:
    """What the samples of a source have of what objectives need."""
    found = {TEXT, IMAGE, AUDIO}.difference(absent_modalities(config, [dataset]))
    if dataset.count(IMAGE):
        found.add(PIXELS)
    if config.objectives.weights.mvm_class and _has_classes(dataset, config.model.image.regions):
        found.add(CLASSES)
    return found


def _lacks(config: Config, name: str, here: Collection[int]) -> str:
    """What an objective lacks where samples have nothing but this; nothing if it may learn."""
    needed = TABLE[name].needs
    if needed is None and len({TEXT, IMAGE, AUDIO} & set(here)) < 2:
        return "only one modality"
    if needed is not None and needed not in here:
        return f"no {NEEDED[needed]}"
    objectives, presence = config.objectives, np.array([which in here for which in (TEXT, IMAGE, AUDIO)])
    given = {
        "denoise_text": (objectives.denoise_text.given, presence, TASKS[config.task].whole),
        "denoise_image": (objectives.denoise_image.given, presence),
    }
    if name in given and not len(possible_given(*given[name])):
        return f"nothing that objectives.{name}.given names"
    return ""


def unfed_parts(left_out: Collection[str], absent: Collection[int]) -> frozenset[str]:
    """The parts of the network that objectives which are left out and absent modalities would train."""
    return reached_parts(tuple(left_out)) | {names[which] for which in absent for names in (ENCODERS, HEADS)}


def without(config: Config, names: Collection[str]) -> Config:
    """The configuration in which some objectives have no weight, and nothing is evaluated that needs them."""
    weights = replace(config.objectives.weights, **dict.fromkeys(names, 0.0))
    settings = config.eval
    if "denoise_image" in names:
        settings = replace(settings, image_generation=replace(settings.image_generation, max_items=0))
    return replace(config, objectives=replace(config.objectives, weights=weights), eval=settings)


def describe(unfed: Mapping[str, str]) -> str:
    """What the start of a run says."""
    return "not trained, for the data cannot feed it: " + ", ".join(f"{name} ({why})" for name, why in unfed.items())


def _has(config: Config, dataset: Dataset, modality: int) -> bool:
    """Whether some sample of a split has a modality, in the form that the model reads."""
    if modality == IMAGE and config.model.image.input == "region":
        return dataset.count_regions() > 0
    return dataset.count(modality) > 0


def _has_classes(dataset: Dataset, most: int) -> bool:
    """Whether the class of one of the regions that are read (so many an image) is known in the samples looked at."""
    records = dataset.read_good(dataset.samples[evenly_apart(len(dataset), MEASURED), 0])
    found = (record.regions for record in records if record is not None and record.regions is not None)
    return any((regions.classes[:most] >= 0).any() for regions in found)

"""Objectives that the training data cannot feed: they are named at the start and left out of the graph."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from src.config import TASKS, Config
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.data.store import Dataset
from src.objectives.table import TABLE, active_objectives


def absent_modalities(config: Config, datasets: Collection[Dataset]) -> list[int]:
    """Those that no sample has: nothing of them is encoded."""
    return [which for which in (TEXT, IMAGE, AUDIO) if not any(_has(config, data, which) for data in datasets)]


def unfed_objectives(config: Config, datasets: Collection[Dataset]) -> dict[str, str]:
    """The active objectives whose loss would be 0 in every step, each with the reason.

    Raises:
        DataError: nothing is left to train, or not what the task is for.
    """
    here = {TEXT, IMAGE, AUDIO}.difference(absent_modalities(config, datasets))
    given = {MODALITIES.index(name) for choice in config.objectives.denoise_text.given for name in choice.split("+")}
    found: dict[str, str] = {}
    for name in active_objectives(config.objectives):
        needed = TABLE[name].needs
        if needed is None and len(here) < 2:
            found[name] = "only one modality"
        elif needed is not None and needed not in here:
            found[name] = f"no {MODALITIES[needed]}"
        elif name == "denoise_text" and not given & here:
            found[name] = "nothing of objectives.denoise_text.given"
    folders = ", ".join(str(dataset.folder) for dataset in datasets)
    own = TASKS[config.task].objective
    if own in found:
        raise DataError(f"{folders}: {found[own]}, which task={config.task} (objectives.weights.{own}) trains on")
    if len(found) == len(active_objectives(config.objectives)):
        reasons = ", ".join(f"{name}: {reason}" for name, reason in found.items())
        raise DataError(f"{folders}: the data feeds no objective ({reasons}): prepare it with what is missing")
    return found


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

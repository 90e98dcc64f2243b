"""Checkpoints: folders that hold everything needed to go on, to evaluate, or to export.

    step-00001000/
        config.yaml           the resolved configuration
        vocab.txt             the vocabulary it was trained with
        answers.txt           the answers that it classifies questions into (only with model.answers)
        model.safetensors     weights by name
        ema.safetensors       the same, with the moving average of what is trained (only with train.ema_decay)
        tokenizer/            the image tokenizer whose codes it was trained with, if it has one
        optimizer.safetensors moments, step, loss scale (left out where only the model is shipped)
        state.json            step, sample position and what else a run goes on from
        manifest.json         format, step, position, git revision; size and sha256 of the files above
        evaluation.json       what of the state its evaluation changed (best metric)
        reranking.yaml        weights of re-ranking (only where tools/tune_reranking.py has chosen them)
        outliers.safetensors  where usual inputs lie (only where tools/measure_outliers.py has measured it)

A checkpoint is written under another name and then renamed: a kill at any moment leaves all of it or nothing.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mindspore import Parameter, nn

from src.checkpoints.files import (
    ANSWERS,
    CONFIG,
    EMA,
    EVALUATION,
    MODEL,
    OPTIMIZER,
    RERANKING,
    STATE,
    TOKENIZER,
    VOCAB,
    CheckpointError,
    Tensors,
    own_files,
    read_tensors,
    set_parameters,
    tensor_names,
    weights_file,
    write_tensors,
)
from src.checkpoints.manifest import write_manifest
from src.checkpoints.places import BEST, LATEST, locate, pointed
from src.checkpoints.renames import rename
from src.config import Config, load_config, to_yaml
from src.config.paths import quote_text
from src.files import sync_folder, write_bytes, write_text

DESCRIBED = ("step", "position")  # of the state, what the manifest says, too

Fit = Callable[[dict[str, np.ndarray], dict[str, tuple[int, ...]]], dict[str, np.ndarray]]


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a checkpoint folder holds, whichever version wrote it."""
    return load_config(folder / CONFIG, overrides, rename)


def load_checkpoint_config(
    folder: Path, overrides: Sequence[str] = (), config_file: str | Path | None = None
) -> Config:
    """The configuration a checkpoint was trained with; its own vocabulary, image tokenizer and re-ranking are used.

    Args:
        config_file: says instead what is done with the checkpoint; the network stays the one that was trained.
    """
    own = [*own_files(folder), *tuned_weights(folder, overrides)]
    if config_file is None:
        return read_config(folder, [*own, *overrides])
    return load_config(config_file, [*_network_settings(read_config(folder, own)), *own, *overrides])


def tuned_weights(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Settings of re-ranking that were chosen for a checkpoint and lie beside it; none if ``overrides`` weigh anew.

    Raises:
        CheckpointError: the file does not hold them.
    """
    path = folder / RERANKING
    if not path.is_file():
        return []
    try:
        chosen = yaml.safe_load(path.read_text(encoding="utf-8"))["eval"]["rerank"]
        settings = {f"eval.rerank.{name}": json.dumps(value) for name, value in chosen.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise CheckpointError(f"{path} does not hold eval.rerank: delete it, or write it anew") from None
    if any(override.partition("=")[0] in settings for override in overrides):
        return []
    return [f"{key}={value}" for key, value in settings.items()]


def _network_settings(config: Config) -> list[str]:
    """The network of a configuration as ``key=value``."""
    sections: list[tuple[str, Any]] = [("model", yaml.safe_load(to_yaml(config))["model"])]
    settings = []
    while sections:
        key, value = sections.pop()
        if isinstance(value, dict):
            sections += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            settings.append(f"{key}={quote_text(value) if isinstance(value, str) else json.dumps(value)}")
    return settings


def load_weights(cell: nn.Cell, folder: Path, ema: bool = False) -> None:
    """Sets every parameter of a network from a checkpoint folder; none may be missing, unknown or of another shape.

    Args:
        ema: from the average of its weights.
    """
    path = folder / weights_file(ema)
    set_parameters(dict(cell.parameters_and_names()), read_tensors(path), path)


def load_parts(cell: nn.Cell, folder: Path, fit: Fit | None = None) -> tuple[list[str], list[str]]:
    """Sets the parts that the network and a checkpoint folder share, as fine-tuning and a grown network need it.

    A part (``text_encoder``, ``image_decoder``, …) that both have must agree in every tensor.

    Args:
        fit: takes the tensors of the shared parts and the shapes of the network's, both by name, and returns the
            tensors to be set.

    Returns:
        Names of the parts that the checkpoint lacks and keep their new weights, and of those that it has beside.

    Raises:
        CheckpointError: a shared part differs, or nothing is shared.
    """
    path = folder / MODEL
    parameters, arrays = dict(cell.parameters_and_names()), read_tensors(path)
    ours, theirs = ({name.partition(".")[0] for name in names} for names in (parameters, arrays))
    shared = ours & theirs
    if not shared:
        raise CheckpointError(f"{path} has no part of this model: another task wrote it")
    ours_shared = {name: value for name, value in parameters.items() if name.partition(".")[0] in shared}
    theirs_shared = Tensors(path, [name for name in arrays if name.partition(".")[0] in shared])
    if fit is not None:
        theirs_shared = fit(theirs_shared, {name: tuple(parameter.shape) for name, parameter in ours_shared.items()})
    set_parameters(ours_shared, theirs_shared, path)
    return sorted(ours - shared), sorted(theirs - shared)


def parts_of(folder: Path) -> set[str]:
    """Names of the parts whose weights a checkpoint folder holds."""
    return {name.partition(".")[0] for name in tensor_names(folder / MODEL)}


def save_checkpoint(
    checkpoints: Path,
    step: int,
    config: Config,
    model: nn.Cell,
    optimizer_state: Mapping[str, Parameter | np.ndarray] | None = None,
    state: Mapping[str, Any] | None = None,
    keep: int = 0,
    average: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes ``step-…`` under ``checkpoints`` whole or not at all, points ``latest`` at it, removes older ones.

    Args:
        keep: how many checkpoints stay, beside the best; 0: all.
        average: moving averages of trained weights by name, to be written beside the weights.
        texts: what :func:`read_texts` gave when the model was built; None: the files as they are now.

    Returns:
        The new folder.

    Raises:
        CheckpointError: it could not be written (a full disk); earlier checkpoints are untouched.
    """
    place = _free_place(checkpoints, step)
    beside = place.with_name(f".writing-{place.name}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        digests = {MODEL: write_model(beside, config, model, texts=texts)}
        _copy_image_tokenizer(config.data.codes, checkpoints, beside / TOKENIZER)
        if optimizer_state is not None:
            digests[OPTIMIZER] = write_tensors(beside / OPTIMIZER, optimizer_state)
        if average is not None:
            digests[EMA] = write_tensors(beside / EMA, dict(model.parameters_and_names()) | dict(average))
        whole_state = {"step": step, **(state or {})}
        _write_state(beside / STATE, whole_state)
        write_manifest(beside, digests, {name: whole_state[name] for name in DESCRIBED if name in whole_state})
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
        sync_folder(checkpoints)
        write_text(checkpoints / LATEST, place.name + "\n")
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(f"cannot write {place}: {error.strerror or error}") from None
    _remove_old(checkpoints, keep, place)
    return place


def note_evaluation(place: Path, state: Mapping[str, Any], best: bool, keep: int = 0) -> None:
    """Notes in a saved checkpoint what its evaluation found.

    Args:
        state: what of the state it changed.
        best: point ``best`` at it; the earlier best then counts as any other of the ``keep`` that stay.
    """
    try:
        _write_state(place / EVALUATION, state)
        if best:
            write_text(place.parent / BEST, place.name + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {place}: {error.strerror or error}") from None
    _remove_old(place.parent, keep, place)


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(dict(state), indent=1) + "\n")  # every digit of what a run goes on from


def read_texts(config: Config) -> dict[str, bytes]:
    """The vocabulary, and the answers if there are any, by their names in a checkpoint.

    A run reads them once: whatever becomes of these files meanwhile, its checkpoints hold what its model was built for.
    """
    sources = {VOCAB: config.model.text.vocab} | ({ANSWERS: config.model.answers} if config.model.answers else {})
    return {name: Path(source).read_bytes() for name, source in sources.items()}


def write_model(
    folder: Path, config: Config, model: nn.Cell, half: bool = False, texts: Mapping[str, bytes] | None = None
) -> str:
    """Configuration, vocabulary, answers and weights (``half``: as float16): what evaluation and export need.

    Args:
        texts: as :func:`save_checkpoint` takes them.

    Returns:
        The sha256 of the weights' file.
    """
    write_text(folder / CONFIG, to_yaml(config))
    for name, data in (texts or read_texts(config)).items():
        write_bytes(folder / name, data)
    return write_tensors(folder / MODEL, dict(model.parameters_and_names()), half)


def _copy_image_tokenizer(source: str, checkpoints: Path, place: Path) -> None:
    """Copies the checkpoint that data.codes names, so that a run can be evaluated wherever it is copied to.

    From the second checkpoint of a run on it is that of the one before: whose codes the network learns, whatever has
    become of its folder meanwhile.
    """
    if not source:
        return
    before = pointed(checkpoints / LATEST)
    try:
        folder = before / TOKENIZER if before and (before / TOKENIZER).is_dir() else locate(source)
    except CheckpointError:  # of a corpus without images it is never read
        return
    place.mkdir()
    for name in (CONFIG, VOCAB, MODEL):
        _copy(folder / name, place / name)


def _copy(source: Path, place: Path) -> None:
    shutil.copyfile(source, place)
    _sync(place)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _free_place(checkpoints: Path, step: int) -> Path:
    """The folder for a step: ``step-…``, or with a number behind where one of that name is the latest or the best.

    What a pointer names is not removed before the pointer has moved, so that a kill never leaves one without a target.
    """
    kept = (pointed(checkpoints / LATEST), pointed(checkpoints / BEST))
    places = [checkpoints / f"step-{step:08d}{again}" for again in ("", ".1", ".2")]
    return next(place for place in places if place not in kept)


def _remove_old(checkpoints: Path, keep: int, newest: Path) -> None:
    """Leaves ``newest`` (its step may be below an earlier run's), the best, and the highest of the others.

    An earlier one of the same step goes in any case.
    """
    others = sorted(set(checkpoints.glob("step-*")) - {newest, pointed(checkpoints / BEST)})
    gone = [other for other in others if other.stem == newest.stem]
    if keep:
        rest = [other for other in others if other not in gone]
        gone += rest[: max(0, len(rest) - keep + 1)]
    for old in gone:
        shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """What a run goes on from: the content of state.json, and over it what the checkpoint's evaluation found."""
    state: dict[str, Any] = {}
    for path in (folder / STATE, folder / EVALUATION):
        if path.name == EVALUATION and not path.exists():
            continue
        try:
            state |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    return state

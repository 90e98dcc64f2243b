"""Writes the graphs of a model for deployment; each is loaded back and compared with the model."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.checkpoints.checkpoint import write_model
from src.checkpoints.files import (
    ANSWERS,
    CONFIG,
    EMA,
    MANIFEST,
    MODEL,
    OUTLIERS,
    REPORT,
    RERANKING,
    STATE,
    TOKENIZER,
    VOCAB,
)
from src.checkpoints.manifest import write_manifest
from src.config import AudioEncoderConfig, Config, ImageEncoderConfig, ModelConfig, to_yaml
from src.data.audio import DECADES
from src.data.image import BAR
from src.data.schema import Field
from src.data.store import AUDIO_KEYS
from src.data.tokenizer import SPECIALS, Tokenizer
from src.errors import UserError
from src.export.graphs import Graph, build_graphs, without_graph
from src.files import digest, replace_folder, write_json
from src.inference import outliers
from src.inference.loading import load_model
from src.inference.outliers import Outliers
from src.models.opt import OPT

# largest absolute difference between a loaded graph and the model: kernels round a row otherwise in another batch
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}  # by runtime.precision
CHECKED_ROWS = 3  # batch of the comparison; a graph for any batch size also runs on the first row by itself
ANY = "B"  # the batch axis of a graph that takes any number of rows
Limits = Mapping[str, tuple[int, int]]  # the first value and the one behind the last, by input; else bytes


class ExportError(UserError):
    """Graphs that cannot be written or that differ from the model; the message is one line."""


def check_request(device: str, output: Path, file_format: str, batch_size: int) -> None:
    """Raises ExportError for what cannot be done, before anything expensive is."""
    if batch_size < 0:
        raise ExportError(f"--batch-size {batch_size}: must be positive, or 0 for any number of rows")
    if file_format == "AIR" and device != "Ascend":
        raise ExportError(f"--format AIR needs runtime.device=Ascend, not {device}: use --format MINDIR")
    if file_format == "AIR" and not batch_size:
        raise ExportError("--format AIR has fixed shapes: give --batch-size")
    if file_format == "WEIGHTS" and batch_size:
        raise ExportError(f"--batch-size {batch_size}: --format WEIGHTS has no inputs, leave it out")
    graphs, weights = (output / REPORT).is_file(), (output / MODEL).is_file()
    if graphs and (weights or file_format == "WEIGHTS"):  # a vocabulary and a configuration for both would fit one
        held = "weights" if weights else "graphs"
        raise ExportError(f"--output {output} holds exported {held}: name another folder for --format {file_format}")
    if file_format == "WEIGHTS" and weights and not (output / STATE).exists():
        return  # what an earlier call wrote, perhaps with a model card beside it
    if output.exists() and not graphs and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"--output {output} holds something else than an export: name another folder")


def export_graphs(
    config: Config, model: OPT, output: Path, file_format: str, batch_size: int, weights: str = MODEL
) -> dict[str, Any]:
    """Writes and checks every graph; the folder appears whole or not at all.

    Args:
        output: folder for the graphs, ``export.json``, ``config.yaml`` and ``vocab.txt``; replaces an earlier export.
        file_format: ``MINDIR``, or ``AIR`` on Ascend, which cannot be loaded back and is therefore not compared.
        batch_size: rows of every input; 0: any number.
        weights: name of the file that the weights are of, to be told in ``export.json`` and ``config.yaml``.

    Returns:
        The content of ``export.json``.

    Raises:
        ExportError: the format is not available here, the folder holds something else, or a graph differs.
    """
    output = output.resolve()
    check_request(config.runtime.device, output, file_format, batch_size)
    beside = output.with_name(f".writing-{output.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        report = _write_all(config, model, beside, file_format, batch_size, weights)
        replace_folder(beside, output)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return report


def export_weights(
    config: Config, model: OPT, output: Path, weights: str = MODEL, usual: Outliers | None = None
) -> Path:
    """Writes what evaluation and infer.py read, the weights in half precision; files of a user's in the folder stay.

    The image tokenizer that data.codes names goes along, if the model generates its codes.

    Args:
        weights: name of the file that the weights are of, to be told in ``config.yaml``.
        usual: where usual inputs lie, if that was measured for these weights.

    Returns:
        The folder.

    Raises:
        ExportError: the folder holds something else or cannot be written.
        CheckpointError: there is no image tokenizer where data.codes says.
    """
    output = output.resolve()
    check_request(config.runtime.device, output, "WEIGHTS", 0)
    drawn_by = load_model(config.data.codes) if config.model.image_codes and config.data.codes else None
    beside = output.with_name(f".writing-{output.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        if drawn_by is not None:
            (beside / TOKENIZER).mkdir()
            _write_weights(beside / TOKENIZER, *drawn_by, MODEL)
            config = replace(config, data=replace(config.data, codes=TOKENIZER))
        _write_weights(beside, config, model, weights)
        write_manifest(beside, {}, {})
        if usual is not None:  # behind the manifest: it may be measured anew
            outliers.keep(beside, beside, usual)
        output.mkdir(exist_ok=True)
        (output / MANIFEST).unlink(missing_ok=True)  # a kill leaves files without one, not with a wrong one
        _remove_other_models(output, beside)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == MANIFEST):
            put = replace_folder if path.is_dir() else Path.replace
            put(path, output / path.name)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return output


def _remove_other_models(output: Path, new: Path) -> None:
    """Removes what lies beside the weights of another model than the new one and would be read with the new weights."""
    old = output / MODEL
    if not old.is_file() or digest(old) == digest(new / MODEL):
        return
    for name in (ANSWERS, OUTLIERS, RERANKING):
        (output / name).unlink(missing_ok=True)
    if (output / TOKENIZER / MODEL).is_file():
        shutil.rmtree(output / TOKENIZER)


def _write_weights(folder: Path, config: Config, model: nn.Cell, weights: str) -> None:
    write_model(folder, config, model, half=True)
    _write_config(folder, config, weights)


def _write_all(
    config: Config, model: OPT, folder: Path, file_format: str, batch_size: int, weights: str
) -> dict[str, Any]:
    tokenizer, tolerance = Tokenizer(config.model.text.vocab), TOLERANCES[config.runtime.precision]
    rows = batch_size or ANY
    limits = {"text_ids": (0, tokenizer.size), "audio_frames": (1, config.model.audio.length + 1)}
    entries = {}
    answers_from = config.objectives.answer.given if config.model.answers else ()
    for name, graph in build_graphs(model, config.model, answers_from).items():
        entries[name] = _write_graph(graph, folder, name, file_format, rows)
        if file_format == "MINDIR":
            entries[name] |= compare(graph, folder / entries[name]["file"], rows, limits)
            difference = entries[name]["max_abs_diff"]
            if not difference <= tolerance:
                raise ExportError(f"{name} differs from the model by {difference:.1e}, more than {tolerance:.0e}")
    compared = [entry["max_abs_diff"] for entry in entries.values() if "max_abs_diff" in entry]
    report = {
        "format": file_format,
        "weights": weights,
        "batch_size": rows,
        "max_abs_diff": max(compared, default=None),
        "graphs": entries,
        "without_graph": without_graph(model),
        "preprocessing": describe_preprocessing(config.model, tokenizer),
        "mindspore": ms.__version__,
    }
    shutil.copyfile(config.model.text.vocab, folder / VOCAB)
    if config.model.answers:
        shutil.copyfile(config.model.answers, folder / ANSWERS)
    _write_config(folder, config, weights)
    write_json(folder / REPORT, report)
    return report


def _write_config(folder: Path, config: Config, weights: str) -> None:
    """The configuration, with the files that lie beside it; a comment says which weights were exported."""
    text, answers = replace(config.model.text, vocab=VOCAB), ANSWERS if config.model.answers else ""
    own_files = replace(config, model=replace(config.model, text=text, answers=answers))
    kind = "moving averages" if weights == EMA else "as trained"
    (folder / CONFIG).write_text(f"# exported from {weights}: {kind}\n{to_yaml(own_files)}", encoding="utf-8")


def _write_graph(graph: Graph, folder: Path, name: str, file_format: str, rows: int | str) -> dict[str, Any]:
    examples = [_example(field, rows) for field in graph.inputs.values()]
    ms.export(graph.cell, *examples, file_name=str(folder / name), file_format=file_format)
    # above a gigabyte MindSpore keeps the weights in a folder beside <name>_graph.mindir
    parts = [*folder.glob(f"{name}*"), *folder.glob(f"{name}_variables/*")]
    for path in parts:
        path.chmod(0o755 if path.is_dir() else 0o644)  # MindSpore lets nobody but the owner read them
    files = sorted(path for path in parts if path.is_file())
    return {
        "file": next(path.name for path in files if path.suffix == f".{file_format.lower()}"),
        "sha256": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "inputs": [_port(key, field, rows) for key, field in graph.inputs.items()],
    }


def _example(field: Field, rows: int | str) -> Tensor:
    """A tensor that tells the compiler type and shape of an input."""
    if rows == ANY:
        return Tensor(shape=(None, *field.shape), dtype=Tensor(np.zeros(1, field.dtype)).dtype)
    return Tensor(np.zeros((rows, *field.shape), field.dtype))


def _port(name: str, field: Field, rows: int | str) -> dict[str, Any]:
    return {
        "name": name,
        "shape": [rows, *field.shape],
        "type": np.dtype(field.dtype).name,
        "meaning": field.meaning,
    }


def compare(graph: Graph, path: Path, rows: int | str, limits: Limits) -> dict[str, Any]:
    """Loads a graph back and runs it beside the Cell on random valid inputs.

    Returns:
        ``outputs``, and the largest absolute and relative difference (relative to an output's largest value).
    """
    loaded = nn.GraphCell(ms.load(str(path)))
    rng = np.random.default_rng(0)
    count = CHECKED_ROWS if rows == ANY else int(rows)
    inputs = [random_input(name, field, count, rng, limits) for name, field in graph.inputs.items()]
    wanted = _run(graph.cell, inputs)
    pairs = [(wanted, _run(loaded, inputs))]
    if rows == ANY:
        pairs.append(([value[:1] for value in wanted], _run(loaded, [value[:1] for value in inputs])))
    outputs, differences, relatives = [], [], []
    for at, (name, meaning) in enumerate(graph.outputs.items()):
        outputs.append(_port(name, Field(wanted[at].dtype.type, wanted[at].shape[1:], meaning), rows))
        differences += [_difference(name, expected[at], found[at]) for expected, found in pairs]
        relatives.append(max(differences[-len(pairs) :]) / max(float(np.abs(wanted[at]).max()), 1e-12))
    # numpy's maximum, because Python's passes over NaN
    return {"outputs": outputs, "max_abs_diff": np.max(differences), "max_rel_diff": np.max(relatives)}


def _run(cell: nn.Cell, inputs: list[np.ndarray]) -> list[np.ndarray]:
    outputs = cell(*map(Tensor, inputs))
    return [output.asnumpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _difference(name: str, wanted: np.ndarray, got: np.ndarray) -> float:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise ExportError(
            f"{name} of the loaded graph is {got.dtype}{list(got.shape)}, "
            f"the model's is {wanted.dtype}{list(wanted.shape)}"
        )
    return float(np.abs(wanted.astype(np.float64) - got).max())


def random_input(name: str, field: Field, rows: int, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """A random valid input of a graph: every mask leaves something, no row lacks all modalities."""
    shape = (rows, *field.shape)
    if name.endswith("_mask"):
        return (np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (rows, 1))).astype(field.dtype)
    if name == "presence":
        return (rng.integers(1, 8, (rows, 1)) >> np.arange(3) & 1).astype(field.dtype)
    if np.issubdtype(field.dtype, np.floating):
        return rng.standard_normal(shape).astype(field.dtype)
    return rng.integers(*limits.get(name, (0, 256)), shape).astype(field.dtype)


def describe_preprocessing(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What stands between a file and the inputs of the graphs."""
    return {
        "text": {
            "vocab": VOCAB,
            "max_len": config.text.max_len,
            "layout": "[CLS] lower-cased WordPieces, every Han character alone [SEP] [PAD] …; cut, no [SEP]",
            "ids": {token: tokenizer.vocab.index(token) for token in SPECIALS},
        },
        "image": IMAGES[config.image.input](config.image),
        "audio": AUDIO[config.audio.input](config.audio),
    }


GEOMETRY = {  # by model.image.resize, as src/data/image.py does it
    "crop": "shorter side to size, bicubic with antialiasing, centre kept",
    "pad": f"longer side to size, bicubic with antialiasing, centred between bars of RGB {BAR}",
    "squash": "both sides to size, bicubic with antialiasing",
}


def _describe_patches(image: ImageEncoderConfig) -> dict[str, Any]:
    return {
        "size": image.size,
        "layout": "RGB, height × width × channel, uint8",
        "resize": image.resize,
        "geometry": GEOMETRY[image.resize],
        "transparency": "on white, before anything is resized",
        "normalisation": "inside the graph",
    }


def _describe_regions(image: ImageEncoderConfig) -> dict[str, Any]:
    return {
        "regions": image.regions,
        "layout": "a detector's features, float16, the surest first, 0 behind the last; mask 1 on regions",
        "boxes": "x1, y1, x2, y2, width, height and area, as shares of the image's width, height and area",
    }


def _describe_fbank(audio: AudioEncoderConfig) -> dict[str, Any]:
    return {
        **{key: getattr(audio, key) for key in AUDIO_KEYS["fbank"]},
        "layout": "frames × mels, uint8, 0 behind audio_frames",
        "window": "Hann, power spectrum, Slaney mel bands of unit area",
        "scale": f"log10; 255 is the loudest band of the audio, 0 is 10^-{DECADES:g} of it or less",
        "normalisation": "inside the graph",
    }


def _describe_features(audio: AudioEncoderConfig) -> dict[str, Any]:
    layout = "features of frames, float16, 0 behind audio_frames"
    return {**{key: getattr(audio, key) for key in AUDIO_KEYS["feature"]}, "layout": layout}


def _describe_waveform(audio: AudioEncoderConfig) -> dict[str, Any]:
    layout = "samples, int16, full scale 32767, 0 behind audio_frames"
    return {"sample_rate": audio.sample_rate, "samples": audio.length, "layout": layout}


IMAGES = {"patch": _describe_patches, "region": _describe_regions}
AUDIO = {"fbank": _describe_fbank, "feature": _describe_features, "wav2vec2": _describe_waveform}

"""Says when an input is unlike everything that the model was trained on.

The scores of a search say which file fits best, not whether the query is of the model's world: among images that do not
show what is asked for, a photograph finds as near a text as a scene of the world does. What tells them apart is x, the
mean of the encoder's L tokens, which the embedding head reads:

    d(x) = √(L / M · (x − μ)ᵀ Σ⁻¹ (x − μ))

with the mean μ and the covariance Σ of inputs of the training split (Lee et al. 2018, https://arxiv.org/abs/1807.03888)
and the mean M of their L: the mean of few tokens varies more. Inputs beyond a limit are told of. All but 1 % of the
inputs that μ and Σ have not seen lie within it, those of the training split and those of the dev split alike: either
may hold what the other lacks.

Letters: ``n`` inputs, ``D`` width of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from src.checkpoints.files import MODEL, OUTLIERS, CheckpointError
from src.config import Config
from src.data.bad_records import LenientReader
from src.data.errors import DataError
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.schema import MODALITIES
from src.files import content_digest, digest, write_bytes
from src.inference.encode import Encoder, Items, encode_split
from src.inference.media import plural

FORMAT = "1"
SHARE = 0.99  # of the held-out inputs that lie within the limit
SAMPLES = 4000  # of a split that are read
FEWEST = 100  # inputs, held out or not, that say what is usual
NAMED = 5  # inputs that a remark names


@dataclass(frozen=True)
class Inputs:
    """What inputs of one modality are compared by."""

    means: np.ndarray  # float32 [n, D]: of each one's tokens
    counts: np.ndarray  # int64 [n]: how many tokens those are

    @staticmethod
    def of(items: Items) -> "Inputs":
        """Encoded items with their tokens."""
        weights = items.mask[:, :, None].astype(np.float32)
        counts = np.maximum(items.mask.sum(1), 1)
        return Inputs((items.tokens * weights).sum(1) / counts[:, None].astype(np.float32), counts)

    @staticmethod
    def join(parts: Sequence["Inputs"]) -> "Inputs":
        """All of several."""
        return Inputs(np.concatenate([part.means for part in parts]), np.concatenate([part.counts for part in parts]))

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True)
class Usual:
    """Where the inputs of a modality lie."""

    mean: np.ndarray  # float32 [D]
    whitening: np.ndarray  # float32 [D, D]: differences times this have covariance 1
    tokens: float  # M
    limit: float = 0.0

    def distances(self, inputs: Inputs) -> np.ndarray:
        """d of every input, float64 [n]."""
        whitened = (inputs.means.astype(np.float64) - self.mean) @ self.whitening.astype(np.float64)
        return np.linalg.norm(whitened, axis=1) * np.sqrt(inputs.counts / self.tokens)


@dataclass(frozen=True)
class Outliers:
    """What is usual of each modality that was measured."""

    usual: dict[int, Usual]

    def remarks(self, modality: int, names: Sequence[str], items: Items) -> list[str]:
        """One line if some of the inputs lie beyond the limit, otherwise none.

        Args:
            names: what each input is called, [n].
            items: encoded, with their tokens.
        """
        usual = self.usual.get(modality)
        if usual is None:
            return []
        distances = usual.distances(Inputs.of(items))
        beyond = np.flatnonzero(distances > usual.limit)
        if not len(beyond):
            return []
        called = ", ".join(f"{names[row]} ({distances[row]:.1f})" for row in beyond[:NAMED])
        more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
        return [
            f"unlike what this model was trained on, answers may mean nothing: {called}{more}; "
            f"{SHARE:.0%} of the {plural(modality)} of its own splits are within a distance of {usual.limit:.1f}"
        ]


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` found of a modality: the share of inputs beyond the limit, by where they come from."""

    modality: int
    fitted: int  # inputs that mean and covariance are of
    limit: float
    beyond: dict[str, float]


class _MeanTokens:
    """An encoder that keeps of an item's tokens their mean: a single token whose mask is their number."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def text(self, *inputs: np.ndarray) -> Items:
        return _only_mean(self.encoder.text(*inputs))

    def image(self, *inputs: np.ndarray) -> Items:
        return _only_mean(self.encoder.image(*inputs))

    def audio(self, *inputs: np.ndarray) -> Items:
        return _only_mean(self.encoder.audio(*inputs))


def _only_mean(items: Items) -> Items:
    return replace(items, tokens=Inputs.of(items).means[:, None], mask=items.mask.sum(1, keepdims=True))


def fit(inputs: Inputs) -> Usual:
    """Mean and covariance of inputs; no limit yet.

    The covariance is drawn to a multiple of the identity as far as its error asks for (Ledoit and Wolf 2004): it has an
    inverse however few the inputs are.
    """
    tokens = float(inputs.counts.mean())
    weights = inputs.counts[:, None] / tokens
    mean = (inputs.means.astype(np.float64) * weights).mean(0)
    centred = (inputs.means - mean) * np.sqrt(weights)
    n, width = centred.shape
    covariance = centred.T @ centred / n
    identity = max(np.trace(covariance) / width, np.finfo(np.float32).tiny) * np.eye(width)
    distance = ((covariance - identity) ** 2).sum()
    error = (((centred**2).sum(1) ** 2).sum() / n - (covariance**2).sum()) / n
    share = np.clip(error / distance, 1e-6, 1.0) if distance else 1.0
    lower = np.linalg.cholesky(share * identity + (1 - share) * covariance)
    return Usual(mean.astype(np.float32), np.linalg.inv(lower).T.astype(np.float32), tokens)


def halve(items: Items) -> tuple[Items, Items]:
    """The items of every other image, and those of the rest: what belongs to one image stays together."""
    odd = np.unique(items.images, return_inverse=True)[1].reshape(-1) % 2 == 1
    return items.take(~odd), items.take(odd)


def measure(encoder: Encoder, config: Config) -> tuple[Outliers, list[Measured]]:
    """Learns what is usual from the training split and the dev split; of the reported split it only counts outliers.

    Mean and covariance are those of half of the images of the training split, with their texts and audio.

    Raises:
        DataError: a split cannot be read, or no modality has enough inputs.
    """
    data, reading = config.data, _MeanTokens(encoder)
    halves: dict[int, tuple[list[Inputs], list[Inputs]]] = {}
    for loader in _training_loaders(config):
        for modality, items in _read(reading, loader, data.max_bad).items():
            for half, into in zip(halve(items), halves.setdefault(modality, ([], [])), strict=True):
                into.append(Inputs.of(half))
    others = {data.eval_split: _held_out(config, data.eval_split)}
    if config.eval.split in others[data.eval_split].dataset.info["splits"]:
        others[config.eval.split] = _held_out(config, config.eval.split)
    read = {split: _read(reading, loader) for split, loader in others.items()}
    usual, rows = {}, []
    for modality, (seen, unseen) in sorted(halves.items()):
        held_out = {data.train_split: Inputs.join(unseen)}
        held_out |= {split: Inputs.of(items[modality]) for split, items in read.items() if modality in items}
        chosen = [held_out[split] for split in (data.train_split, data.eval_split) if split in held_out]
        learned_from = Inputs.join(seen)
        if min(map(len, (learned_from, *chosen))) < FEWEST:
            continue
        found = fit(learned_from)
        limit = max(float(np.quantile(found.distances(inputs), SHARE)) for inputs in chosen)
        usual[modality] = replace(found, limit=limit)
        beyond = {split: float((found.distances(inputs) > limit).mean()) for split, inputs in held_out.items()}
        rows.append(Measured(modality, len(learned_from), limit, beyond))
    if not usual:
        raise DataError(
            f"{data.mixture[0][0]}: no modality has {FEWEST} inputs in half of split {data.train_split!r} "
            f"and in {data.eval_split!r}: too few to say what is usual"
        )
    return Outliers(usual), rows


def keep(folder: Path, checkpoint: Path, outliers: Outliers) -> Path:
    """Writes what is usual of a checkpoint's inputs, whole or not at all; returns the file."""
    arrays: dict[str, np.ndarray] = {}
    for modality, usual in outliers.usual.items():
        name = MODALITIES[modality]
        arrays |= {f"{name}.mean": usual.mean, f"{name}.whitening": usual.whitening}
        arrays |= {f"{name}.{part}": np.array(getattr(usual, part), np.float64) for part in ("tokens", "limit")}
    path = folder / OUTLIERS
    about = {"format": FORMAT, "weights": digest(checkpoint / MODEL), "sha256": content_digest(arrays)}
    write_bytes(path, save(arrays, about))
    return path


def load(checkpoint: Path) -> Outliers | None:
    """What was measured for a checkpoint, or None.

    Raises:
        CheckpointError: the file is damaged, or was measured for other weights.
    """
    path = checkpoint / OUTLIERS
    if not path.is_file():
        return None
    again = "delete it, or measure it anew with tools/measure_outliers.py"
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if about.get("sha256") not in (None, content_digest(arrays)):  # the bundled one has none
            raise ValueError("damaged")
        usual = {
            modality: Usual(
                arrays[f"{name}.mean"],
                arrays[f"{name}.whitening"],
                float(arrays[f"{name}.tokens"]),
                float(arrays[f"{name}.limit"]),
            )
            for modality, name in enumerate(MODALITIES)
            if f"{name}.mean" in arrays
        }
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise CheckpointError(f"{path} does not hold what is usual of inputs: {again}") from None
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: another version of this project wrote it: {again}")
    if about.get("weights") != digest(checkpoint / MODEL):
        raise CheckpointError(f"{path} was measured for other weights than {checkpoint / MODEL}: {again}")
    return Outliers(usual)


def _training_loaders(config: Config) -> list[Loader]:
    """One for each source."""
    alone = [replace(config, data=config.data.alone(folder)) for folder, _ in config.data.mixture]
    return [_held_out(source, config.data.train_split) for source in alone]


def _held_out(config: Config, split: str) -> Loader:
    return Loader.held_out(config, split)


def _read(encoder: _MeanTokens, loader: Loader, max_bad: int = 0) -> dict[int, Items]:
    """The items of samples of a split, less those of up to ``max_bad`` records that cannot be read."""
    samples = evenly_apart(len(loader.dataset), SAMPLES)
    if max_bad:
        read = LenientReader(loader.dataset, max_bad)
        records = loader.dataset.samples[samples, 0].tolist()
        samples = samples[[read(record) is not None for record in records]]
    return encode_split(encoder, loader, samples=samples)

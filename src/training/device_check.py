"""What a device computes beside NumPy: single operators, and one training step of the project's own parts."""

import importlib.metadata
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn, ops

from src.config import OptimizerConfig, RuntimeConfig
from src.losses.classification import cross_entropy
from src.models.layers import EPSILON, Gelu, LayerNorm, Linear
from src.runtime import (
    GPU_LIBRARIES,
    PRODUCT_TOLERANCE,
    RuntimeSetupError,
    first_line,
    how_to_get,
    missing_gpu_libraries,
    setup,
)
from src.training.optimizer import AdamW
from src.training.step import TrainStep

ROWS, INPUTS, WIDTH, CLASSES = 12, 6, 8, 5  # of the training step
STEP = OptimizerConfig(lr=0.01, eps=0.1, weight_decay=0.1)  # a large ε: the update then depends on the gradient's size
NO_CLIPPING = 1e9

Compared = list[tuple[np.ndarray, np.ndarray]]  # what the device gave, what is right


@dataclass(frozen=True)
class Check:
    """Something that a device computes.

    Args:
        tolerance: largest deviation that is right, also where an accelerator multiplies fp32 in a shorter type.
    """

    name: str
    compute: Callable[[], Compared]
    tolerance: float

    def run(self) -> tuple[bool, str]:
        """Whether it is right, and the line that says so."""
        try:
            error = max(_deviation(found, wanted) for found, wanted in self.compute())
        except (RuntimeError, TypeError, ValueError) as reason:  # of an operator that the device does not have
            return False, f"{self.name:<16}FAILED: {first_line(reason)}"
        right = error <= self.tolerance
        return right, f"{self.name:<16}off by {error:.1e}, allowed {self.tolerance:.0e}: {'ok' if right else 'FAILED'}"


def report(device: str) -> None:
    """Prints versions, on a GPU the libraries, and a line for every check.

    Raises:
        RuntimeSetupError: the device is not there, or a check failed.
    """
    versions = [f"{name} {importlib.metadata.version(name.lower())}" for name in ("MindSpore", "NumPy")]
    print(f"{device}: Python {platform.python_version()}, {', '.join(versions)}")
    if device == "GPU":
        _report_libraries()
    setup(RuntimeConfig(device=device), seed=0)
    failed = []
    for check in CHECKS:
        right, line = check.run()
        print(line, flush=True)
        if not right:
            failed.append(check.name)
    if failed:
        raise RuntimeSetupError(f"{device}: {', '.join(failed)} failed: nothing trained here can be trusted")


def _report_libraries() -> None:
    missing = missing_gpu_libraries()
    found = [name for name in GPU_LIBRARIES if name not in missing]
    print(f"{'libraries':<16}{', '.join(found) or 'none'} found")
    if missing:
        print(f"{'libraries':<16}{how_to_get(missing)}")


def _deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference; infinite where a number is none."""
    if found.shape != wanted.shape:
        raise ValueError(f"its shape is {found.shape}, not {wanted.shape}")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        error = float(np.abs(found.astype(np.float64) - wanted).max())
    return error if math.isfinite(error) else math.inf


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _product() -> Compared:
    x, y = _random(64, 96), _random(96, 40)
    return [(ops.MatMul()(Tensor(x), Tensor(y)).asnumpy(), x @ y)]


def _half_product() -> Compared:
    x, y = _random(64, 96).astype(np.float16), _random(96, 40).astype(np.float16)
    return [(ops.MatMul()(Tensor(x), Tensor(y)).asnumpy(), x.astype(np.float32) @ y.astype(np.float32))]


def _layer_norm() -> Compared:
    x, gain, shift = _random(32, 48) + 3, _random(48), _random(1, 48)[0]
    norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=EPSILON)
    return [(norm(Tensor(x), Tensor(gain), Tensor(shift))[0].asnumpy(), _normalise(x, gain, shift))]


def _normalise(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPSILON) * gain + shift


def _softmax() -> Compared:
    x = 5 * _random(32, 48)
    powers = np.exp(x - x.max(1, keepdims=True))
    return [(ops.Softmax(-1)(Tensor(x)).asnumpy(), powers / powers.sum(1, keepdims=True))]


def _gather() -> Compared:
    x, rows = _random(32, 48), np.random.default_rng(0).integers(0, 32, 20).astype(np.int32)
    return [(ops.Gather()(Tensor(x), Tensor(rows), 0).asnumpy(), x[rows])]


def _convolution() -> Compared:
    """As wav2vec 2.0's: a kernel of 3 along time, stride 2."""
    x, weight = _random(2, 4, 1, 21), _random(8, 4, 1, 3)
    found = ops.Conv2D(8, (1, 3), pad_mode="valid", stride=(1, 2))(Tensor(x), Tensor(weight)).asnumpy()
    windows = np.stack([x[:, :, 0, k : k + 19 : 2] for k in range(3)], 3)  # (2, 4, 10, 3)
    return [(found, np.einsum("bctk,ock->bot", windows, weight[:, :, 0])[:, :, None])]


class _Classifier(nn.Cell):
    """Linear, GELU, layer norm, linear, cross-entropy: a task's objectives in small."""

    names, fields = ("cross_entropy",), ("x", "labels")

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gelu, self.norm = Linear(INPUTS, WIDTH), Gelu(), LayerNorm(WIDTH)
        self.down = Linear(WIDTH, CLASSES)
        self.weights = Tensor(np.ones(ROWS, np.float32))

    def construct(self, batch):
        logits = self.down(self.norm(self.gelu(self.up(batch["x"]))))
        loss = cross_entropy(logits, batch["labels"], self.weights)
        return loss, loss


def _training_step() -> Compared:
    """Loss, gradients and updated weights; the gradients against finite differences of the loss in float64."""
    x, labels = _random(ROWS, INPUTS), (np.arange(ROWS) % CLASSES).astype(np.int32)
    network = _Classifier()
    parameters = network.trainable_params()
    for p in parameters:  # a gain of one or a bias of zero would hide mistakes
        p.set_data(Tensor(p.asnumpy() + 0.3 * _random(*p.shape)))
    names = {id(p): name for name, p in network.parameters_and_names()}
    weights = {names[id(p)]: p.asnumpy().astype(np.float64) for p in parameters}
    optimizer = AdamW(parameters, STEP, np.full(1, STEP.lr, np.float32))
    step = TrainStep(network, optimizer, NO_CLIPPING)
    step({"x": x, "labels": labels})
    compared = [(np.array(step.result().losses["total"]), np.array(_loss(weights, x, labels)))]
    for group, moments in zip(optimizer.members, optimizer.first, strict=True):
        # the first step's moments are its gradients, less what β₁ keeps
        found = moments.asnumpy().reshape(len(group), *group[0].shape) / (1 - STEP.beta1)
        for p, gradient in zip(group, found, strict=True):
            slopes, weight = _slopes(weights, names[id(p)], x, labels), weights[names[id(p)]]
            kept = 1 - STEP.lr * STEP.weight_decay * (p.ndim > 1)
            updated = weight * kept - STEP.lr * slopes / (np.abs(slopes) + STEP.eps)
            compared += [(gradient, slopes), (p.asnumpy(), updated)]
    return compared


def _loss(weights: dict[str, np.ndarray], x: np.ndarray, labels: np.ndarray) -> float:
    hidden = x @ weights["up.weight"].T + weights["up.bias"]
    hidden *= 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    hidden = _normalise(hidden, weights["norm.gain"], weights["norm.shift"])
    logits = hidden @ weights["down.weight"].T + weights["down.bias"]
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())


def _slopes(weights: dict[str, np.ndarray], name: str, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """∂loss / ∂weights[name] by central differences."""
    by = 1e-5
    slopes = np.empty_like(weights[name])
    for place in np.ndindex(slopes.shape):
        losses = []
        for sign in (1, -1):
            moved = weights[name].copy()
            moved[place] += sign * by
            losses.append(_loss({**weights, name: moved}, x, labels))
        slopes[place] = (losses[0] - losses[1]) / (2 * by)
    return slopes


CHECKS = (
    Check("product", _product, PRODUCT_TOLERANCE),
    Check("half precision", _half_product, PRODUCT_TOLERANCE),
    Check("layer norm", _layer_norm, 1e-3),
    Check("softmax", _softmax, 1e-3),
    Check("gather", _gather, 0.0),
    Check("convolution", _convolution, 0.05),
    Check("training step", _training_step, 5e-3),
)

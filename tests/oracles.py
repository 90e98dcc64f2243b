"""What the model's tests share: tiny sizes and batches, gradients in either mode, PyTorch's layers as oracles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn

from src import config
from src.config import (
    AudioEncoderConfig,
    CrossEncoderConfig,
    ImageDecoderConfig,
    ImageEncoderConfig,
    ImageTokenizerConfig,
    ModelConfig,
    TextDecoderConfig,
    TextEncoderConfig,
)
from src.data.schema import MATCH_CASES, audio_tokens, batch_fields, check_batch
from src.training.muon import Muon
from src.training.optimizer import AdamW
from src.training.step import StepResult, TrainStep

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
VOCAB = 31
CODES = 9  # of the image tokenizer
PAD, CLS, SEP, MASK = 0, 2, 3, 4
MASK_RATIO = 0.3
OBJECTIVES = tuple(name for name in config.OBJECTIVES if name != "mvm_class")  # that images of patches have

Arrays = dict[str, np.ndarray]
Slots = dict[str, tuple[torch.nn.Parameter, slice]]  # the project's parameter → rows of PyTorch's


@contextmanager
def run_mode(name: str) -> Iterator[None]:
    """Graph or pynative inside the block, what it was behind it."""
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[name])
    try:
        yield
    finally:
        ms.set_context(mode=before)


def tiny_model(layers: int = 1, norm: str = "pre", dropout: float = 0.0) -> ModelConfig:
    """Sizes in which no two widths and no two lengths agree, so that a mix-up cannot pass."""
    common = {"layers": layers, "norm": norm, "dropout": dropout, "heads": 2}
    return ModelConfig(
        embed_dim=12,
        masked_features=True,
        image_codes=True,
        text=TextEncoderConfig(max_len=7, width=16, ffn=20, **common),
        image=ImageEncoderConfig(size=8, patch=4, width=24, ffn=28, **common),
        audio=AudioEncoderConfig(mels=4, max_frames=24, stride=4, width=8, ffn=12, **common),
        cross=CrossEncoderConfig(width=20, ffn=24, **common),
        text_decoder=TextDecoderConfig(width=14, ffn=18, **common),
        image_decoder=ImageDecoderConfig(width=18, ffn=22, **common),
        image_tokenizer=ImageTokenizerConfig(
            size=8, side=2, codes=CODES, code_dim=6, width=16, layers=1, heads=2, ffn=20
        ),
    )


def feature_model(layers: int = 1) -> ModelConfig:
    """The tiny model that reads a detector's regions and frames of features; with layers=0 as the paper does."""
    model = tiny_model(layers=max(1, layers))
    image = replace(model.image, input="region", regions=5, region_dim=9, region_classes=6, layers=layers)
    audio = replace(model.audio, input="feature", feature_dim=11, max_frames=6, stride=1, layers=layers)
    return replace(model, image=image, audio=audio)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 of unit variance."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def tiny_batch(model: ModelConfig, batch_size: int, seed: int = 0) -> Arrays:
    """A batch of samples that have all three modalities, each of its own image, every level drawn at random."""
    rng = np.random.default_rng(seed)
    fields = batch_fields(model, batch_size, MASK_RATIO)
    batch = {name: np.zeros((batch_size, *spec.shape), spec.dtype) for name, spec in fields.items()}
    batch["sample_id"][:] = batch["image_id"][:] = rng.permutation(100)[:batch_size]
    batch["text_id"][:] = 1000 - batch["sample_id"]
    batch["presence"][:] = 1
    _fill_images(batch, model, rng)
    batch["match_noise"][:] = rng.gumbel(size=batch["match_noise"].shape)
    batch["match_case"][:] = np.arange(batch_size) % len(MATCH_CASES)
    batch["match_presence"][:] = 1
    batch["denoise_text_presence"][:] = np.array([(0, 1, 1), (0, 1, 0), (0, 0, 1)])[np.arange(batch_size) % 3]
    batch["image_codes"][:] = rng.integers(0, CODES, batch["image_codes"].shape)
    batch["denoise_image_presence"][:] = np.array([(1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)])[
        np.arange(batch_size) % 4
    ]
    for row in range(batch_size):
        _fill_row(batch, row, model, rng)
    check_batch(batch, fields)
    return batch


def _fill_images(batch: Arrays, model: ModelConfig, rng: np.random.Generator) -> None:
    """Pixels, or two to all of the regions, of every second a known class."""
    if model.image.input == "patch":
        batch["image"][:] = rng.integers(0, 256, batch["image"].shape)
        return
    size, most = batch["region_mask"].shape
    batch["region_mask"][:] = np.arange(most) < rng.integers(2, most + 1, (size, 1))
    batch["regions"][:] = rng.standard_normal(batch["regions"].shape) * batch["region_mask"][..., None]
    batch["region_boxes"][:] = rng.random(batch["region_boxes"].shape) * batch["region_mask"][..., None]
    classes = rng.integers(0, model.image.region_classes, (size, most))
    batch["region_classes"][:] = np.where((np.arange(most) % 2 == 0) & (batch["region_mask"] == 1), classes, -1)


def _fill_row(batch: Arrays, row: int, model: ModelConfig, rng: np.random.Generator) -> None:
    """Text with a [CLS], a [SEP] and padding, one or two of its tokens hidden; audio of some length."""
    tokens = int(rng.integers(3, model.text.max_len - 1))
    ids = [CLS, *rng.integers(5, VOCAB, tokens - 2), SEP]
    batch["text_ids"][row, :tokens] = ids
    batch["text_mask"][row, :tokens] = 1
    slots = batch["mlm_positions"].shape[1]
    hidden = np.sort(rng.permutation(np.arange(1, tokens - 1))[:slots])
    batch["mlm_ids"][row] = batch["text_ids"][row]
    batch["mlm_ids"][row, hidden] = MASK
    batch["mlm_positions"][row, : len(hidden)] = hidden
    batch["mlm_labels"][row, : len(hidden)] = batch["text_ids"][row, hidden]
    batch["mlm_weights"][row, : len(hidden)] = 1
    frames = int(rng.integers(1, model.audio.max_frames + 1))
    fbank, shape = model.audio.input == "fbank", (frames, batch["audio"].shape[2])
    batch["audio"][row, :frames] = rng.integers(1, 256, shape) if fbank else rng.standard_normal(shape)
    batch["audio_frames"][row] = frames
    patches = int(batch["region_mask"][row].sum()) if model.image.input == "region" else model.image.tokens
    tokens = audio_tokens(model.audio, frames)
    for name, places in (("mvm", patches), ("mam", tokens)):
        slots = batch[f"{name}_positions"].shape[1]
        hidden = np.sort(rng.permutation(places)[:slots])
        batch[f"{name}_positions"][row, : len(hidden)] = hidden
        batch[f"{name}_weights"][row, : len(hidden)] = 1


def tensors(batch: Arrays) -> dict[str, Tensor]:
    return {name: Tensor(value) for name, value in batch.items()}


def randomise(cell: nn.Cell, seed: int = 0, spread: float = 0.5) -> None:
    """Moves every parameter away from where it starts: a gain of one or a bias of zero would hide mistakes."""
    rng = np.random.default_rng(seed)
    for _, parameter in cell.parameters_and_names():
        value = parameter.asnumpy() + spread * rng.standard_normal(parameter.shape)
        parameter.set_data(Tensor(value.astype(np.float32)))


class _Weighted(nn.Cell):
    """Σ output · weights, so that every output has a gradient of its own; the output beside it."""

    def __init__(self, function: nn.Cell | Callable, weights: np.ndarray) -> None:
        super().__init__()
        self.function, self.weights = function, Tensor(weights)

    def construct(self, *inputs):
        output = self.function(*inputs)
        return (output * self.weights).sum(), output


def differentiate(
    cell: nn.Cell, inputs: Sequence[np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, list[np.ndarray], Arrays]:
    """The output, which has that shape, and the gradients of a weighted sum of it.

    Returns:
        output, the gradients of the float inputs, the gradients of the parameters by name.
    """
    places = tuple(i for i, x in enumerate(inputs) if x.dtype == np.float32)
    names = [name for name, _ in cell.parameters_and_names()]
    parameters = [parameter for _, parameter in cell.parameters_and_names()]
    function = ms.value_and_grad(_Weighted(cell, random(*shape)), places or None, parameters or None, has_aux=True)
    (_, output), found = function(*[Tensor(x) for x in inputs])
    of_inputs, of_parameters = found if places and parameters else (found, ()) if places else ((), found)
    of_inputs = of_inputs if isinstance(of_inputs, tuple) else (of_inputs,)
    return (
        output.asnumpy(),
        [gradient.asnumpy() for gradient in of_inputs],
        {name: gradient.asnumpy() for name, gradient in zip(names, of_parameters, strict=True)},
    )


def assert_parity(
    cell: nn.Cell,
    inputs: Sequence[np.ndarray],
    oracle: Callable[..., torch.Tensor],
    slots: Slots,
    tolerance: float = 2e-5,
) -> None:
    """The cell gives the oracle's output and its gradients, for every float input and every parameter.

    Args:
        cell: its parameters are set at random and copied into the oracle's.
        oracle: takes the inputs as PyTorch tensors.
        slots: where each of the cell's parameters lies in the oracle.
    """
    randomise(cell)
    parameters = dict(cell.parameters_and_names())
    assert parameters.keys() == slots.keys()
    with torch.no_grad():
        for name, (parameter, rows) in slots.items():
            parameter[rows] = torch.from_numpy(parameters[name].asnumpy())
    theirs = [torch.from_numpy(x) for x in inputs]
    leaves = [x.requires_grad_() for x in theirs if x.dtype == torch.float32]
    expected = oracle(*theirs)
    (expected * torch.from_numpy(random(*expected.shape))).sum().backward()

    output, of_inputs, of_parameters = differentiate(cell, inputs, tuple(expected.shape))
    np.testing.assert_allclose(output, expected.detach().numpy(), atol=tolerance, rtol=tolerance)
    for number, (gradient, leaf) in enumerate(zip(of_inputs, leaves, strict=True)):
        _assert_near(gradient, leaf.grad, tolerance, f"gradient of input {number}")
    for name, (parameter, rows) in slots.items():
        _assert_near(of_parameters[name], parameter.grad[rows], tolerance, f"gradient of {name}")


def _assert_near(found: np.ndarray, expected: torch.Tensor, tolerance: float, name: str) -> None:
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(found, expected.numpy(), atol=tolerance * scale, rtol=tolerance, err_msg=name)


def affine_slots(prefix: str, module: torch.nn.Linear) -> Slots:
    return {f"{prefix}weight": (module.weight, slice(None)), f"{prefix}bias": (module.bias, slice(None))}


def norm_slots(prefix: str, module: torch.nn.LayerNorm) -> Slots:
    return {f"{prefix}gain": (module.weight, slice(None)), f"{prefix}shift": (module.bias, slice(None))}


def attention_slots(prefix: str, module: torch.nn.MultiheadAttention) -> Slots:
    """PyTorch stacks query, key and value; their weights stand apart where the memory has another width."""
    slots: Slots = affine_slots(f"{prefix}output.", module.out_proj)
    for number, part in enumerate(("query", "key", "value")):
        rows = slice(number * module.embed_dim, (number + 1) * module.embed_dim)
        apart = getattr(module, f"{part[0]}_proj_weight")
        slots[f"{prefix}{part}.weight"] = (module.in_proj_weight, rows) if apart is None else (apart, slice(None))
        slots[f"{prefix}{part}.bias"] = (module.in_proj_bias, rows)
    return slots


def torch_block(width: int, heads: int, ffn: int, norm: str, memory_width: int | None = None) -> torch.nn.Module:
    """PyTorch's encoder layer, or its decoder layer where there is a memory."""
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": norm == "pre"}
    if memory_width is None:
        return torch.nn.TransformerEncoderLayer(width, heads, ffn, **options)
    layer = torch.nn.TransformerDecoderLayer(width, heads, ffn, **options)
    layer.multihead_attn = torch.nn.MultiheadAttention(
        width, heads, kdim=memory_width, vdim=memory_width, batch_first=True
    )
    return layer


def block_slots(prefix: str, layer: torch.nn.Module) -> Slots:
    crosses = hasattr(layer, "multihead_attn")
    slots = attention_slots(f"{prefix}attention.", layer.self_attn) | norm_slots(
        f"{prefix}attention_norm.", layer.norm1
    )
    if crosses:
        slots |= attention_slots(f"{prefix}cross_attention.", layer.multihead_attn)
        slots |= norm_slots(f"{prefix}cross_norm.", layer.norm2)
    slots |= affine_slots(f"{prefix}ffn.up.", layer.linear1) | affine_slots(f"{prefix}ffn.down.", layer.linear2)
    return slots | norm_slots(f"{prefix}ffn_norm.", layer.norm3 if crosses else layer.norm2)


def torch_padding(mask: torch.Tensor) -> torch.Tensor:
    """PyTorch's key padding mask, True where nothing may be attended, from the project's."""
    return mask == 0


def apply_gradients(optimizer: AdamW | Muon, gradients: Arrays, factor: float = 1.0) -> float:
    """Hands the optimiser these gradients, by parameter; the rate that it took."""
    packed = optimizer.pack(tuple(Tensor(gradients[parameter.name]) for parameter in optimizer.parameters_))
    return float(optimizer(Tensor(factor, ms.float32), Tensor(True), packed).asnumpy())


def make_gradients(step: TrainStep, batch: Arrays) -> tuple[dict[str, float], Arrays, list[np.ndarray]]:
    """What a step finds before it updates anything: losses by name, gradients by parameter, statistics."""
    losses, packed, statistics = step.gradients(
        step.update.loss_scale.value(), *[Tensor(batch[name]) for name in step.fields]
    )
    found = {}
    for tensor, members in zip(packed, step.optimizer.members, strict=True):
        parts = np.split(tensor.asnumpy().reshape(-1), np.cumsum([member.size for member in members])[:-1])
        for member, part in zip(members, parts, strict=True):
            found[member.name] = part.reshape(member.shape)
    named = dict(zip(step.names, losses.asnumpy().tolist(), strict=True))
    return named, found, [tensor.asnumpy() for tensor in statistics]


def take(step: TrainStep, batch: Arrays) -> StepResult:
    """A step, and what it found."""
    step(batch)
    return step.result()

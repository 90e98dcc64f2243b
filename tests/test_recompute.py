"""runtime.recompute: layers are computed again in the backward pass, and nothing else changes."""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.anf_ir_pb2 import ModelProto

from src import runtime
from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, RuntimeConfig, TextDecoderConfig
from src.inference.loading import load_model
from src.models import precision
from src.models.build import build_model
from src.models.layers import Block, Transformer
from src.objectives.objectives import Objectives
from tests.objectives import MODEL, B, batch_with_repeats, only, text_from
from tests.oracles import run_mode, tensors

LAYERS, ROWS, LENGTH, WIDTH = 3, 4, 6, 16


class Gradients(nn.Cell):
    """Value and gradients by all parameters of a Cell that gives a scalar."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.function = ops.value_and_grad(cell, None, ParameterTuple(cell.trainable_params()))

    def construct(self, *inputs):
        return self.function(*inputs)


class Sum(nn.Cell):
    """Weighted sum of a decoder stack's outputs, which read a memory."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__(auto_prefix=False)
        self.transformer = transformer
        self.weights = Tensor(np.random.default_rng(1).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32))

    def construct(self, x, memory):
        return (self.transformer(x, None, memory) * self.weights).sum()


def decoder(recompute: bool, dropout: float, norm: str) -> Sum:
    ms.set_seed(3)
    sizes = TextDecoderConfig(width=WIDTH, layers=LAYERS, heads=2, ffn=20, norm=norm, dropout=dropout)
    with patch.object(runtime, "is_cpu", lambda: False), precision.building("fp32", recompute):  # stock operators
        return Sum(Transformer(sizes, memory_width=WIDTH))


def operators(cell: nn.Cell) -> Counter:
    graph = ModelProto()
    graph.ParseFromString(_cell_graph_executor.get_optimize_graph_proto(cell))
    return Counter(node.op_type for node in graph.graph.node)


def learn(cell: nn.Cell, *inputs: Tensor) -> tuple[float, list[np.ndarray], Counter]:
    """Value, gradients and operators of the graph; of dropout the masks are those of a seed."""
    ms.set_seed(5)
    step = Gradients(cell)
    step.set_train()
    value, gradients = step(*inputs)
    return float(value), [gradient.asnumpy() for gradient in gradients], operators(step)


def inputs() -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)) for _ in range(2)]


def assert_alike(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layers_are_computed_again_and_gradients_stay(norm: str) -> None:
    with run_mode("graph"):
        plain_value, plain, once = learn(decoder(False, 0.0, norm), *inputs())
        value, again, twice = learn(decoder(True, 0.0, norm), *inputs())
    assert value == pytest.approx(plain_value, rel=1e-6)
    assert max(np.abs(gradient).max() for gradient in plain) > 0.1
    assert_alike(again, plain)
    assert once["Softmax"] == 2 * LAYERS, "one of self-attention and one of cross-attention"
    assert twice["Softmax"] == 2 * once["Softmax"]


def test_the_masks_of_dropout_are_those_of_the_forward_pass() -> None:
    with run_mode("graph"):
        plain_value, plain, _ = learn(decoder(False, 0.5, "pre"), *inputs())
        value, again, twice = learn(decoder(True, 0.5, "pre"), *inputs())
    assert twice["Softmax"] == 4 * LAYERS
    assert value == pytest.approx(plain_value, rel=1e-6)
    assert_alike(again, plain)


def network(recompute: bool) -> tuple[Config, nn.Cell]:
    ms.set_seed(3)
    config = Config(model=MODEL, runtime=RuntimeConfig(recompute=recompute))
    with patch.object(runtime, "is_cpu", lambda: False):  # stock operators in both
        return config, build_model(config)


class Total(nn.Cell):
    """The weighted sum of the losses of a batch, given as single tensors."""

    def __init__(self, objectives: Objectives) -> None:
        super().__init__(auto_prefix=False)
        self.objectives = objectives

    def construct(self, *batch):
        named = {}
        for name, tensor in zip(self.objectives.fields, batch):  # noqa: B905 - the graph compiler has no strict=
            named[name] = tensor
        return self.objectives(named)[0]


def test_captioning_has_the_same_loss_and_gradients() -> None:
    """Its decoder calls a part of the layer alone, over keys and values that were made before."""
    batch, captions = tensors(batch_with_repeats()), text_from(only("denoise_text"), "image")
    found = []
    with run_mode("graph"):
        for recompute in (False, True):
            objectives = Objectives(network(recompute)[1], captions, B)
            found.append(learn(Total(objectives), *[batch[name] for name in objectives.fields]))
    (plain_value, plain, once), (value, again, twice) = found
    assert once["Softmax"] == 4 and twice["Softmax"] == 8, "of image encoder, fusion, and decoder (two)"
    assert value == pytest.approx(plain_value, rel=1e-6)
    assert_alike(again, plain)


def test_every_transformer_of_the_network_is_computed_again() -> None:
    def marked(cell: nn.Cell) -> list[bool]:
        return [block._has_config_recompute for _, block in cell.cells_and_names() if isinstance(block, Block)]

    assert len(marked(network(True)[1])) == 6 and all(marked(network(True)[1])), "three encoders, fusion, two decoders"
    assert not any(marked(network(False)[1]))


def test_a_model_that_is_only_asked_is_not(tmp_path) -> None:
    """It has no backward, and on a CPU runs its quick operators."""
    config, model = network(True)
    save_checkpoint(tmp_path / "checkpoints", 1, config, model)
    stored, loaded = load_model(tmp_path)
    assert stored == replace(config, model=stored.model) and stored.runtime.recompute
    blocks = [block for _, block in loaded.cells_and_names() if isinstance(block, Block)]
    assert blocks and not any(block._has_config_recompute for block in blocks)
    assert all(block.ffn_norm.kernel is not None for block in blocks)

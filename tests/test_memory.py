"""What a training step takes of memory: counted in small graphs by hand, and the same however deep the network is."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.anf_ir_pb2 import GraphProto, ModelProto

from src.config import (
    Config,
    ConfigError,
    DataConfig,
    DenoiseTextConfig,
    EvalConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    ZeroShotConfig,
)
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.training import memory
from src.training.memory import estimate, kept_bytes, report, table_bytes
from src.training.optimizer import AdamW, trained_parameters
from tests.objectives import only, text_from
from tests.oracles import VOCAB, run_mode, tiny_model
from tools import estimate_memory

ROWS, WIDTH, WIDE = 5, 4, 8
NOTHING = memory.Activations(0, 0, 0)


class Toy(nn.Cell):
    """Two layers and a loss whose gradient reads known tensors."""

    fields = ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.first = Parameter(Tensor(np.ones((WIDTH, WIDE), np.float32)), name="first")
        self.shift = Parameter(Tensor(np.ones(WIDE, np.float32)), name="shift")

    def construct(self, batch):
        hidden = ops.matmul(batch["x"], self.first) + self.shift  # its sine's gradient reads it
        turned = ops.reshape(ops.sin(hidden), (-1,))  # squared: read as well, once
        return (ops.reduce_sum(ops.square(turned)),)


@pytest.fixture(scope="module")
def toy() -> GraphProto:
    with run_mode("graph"):
        cell = Toy()
        step = memory._Step(cell, ParameterTuple(cell.trainable_params()))
        inputs = Tensor(np.ones((ROWS, WIDTH), np.float32))
        number, _ = _cell_graph_executor.compile(step, inputs, phase="export.toy", do_convert=False)
        model = ModelProto()
        model.ParseFromString(_cell_graph_executor._get_func_graph_proto(step, number, "anf_ir"))
    return model.graph


def test_what_the_backward_pass_reads_is_counted_once(toy: GraphProto) -> None:
    """Neither inputs nor parameters, and no tensor twice that has another shape somewhere."""
    assert kept_bytes(toy) == {"rest": 2 * ROWS * WIDE * 4, "tensor": ROWS * WIDE * 4}


def test_an_operand_that_is_spread_has_a_table(toy: GraphProto) -> None:
    assert table_bytes(toy)["rest"] >= 16 * ROWS * WIDE


def configure(layers: int) -> Config:
    model = tiny_model(layers)
    return Config(
        model=replace(model, image_codes=False),
        data=DataConfig(batch_size=10),
        runtime=RuntimeConfig(device="GPU"),
        objectives=text_from(only("denoise_text"), "image", "audio"),
    )


@pytest.fixture(autouse=True)
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(memory.NETWORKS, "opt", lambda config: OPT(config.model, VOCAB))
    with run_mode("graph"):
        yield


def test_recomputed_layers_leave_less() -> None:
    found = estimate(configure(2))
    assert found.recomputed.kept < 0.6 * found.plain.kept
    assert 0 < found.plain.layer < found.plain.kept and found.recomputed.layer < found.plain.layer
    assert found.activations(True) < found.activations(False)


def test_frozen_parts_leave_nothing_for_their_gradients() -> None:
    """What the encoders' layers computed is read by nothing."""
    frozen = replace(configure(1), optimizer=OptimizerConfig(freeze=("image_encoder", "audio_encoder")))
    kept, fewer = (memory._activations(config, False).kept for config in (configure(1), frozen))
    assert fewer < 0.8 * kept


def test_what_stays_is_what_a_training_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(1)
    monkeypatch.setattr(memory, "_activations", lambda *_: NOTHING)
    found = estimate(config, devices=4)
    network = OPT(config.model, VOCAB)
    objectives = Objectives(network, config.objectives, config.data.batch_size)
    optimizer = AdamW(trained_parameters(network, objectives), config.optimizer, np.float32([1e-3]))
    size = 4 * sum(p.size for p in network.get_parameters())
    trained = 4 * sum(p.size for p in trained_parameters(network, objectives))
    assert (found.weights, found.fresh, found.parameters) == (size, 2 * trained, size // 4)
    assert trained < size, "embedding heads and others learn nothing from captions"
    stacks = 4 * sum(p.size for p in optimizer.stacks)
    assert found.state == 2 * trained + stacks + 4, "two moments, stacked vectors, the step"
    assert found.sent == round(3 / 4 * 2 * trained)
    assert estimate(config).sent == 0 and found.parts == 0
    averaged = replace(config, train=TrainConfig(ema_decay=0.9))
    assert estimate(averaged).state == found.state + trained


def test_parts_hold_gradients_and_the_tokens_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the activations are a part's."""
    sizes = []
    monkeypatch.setattr(memory, "_activations", lambda config, _: sizes.append(config.data.batch_size) or NOTHING)
    config = replace(configure(1), train=TrainConfig(accumulate=2))
    config = replace(config, objectives=replace(config.objectives, denoise_text=DenoiseTextConfig()))
    trained = estimate(config).fresh // 2
    assert estimate(config).parts == trained, "no loss compares samples"
    contrasts = replace(config, objectives=only("contrastive"))
    network, batch = OPT(config.model, VOCAB), config.data.batch_size
    tokens = [network.text_encoder.positions.shape[1:], network.image_shape, network.audio_shape]
    held = 4 * batch * sum(length * width for length, width in tokens)
    assert estimate(contrasts).parts == estimate(contrasts).fresh // 2 + 2 * held
    assert set(sizes) == {batch // 2}


def test_the_table_says_both() -> None:
    config, gib = configure(1), memory.GIB
    kept, recomputed = memory.Activations(4 * gib, gib // 2, gib), memory.Activations(gib, 0, gib)
    lines = report(config, memory.Estimate(10**6, gib, 2 * gib, gib, gib, kept, recomputed, 3 * gib), 2).splitlines()
    assert lines[0].startswith("1 M parameters; 2 x 10 samples a step")
    assert [line.split() for line in lines[-3:]] == [
        ["activations", "5.00", "2.50"],
        ["together", "10.00", "7.50"],
        ["sent", "in", "a", "step", "3.00", "3.00"],
    ]


def test_a_task_without_weighted_objectives_is_refused() -> None:
    with pytest.raises(ConfigError, match="task=image_tokenizer"):
        estimate(replace(Config(), task="image_tokenizer"))
    with pytest.raises(ConfigError, match="task=zero_shot is measured by eval.py, not trained"):
        estimate(Config(task="zero_shot", eval=EvalConfig(zero_shot=ZeroShotConfig(path="files"))))


@pytest.mark.parametrize("devices", ["0", "-2"])
def test_devices_are_counted_from_one(
    devices: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["estimate_memory.py", "--config", "config/model/demo.yaml", "--devices", devices])
    with pytest.raises(SystemExit) as end:
        estimate_memory.main()
    assert end.value.code == 2 and "--devices must be at least 1" in capsys.readouterr().err

"""runtime.precision: what is multiplied in which type, in every task; losses, loss scale, generation, export."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import save, tiny_dataset
from mindspore import Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.anf_ir_pb2 import DataType, ModelProto

from src.checkpoints.checkpoint import save_checkpoint
from src.config import (
    Config,
    MaskingConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
)
from src.config.tasks import TASKS as TASK_ROWS
from src.data.schema import IMAGE, answer_fields
from src.export import export
from src.export.graphs import build_graphs
from src.generation.cache import CachedDecoder, Read, past_bias
from src.inference.encode import Encoder
from src.inference.loading import load_model
from src.models import precision
from src.models.audio_encoder import AUDIO_ENCODERS
from src.models.build import build_model
from src.models.image_tokenizer import ImageTokenizer
from src.models.layers import Linear
from src.models.opt import OPT
from src.objectives.peers import ALONE
from src.tasks import registry
from src.training.lines import step_line
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from src.training.step import INITIAL_LOSS_SCALE, NonFiniteError, StepResult, TrainStep
from src.training.trainer import Trainer, trained_parameters
from tests.networks import AUDIO
from tests.objectives import ALL, B, only, text_from
from tests.oracles import (
    MASK_RATIO,
    VOCAB,
    feature_model,
    random,
    randomise,
    run_mode,
    take,
    tensors,
    tiny_batch,
    tiny_model,
)

PRODUCTS = {"MatMul", "MatMulExt", "BatchMatMul", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"}
HALVES = {"fp16": "DT_FLOAT16", "bf16": "DT_BFLOAT16"}
TASKS = {
    "pretrain": ALL,
    "retrieval": ObjectivesConfig(weights=WeightsConfig(matching=1.0)),
    "caption": text_from(only("denoise_text"), "image"),
    "speech_to_text": text_from(only("denoise_text"), "audio"),
    "text_to_image": only("denoise_image"),
    "vqa": ObjectivesConfig(),
    "image_tokenizer": ObjectivesConfig(),
}
# Float32 products that a task may have, gradients included. Eight directions of the contrastive loss with two gradients
# each, and three similarities that hard negatives are chosen by; of each embedding head one product, its two gradients
# and the sum for its bias; cosines of masked frames and one gradient; distances to the codebook.
SIMILARITIES, HEADS = {"MatMulExt": 8 * 3 + 3}, {"MatMul": 3 * 4}
FULL = {
    "pretrain": SIMILARITIES | HEADS | {"BatchMatMul": 2},
    "retrieval": SIMILARITIES | HEADS,
    "image_tokenizer": {"MatMul": 1},
    "vqa": {"MatMul": 3 * 2, "BatchMatMul": 2},  # embeddings and their terms; where text and audio point
}
MORE_IN_HALF = {"pretrain": 200, "retrieval": 80, "caption": 30, "speech_to_text": 30, "text_to_image": 40}


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(26))]))
    path.with_name("answers.txt").write_text("1\n2\n红色\n")
    return str(path)


def configure(task: str, kind: str, vocab: str) -> Config:
    """A task's tiny run; an image tokenizer is named that nobody reads."""
    model = tiny_model()
    base = Config()
    return Config(
        task=task,
        runtime=RuntimeConfig(precision=kind),
        model=replace(
            model,
            text=replace(model.text, vocab=vocab),
            answers=str(Path(vocab).with_name("answers.txt")) if TASK_ROWS[task].answers else "",
        ),
        data=replace(base.data, batch_size=B, codes="nowhere"),
        objectives=TASKS[task],
        optimizer=OptimizerConfig(warmup_steps=0),
        train=TrainConfig(steps=10),
    )


def make_step(config: Config) -> TrainStep:
    """As the trainer makes it."""
    model = build_model(config)
    objectives = registry.get(config.task).objectives(model, config, ALONE)
    rates = learning_rates(config.optimizer, config.train.steps)
    optimizer = build_optimizer(trained_parameters(model, objectives), config.optimizer, rates)
    return TrainStep(objectives, optimizer, 1.0, INITIAL_LOSS_SCALE if config.runtime.precision == "fp16" else None)


def read_graph(cell: nn.Cell, *inputs: Tensor) -> list[tuple[str, str]]:
    """Operators of a Cell's graph and the types of what they give; no kernel is looked for, which bf16 has none of."""
    number, _ = _cell_graph_executor.compile(cell, *inputs, phase="export.types", do_convert=False)
    graph = ModelProto()
    graph.ParseFromString(_cell_graph_executor._get_func_graph_proto(cell, number, "anf_ir"))
    return [
        (node.op_type, DataType.Name(node.output_type.tensor_type.elem_type))
        for node in graph.graph.node
        if node.output_type.data_type == DataType.DT_TENSOR
    ]


def step_graph(config: Config) -> list[tuple[str, str]]:
    step, batch = make_step(config), tiny_batch(config.model, B)
    batch |= {name: np.zeros((B, *spec.shape), spec.dtype) for name, spec in answer_fields(config.model).items()}
    with run_mode("graph"):
        return read_graph(
            step.gradients, step.update.loss_scale.value(), *(Tensor(batch[name]) for name in step.fields)
        )


def count_products(graph: list[tuple[str, str]], kind: str) -> Counter:
    return Counter(operator for operator, found in graph if operator in PRODUCTS and found == kind)


def test_every_task_has_its_row_here() -> None:
    assert TASKS.keys() == {name for name, row in TASK_ROWS.items() if row.trained and not row.full_precision}


@pytest.mark.parametrize(("task", "kind"), [*((task, "fp16") for task in TASKS), ("caption", "bf16")])
def test_a_step_multiplies_in_half_precision(task: str, kind: str, vocab: str) -> None:
    graph = step_graph(configure(task, kind, vocab))
    half = HALVES[kind]
    assert dict(count_products(graph, "DT_FLOAT32")) == FULL.get(task, {}), "products that need not be float32"
    assert count_products(graph, half).total() >= MORE_IN_HALF.get(task, 10)
    for operator in ("Softmax", "SoftmaxBackward", "LogSoftmax", "Log", "Rsqrt", "ReduceSum", "ReduceMean"):
        assert (operator, half) not in graph, f"{operator} needs float32"


def test_a_step_of_fp32_knows_no_other_float(vocab: str) -> None:
    types = {found for _, found in step_graph(configure("caption", "fp32", vocab))}
    assert "DT_FLOAT32" in types and not types & {"DT_FLOAT16", "DT_BFLOAT16", "DT_FLOAT64"}


def test_the_waveform_encoder_convolves_in_half_precision() -> None:
    inputs = Tensor(np.zeros((2, AUDIO.length), np.int16)), Tensor(np.full(2, AUDIO.length, np.int32))
    found = {}
    for kind in ("fp32", "fp16", "bf16"):
        with precision.building(kind), run_mode("graph"):
            found[kind] = read_graph(AUDIO_ENCODERS["wav2vec2"](AUDIO), *inputs)
    for kind, half in HALVES.items():
        assert count_products(found[kind], half)["Conv2D"] == 8  # seven of the waveform, one of the positions
        assert not count_products(found[kind], "DT_FLOAT32")
    assert count_products(found["fp32"], "DT_FLOAT32")["Conv2D"] == 8


def in_both(build: Callable[[], nn.Cell]) -> tuple[nn.Cell, nn.Cell]:
    """A network in fp32 and in fp16, of the same weights, away from those that it starts with."""
    full = build()
    randomise(full, spread=0.1)
    with precision.building("fp16"):
        half = build()
    for name, parameter in half.parameters_and_names():
        parameter.set_data(Tensor(dict(full.parameters_and_names())[name].asnumpy()))
    return full.set_train(False), half.set_train(False)


def losses_of(network: nn.Cell, config: Config) -> dict[str, float]:
    objectives = registry.get(config.task).objectives(network, config, ALONE)
    found = objectives(tensors(tiny_batch(config.model, B)))
    found = found if isinstance(found[0], Tensor) else found[0]
    return dict(zip(("total", *objectives.names), map(float, found), strict=False))


def assert_near_losses(config: Config, build: Callable[[], nn.Cell]) -> None:
    full, half = (losses_of(network, config) for network in in_both(build))
    assert full.keys() == half.keys() and full != half, "the precision changes nothing"
    for name, value in full.items():
        assert half[name] == pytest.approx(value, rel=0.01), name


def test_losses_are_those_of_fp32_within_a_hundredth(vocab: str) -> None:
    config = configure("pretrain", "fp32", vocab)
    assert_near_losses(config, lambda: OPT(config.model, VOCAB))


def test_losses_of_regions_and_features_likewise(vocab: str) -> None:
    config = configure("pretrain", "fp32", vocab)
    weights = {"mvm_feature": 1.0, "mvm_class": 1.0, "mam_feature": 1.0, "mam_contrastive": 1.0}
    objectives = ObjectivesConfig(
        weights=WeightsConfig(contrastive=0.0, **weights), masking=MaskingConfig(ratio=MASK_RATIO)
    )
    model = replace(feature_model(), text=config.model.text)
    assert_near_losses(replace(config, model=model, objectives=objectives), lambda: OPT(model, VOCAB))


def test_losses_of_the_image_tokenizer_likewise(vocab: str) -> None:
    config = configure("image_tokenizer", "fp32", vocab)
    assert_near_losses(config, lambda: ImageTokenizer(config.model.image_tokenizer))


class Squares(nn.Cell):
    """Mean square of a linear layer's outputs."""

    names, fields = ("square",), ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(4, 4)

    def construct(self, batch):
        y = self.linear(batch["x"])
        loss = (y * y).mean()
        return loss, loss


def squares_step(loss_scale: float | None) -> TrainStep:
    with precision.building("fp16"):
        objectives = Squares()
    config = OptimizerConfig(lr=0.1, warmup_steps=0, weight_decay=0.0)
    parameters = objectives.trainable_params()
    return TrainStep(objectives, build_optimizer(parameters, config, learning_rates(config, 10)), 1.0, loss_scale)


def test_an_overflow_halves_the_scale_until_a_step_is_taken() -> None:
    step, batch = squares_step(2.0**22), {"x": random(2, 4)}
    weight = step.gradients.objectives.linear.weight
    before = weight.asnumpy().copy()
    results = [take(step, batch) for _ in range(12)]
    skipped = [result.skipped for result in results]
    overflows = sum(skipped)
    assert 0 < overflows < 12 and skipped == sorted(skipped, reverse=True), "first overflows, then steps"
    assert float(step.update.loss_scale.asnumpy()) == 2.0 ** (22 - overflows)
    assert int(step.update.clean_steps.asnumpy()) == 12 - overflows
    kept = {result.losses["total"] for result in results[: overflows + 1]}
    assert len(kept) == 1, "what overflows updates nothing"
    assert results[-1].losses["total"] < results[overflows].losses["total"]
    assert not np.array_equal(before, weight.asnumpy()) and weight.dtype == ms.float32


def test_an_overflow_that_no_scale_explains_stops_the_run() -> None:
    for scale in (None, 1.0):
        step = squares_step(scale)
        linear = step.gradients.objectives.linear
        linear.bias.set_data(Tensor(np.full(4, 1e15, np.float32)))  # its gradient is beyond float16, the loss is not
        with pytest.raises(NonFiniteError, match="the gradients"):
            take(step, {"x": random(2, 4)})


@pytest.mark.parametrize(("kind", "scale"), [("fp32", 1.0), ("fp16", INITIAL_LOSS_SCALE), ("bf16", 1.0)])
def test_only_fp16_has_a_loss_scale(tiny: Config, tmp_path: Path, kind: str, scale: float) -> None:
    config = replace(tiny, runtime=RuntimeConfig(precision=kind), optimizer=OptimizerConfig(warmup_steps=0))
    trainer = Trainer(replace(config, train=TrainConfig(output=str(tmp_path / "run"), steps=1)))
    assert float(trainer.step.update.loss_scale.asnumpy()) == scale and trainer.step.update.scales == (kind == "fp16")
    assert {p.dtype for p in trainer.model.get_parameters()} <= {ms.float32, ms.int32}
    assert {p.dtype for p in trainer.step.state().values()} <= {ms.float32, ms.int32}


def test_what_a_skipped_step_logs_is_finite() -> None:
    timings = {"samples_per_second": 3.0, "data_wait": 0.1}
    line = step_line(StepResult({"total": 2.0}, {}, float("inf"), 0.0, True, 8.0, 0), None, timings, 0)
    assert line == {"loss": 2.0, "lr": 0.0, "loss_scale": 8.0, **timings}


def test_a_loss_scale_that_cannot_be_halved_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    base = Config(model=tiny_model(), objectives=objectives, runtime=RuntimeConfig(precision="fp16"))
    config = tiny_dataset(tmp_path, 8, replace(base, optimizer=OptimizerConfig(warmup_steps=0)))
    trainer = Trainer(replace(config, train=TrainConfig(output=str(tmp_path / "run"), steps=2, log_every=1)))
    trainer.step.update.loss_scale.set_data(Tensor(1.0, ms.float32))
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss_scale"] for line in lines] == [1.0, 1.0]
    assert capsys.readouterr().out.count("step 1: warning: loss_scale_at_minimum: the loss scale is 1") == 1


def test_a_run_that_goes_on_in_fp16_begins_with_its_scale(tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, optimizer=OptimizerConfig(warmup_steps=0))
    config = replace(config, train=TrainConfig(output=str(tmp_path / "run"), steps=1))
    save(Trainer(config))
    half = replace(config, runtime=RuntimeConfig(precision="fp16"))
    resumed = Trainer(half, resume=True)
    assert float(resumed.step.update.loss_scale.asnumpy()) == INITIAL_LOSS_SCALE
    resumed.step.update.loss_scale.set_data(Tensor(8.0, ms.float32))
    resumed.state["step"] = 1
    save(resumed)
    assert float(Trainer(half, resume=True).step.update.loss_scale.asnumpy()) == 8.0


def test_a_checkpoint_does_not_depend_on_the_precision(vocab: str, tmp_path: Path) -> None:
    config = configure("pretrain", "fp16", vocab)
    model = build_model(config)
    save_checkpoint(tmp_path, 1, config, model)
    for kind in ("fp32", "fp16", "bf16"):
        loaded = load_model(tmp_path / "step-00000001", [f"runtime.precision={kind}"])[1]
        assert loaded.text_decoder.compute_type == precision.TYPES[kind]
        for name, parameter in loaded.parameters_and_names():
            np.testing.assert_array_equal(parameter.asnumpy(), dict(model.parameters_and_names())[name].asnumpy())


def test_embeddings_are_float32_and_nearly_those_of_fp32() -> None:
    model, batch = tiny_model(), tiny_batch(tiny_model(), 5)
    full, half = (Encoder(network).image(batch["image"]) for network in in_both(lambda: OPT(model, VOCAB)))
    assert half.tokens.dtype == half.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(half.embeddings, full.embeddings, atol=0.01)
    assert not np.array_equal(half.embeddings, full.embeddings)


class Next(nn.Cell):
    """Logits of the token behind ids (N,) at a position."""

    def __init__(self, cached: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.cached = cached

    def construct(self, ids, position, bias):
        return self.cached.step(ids, position, bias)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_cache_is_of_the_compute_type_and_gives_the_decoders_logits(norm: str) -> None:
    model = tiny_model(norm=norm)
    with precision.building("fp16"):
        network = OPT(model, VOCAB).set_train(False)
    randomise(network, spread=0.1)
    places = network.cross_encoder.single_modality_positions(IMAGE)
    cached = CachedDecoder(network.text_decoder, 2, places)
    kinds = {state.name.split(".")[-1]: state.dtype for state in cached.blocks[0].get_parameters(expand=False)}
    assert set(kinds.values()) == {ms.float16}, kinds
    memory = random(2, len(places), model.cross.width)
    ids = np.array([[2, 7, 9, 11], [2, 5, 6, 8]], np.int32)
    with run_mode("graph"):
        Read(cached)(Tensor(memory), ops.ones((2, len(places)), ms.int32))
        step, steps = Next(cached), []
        for position in range(4):
            bias = Tensor(past_bias(position, model.text.max_len))
            steps.append(step(Tensor(ids[:, position]), Tensor(np.int32(position)), bias).asnumpy().copy())
    fused = np.zeros((2, network.cross_encoder.length, model.cross.width), np.float32)
    mask = np.zeros(fused.shape[:2], np.int32)
    fused[:, places], mask[:, places] = memory, 1
    whole = network.text_decoder(Tensor(ids), Tensor(fused), Tensor(mask)).asnumpy().reshape(2, 4, VOCAB)
    assert whole.dtype == steps[0].dtype == np.float32
    np.testing.assert_allclose(np.stack(steps, 1), whole, atol=0.02 * np.abs(whole).max())


def test_an_exported_graph_takes_and_gives_float32(tmp_path: Path) -> None:
    model = tiny_model()
    with precision.building("fp16"):
        graph = build_graphs(OPT(model, VOCAB), model)["text_encoder"]
    with run_mode("graph"):
        entry = export._write_graph(graph, tmp_path, "text_encoder", "MINDIR", export.ANY)
        compared = export.compare(graph, tmp_path / entry["file"], export.ANY, {"text_ids": (0, VOCAB)})
    assert [port["type"] for port in compared["outputs"]] == ["float32", "float32"]
    assert compared["max_abs_diff"] <= export.TOLERANCES["fp16"]


def test_the_precision_ends_with_the_block() -> None:
    with precision.building("bf16"):
        assert precision.compute_type() == ms.bfloat16
        with precision.building("fp32"):
            assert Linear(2, 2).compute_type == ms.float32
        with pytest.raises(ValueError, match="stop"), precision.building("fp16"):
            raise ValueError("stop")
        assert Linear(2, 2).compute_type == ms.bfloat16
    assert Linear(2, 2).compute_type == ms.float32

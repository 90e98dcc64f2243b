"""A batch in parts gives the losses, gradients and weights of the whole batch."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.config import (
    Config,
    ConfigError,
    DataConfig,
    DenoiseImageConfig,
    DenoiseTextConfig,
    MaskingConfig,
    MatchingConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    WeightsConfig,
)
from src.data.schema import AUDIO, IMAGE
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.training import accumulation
from src.training.accumulation import AccumulatedStep, part_size
from src.training.average import WeightAverage
from src.training.muon import build_optimizer
from src.training.optimizer import trained_parameters
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from tests.objectives import WEIGHTS
from tests.oracles import MASK_RATIO, VOCAB, Arrays, randomise, run_mode, take, tiny_batch, tiny_model

B = 8
SHARES = {
    "masking": MaskingConfig(batch_share=0.5, ratio=MASK_RATIO),
    "matching": MatchingConfig(),
    "denoise_text": DenoiseTextConfig(batch_share=0.5),
    "denoise_image": DenoiseImageConfig(batch_share=0.5),
}
COMPARING = {"contrastive", "matching"}
GROUPS = {
    "all": set(WEIGHTS),
    "contrastive": {"contrastive"},
    "matching": {"matching"},
    "within samples": set(WEIGHTS) - COMPARING,
    "one modality": {"denoise_text"},
    "texts": {"contrastive", "matching", "mlm"},
}


@pytest.fixture(autouse=True)
def graph() -> Iterator[None]:
    with run_mode("graph"):
        yield


def objectives_of(group: str) -> ObjectivesConfig:
    weights = {name: WEIGHTS[name] if name in GROUPS[group] else 0.0 for name in WEIGHTS}
    shares = SHARES | ({"denoise_text": DenoiseTextConfig(given=("image",))} if group == "one modality" else {})
    return ObjectivesConfig(weights=WeightsConfig(**weights), **shares)


@functools.cache
def start() -> Arrays:
    model = OPT(tiny_model(), VOCAB)
    randomise(model)
    return {name: parameter.asnumpy().copy() for name, parameter in model.parameters_and_names()}


def make_step(
    config: ObjectivesConfig,
    parts: int,
    optimizer: str = "adamw",
    dropout: float = 0.0,
    ema_decay: float = 0.0,
    absent: tuple[int, ...] = (),
) -> TrainStep:
    """From the same weights every time."""
    model = OPT(tiny_model(dropout=dropout), VOCAB)
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(start()[name]))
    whole = Objectives(model, config, B, absent=absent)
    part = Objectives(model, config, B // parts, absent=absent) if parts > 1 else None
    settings = OptimizerConfig(name=optimizer, warmup_steps=0, eps=1e-3)
    update = build_optimizer(trained_parameters(model, whole), settings, learning_rates(settings, 10))
    average = WeightAverage(update, ema_decay) if ema_decay else None
    return TrainStep(whole, update, 1.0, mask_seed=(1, 0), part=part, average=average)


def uneven_batch() -> Arrays:
    """Parts differ in what their samples have, and an image stands in two parts."""
    batch = tiny_batch(tiny_model(), B)
    for row, absent in ((1, 2), (2, 1), (5, 2), (6, 2), (7, 1)):
        for name in ("presence", "match_presence", "denoise_text_presence", "denoise_image_presence"):
            batch[name][row, absent] = 0
        batch["mam_weights" if absent == 2 else "mvm_weights"][row] = 0
        if absent == 1:
            batch["image_codes"][row] = -1
    batch["image_id"][3] = batch["image_id"][0]
    batch["text_mask"][4, 3:] = 0
    return batch


@pytest.mark.parametrize(
    ("group", "parts", "kind"),  # contrastive alone: the test of Muon below
    [*((group, 2, "graph") for group in GROUPS if group not in ("contrastive", "texts")), ("all", 4, "pynative")],
)
def test_parts_are_as_the_whole(group: str, parts: int, kind: str) -> None:
    """Two steps: losses, the gradients' norm, moments and weights, although only the parts have a loss scale."""
    with run_mode(kind):
        compare_parts(group, parts)


@pytest.mark.parametrize("absent", [IMAGE, AUDIO])
def test_parts_lack_what_the_whole_lacks(absent: int) -> None:
    """Negatives are compared across parts, among the modalities that there are."""
    batch = uneven_batch()
    for name in ("presence", "match_presence", "denoise_text_presence"):
        batch[name][:, absent] = 0
    with run_mode("pynative"):
        compare_parts("texts", 2, batch, (absent,))


def compare_parts(group: str, parts: int, batch: Arrays | None = None, absent: tuple[int, ...] = ()) -> None:
    config, batch = objectives_of(group), batch or uneven_batch()
    steps = [make_step(config, count, absent=absent) for count in (1, parts)]
    steps[1].update.loss_scale.set_data(Tensor(np.float32(64.0)))
    for _ in range(2):
        whole, found = (take(step, batch) for step in steps)
        assert found.losses == pytest.approx(whole.losses, rel=1e-5)
        assert found.norm == pytest.approx(whole.norm, rel=1e-5) and whole.norm > 0.1
    assert all(value > 0 for value in whole.losses.values())
    states = [step.optimizer.state() | {p.name: p for p in step.optimizer.parameters_} for step in steps]
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name].asnumpy(), expected.asnumpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def test_muon_and_the_loss_scale_take_parts_alike() -> None:
    config, batch = objectives_of("contrastive"), uneven_batch()
    steps = [make_step(config, parts, "muon") for parts in (1, 2)]
    steps[1].update.loss_scale.set_data(Tensor(np.float32(64.0)))
    whole, found = (take(step, batch) for step in steps)
    assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    assert found.norm == pytest.approx(whole.norm, rel=1e-5)
    for expected, parameter in zip(*(step.optimizer.parameters_ for step in steps), strict=True):
        np.testing.assert_allclose(parameter.asnumpy(), expected.asnumpy(), atol=1e-5, err_msg=parameter.name)


def test_a_bad_part_spoils_its_step_and_no_other() -> None:
    """The average of the weights passes over it too, although its weights are not finite."""
    step, batch = make_step(objectives_of("contrastive"), 2, ema_decay=0.9), uneven_batch()
    step.max_bad_steps = 2
    before = [p.asnumpy().copy() for p in step.optimizer.parameters_]
    text = step.gradients.objectives.model.text_head.project.weight
    good = text.asnumpy().copy()
    text.set_data(Tensor(np.full_like(good, np.inf)))
    assert take(step, batch).bad_steps == 1
    text.set_data(Tensor(good))
    for expected, parameter in zip(before, step.optimizer.parameters_, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), expected)
    for expected, average in zip(before, step.average.arrays().values(), strict=True):
        np.testing.assert_array_equal(average, expected)
    assert not take(step, batch).skipped
    averages = step.average.arrays().items()
    for expected, parameter, (name, average) in zip(before, step.optimizer.parameters_, averages, strict=True):
        first = 2 / 11 * expected + 9 / 11 * parameter.asnumpy()
        np.testing.assert_allclose(average, first, rtol=1e-5, atol=1e-7, err_msg=name)
        # softmax does not see a bias of all keys
        assert name.endswith("key.bias") or not np.array_equal(parameter.asnumpy(), expected)


def test_dropout_is_the_same_when_a_part_is_encoded_again() -> None:
    """The gradient is that of the loss: its product with a direction is the loss' slope along it."""
    step, batch = make_step(objectives_of("contrastive"), 2, dropout=0.3), uneven_batch()
    step.update.optimizer = Still()
    weight = step.gradients.objectives.model.text_encoder.transformer.blocks[0].ffn.down.weight
    start, direction = weight.asnumpy().copy(), np.random.default_rng(0).standard_normal(weight.shape)
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)

    def loss(distance: float) -> float:
        weight.set_data(Tensor(start + np.float32(distance) * direction))
        step.number = 5
        return take(step, batch).losses["total"]

    slope = (loss(0.02) - loss(-0.02)) / 0.04
    loss(0.0)
    held = step.accumulated.finish.held
    place = [members[0].name for members in step.optimizer.members].index(weight.name)
    gradient = held[place].asnumpy()
    assert gradient.shape == weight.shape and abs(slope) > 1e-3
    assert (gradient * direction).sum() == pytest.approx(slope, rel=0.02)


def test_each_part_has_rows_and_masks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no loss compares samples; what the graphs compute is not asked here."""
    keys: list[tuple[int, ...]] = []
    monkeypatch.setattr(accumulation, "set_key", lambda *key: keys.append(key))
    step, calls = object.__new__(AccumulatedStep), []
    step.parts, step.fields, step.drops, step.embeds, step.levels = 3, ("x",), True, False, 1
    step.clear, step.plan = lambda: calls.append("clear"), lambda x: calls.append("plan") or x.sum()
    step.direct = lambda losses, count, x: calls.append((int(count), x.asnumpy().tolist())) or losses + 1
    step.finish = lambda contrastive, losses: (float(contrastive), losses.asnumpy().tolist())
    assert step({"x": np.arange(6)}, (7, 2)) == (0.0, [3.0])
    assert calls == ["clear", "plan", (15, [0, 3]), (15, [1, 4]), (15, [2, 5])]
    assert keys == [(7, 2, 0), (7, 2, 1), (7, 2, 2)]


class Still(nn.Cell):
    """An optimiser that leaves everything as it is."""

    def construct(self, factor, good, gradients):
        return factor


def settings(parts: int, size: int = 8, **objectives: object) -> Config:
    return Config(
        model=tiny_model(),
        data=DataConfig(batch_size=size, codes="an image tokenizer"),
        train=TrainConfig(accumulate=parts),
        objectives=ObjectivesConfig(**objectives),
    )


def test_parts_must_be_alike() -> None:
    assert part_size(settings(4)) == 2
    with pytest.raises(ConfigError, match="train.accumulate=3 does not divide data.batch_size=8"):
        part_size(settings(3))
    masked = {"weights": WeightsConfig(mlm=1.0), "masking": MaskingConfig(batch_share=0.75)}
    assert part_size(settings(2, **masked)) == 4
    images = {"weights": WeightsConfig(denoise_image=1.0), "denoise_image": DenoiseImageConfig(batch_share=0.375)}
    with pytest.raises(ConfigError, match=r"denoise_image\.batch_share=0\.375 of data\.batch_size=8 is 3 rows"):
        part_size(settings(2, **images))
    words = {"weights": WeightsConfig(denoise_text=1.0), "denoise_image": DenoiseImageConfig(batch_share=0.375)}
    assert part_size(settings(2, **words)) == 4, "no image is generated"
    before = {"weights": WeightsConfig(denoise_image=1.0), "denoise_text": DenoiseTextConfig(batch_share=0.375)}
    with pytest.raises(ConfigError, match=r"denoise_text\.batch_share=0\.375 of data\.batch_size=8 is 3 rows"):
        part_size(settings(2, **before))  # images are generated of the rows before these
    with pytest.raises(ConfigError, match=r"objectives\.masking\.batch_share=0\.75 of data\.batch_size=8 is 6 rows"):
        part_size(settings(4, **masked))
    assert part_size(settings(4, masking=MaskingConfig(batch_share=0.75))) == 2, "nothing is masked"


@pytest.mark.parametrize("task", ["image_tokenizer", "self_critical"])
def test_tasks_that_take_the_batch_whole_say_so(task: str) -> None:
    with pytest.raises(ConfigError, match=f"train.accumulate: task={task} takes its batch whole"):
        Config(task=task, train=TrainConfig(accumulate=2), objectives=objectives_of("one modality"))

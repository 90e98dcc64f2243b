"""The optimisers against PyTorch, the schedule, and whole runs against themselves after an interruption."""

import dataclasses
import json
import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, kill_after, tiny_dataset
from mindspore import Parameter, Tensor

from src.checkpoints.files import MODEL, read_tensors
from src.checkpoints.places import locate
from src.config import (
    Config,
    ConfigError,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    WeightsConfig,
)
from src.training.muon import Muon, Orthogonalise, build_optimizer
from src.training.optimizer import AdamW, decays
from src.training.schedule import learning_rates
from src.training.step import TrainingError
from src.training.trainer import Trainer
from tests.oracles import apply_gradients


@pytest.fixture(autouse=True)
def graph_mode():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


def test_schedule_warms_up_and_ends_at_the_floor():
    config = OptimizerConfig(lr=1e-2, min_lr=1e-4, warmup_steps=10)
    rates = learning_rates(config, 100)
    assert rates[0] == pytest.approx(1e-3) and rates[9] == pytest.approx(1e-2)
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[9:]) < 0).all(), "the peak is used once"
    third = 1e-4 + (1e-2 - 1e-4) * 0.5 * (1 + math.cos(math.pi / 3))
    assert rates[39] == pytest.approx(third, rel=1e-5) and rates[-1] == np.float32(1e-4)


def test_without_warm_up_the_first_step_has_the_peak():
    rates = learning_rates(OptimizerConfig(lr=1e-2, min_lr=0.0, warmup_steps=0), 5)
    np.testing.assert_allclose(rates, 5e-3 * (1 + np.cos(np.pi * np.arange(5) / 4)), rtol=1e-5, atol=1e-9)


def test_warm_up_is_cut_to_a_short_run():
    config = OptimizerConfig(lr=1e-2, min_lr=1e-4, warmup_steps=50)
    np.testing.assert_allclose(learning_rates(config, 5)[[0, 1, 4]], [5e-3, 1e-2, 1e-4], rtol=1e-5)
    assert learning_rates(config, 50)[24] == np.float32(1e-2) and learning_rates(config, 51)[49] == np.float32(1e-2)
    assert learning_rates(config, 1).tolist() == [np.float32(1e-2)]


def test_adamw_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    starts = {"a.weight": (5, 4), "a.bias": (4,), "b.positions": (1, 6, 4), "c.gain": (4,)}
    starts |= {"absent": (3, 1, 1, 4), "modality": (3, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in starts.items()}
    parameters = [Parameter(Tensor(array), name=name) for name, array in arrays.items()]
    assert [decays(p) for p in parameters] == [True, *[False] * 5]
    config = OptimizerConfig(lr=1e-2, min_lr=1e-3, warmup_steps=3, weight_decay=0.1)
    rates = learning_rates(config, 8)
    ours = AdamW(parameters, config, rates)
    twins = [torch.nn.Parameter(torch.tensor(array)) for array in arrays.values()]
    groups = [{"params": twins[:1], "weight_decay": 0.1}, {"params": twins[1:], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=(config.beta1, config.beta2), eps=config.eps)
    for rate in rates:
        gradients = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in starts.items()}
        for twin, gradient in zip(twins, gradients.values(), strict=True):
            twin.grad = torch.tensor(gradient * 0.5)
        for group in theirs.param_groups:
            group["lr"] = float(rate)
        theirs.step()
        assert apply_gradients(ours, gradients, 0.5) == pytest.approx(float(rate))
    for parameter, twin in zip(parameters, twins, strict=True):
        np.testing.assert_allclose(parameter.asnumpy(), twin.detach().numpy(), rtol=0, atol=2e-6)


def test_orthogonalise_levels_the_singular_values():
    x = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32) * 1e-3
    y = Orthogonalise()(Tensor(x)).asnumpy()
    for before, after in zip(x, y, strict=True):
        u, _, v = np.linalg.svd(before, full_matrices=False)
        kept = u.T @ after @ v.T  # diagonal where the singular vectors are the same
        np.testing.assert_allclose(kept - np.diag(np.diag(kept)), 0, atol=2e-3)
        assert (np.diag(kept) > 0.65).all() and (np.diag(kept) < 1.25).all()


def test_muon_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    starts = {"a.weight": (8, 8), "up.weight": (16, 8), "b.weight": (8, 8), "tokens": (5, 8), "down.weight": (8, 16)}
    starts |= {"a.bias": (8,), "up.bias": (16,), "b.bias": (8,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in starts.items()}
    parameters = [Parameter(Tensor(array), name=name) for name, array in arrays.items()]
    config = OptimizerConfig(name="muon", lr=1e-2, muon_lr=0.02, warmup_steps=3, weight_decay=0.1)
    rates = learning_rates(config, 6)
    ours = build_optimizer(parameters, config, rates)
    assert isinstance(ours, Muon) and sorted(p.name for p in ours.parameters_) == sorted(starts)
    twins = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in arrays.items()}
    matrices = [twin for name, twin in twins.items() if name.endswith("weight")]
    muon = torch.optim.Muon(matrices, lr=1.0, momentum=config.muon_momentum, weight_decay=0.1)
    biases = [twin for name, twin in twins.items() if name.endswith("bias")]
    groups = [{"params": [twins["tokens"]], "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(config.beta1, config.beta2), eps=config.eps)
    for rate in rates:
        gradients = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in starts.items()}
        apply_gradients(ours, gradients)
        for name, gradient in gradients.items():
            twins[name].grad = torch.tensor(gradient)
        for group in (*muon.param_groups, *adam.param_groups):
            group["lr"] = float(rate) * (2.0 if group in muon.param_groups else 1.0)
        muon.step()
        adam.step()
    for parameter in ours.parameters_:
        # PyTorch orthogonalises in bfloat16
        tolerance = 2e-3 if parameter.name.endswith("weight") else 2e-6
        expected = twins[parameter.name].detach().numpy()
        np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=0, atol=tolerance)
        assert np.abs(parameter.asnumpy() - arrays[parameter.name]).max() > 10 * tolerance


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small run with every level's objectives, and dropout."""
    text = dataclasses.replace(MODEL_CONFIG.text, dropout=0.1)
    cross = dataclasses.replace(MODEL_CONFIG.cross, dropout=0.1)
    model = dataclasses.replace(MODEL_CONFIG, text=text, cross=cross)
    base = tiny_dataset(tmp_path_factory.mktemp("data"), config=Config(model=model))
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, mlm=0.5, matching=0.5, denoise_text=1.0))
    data = dataclasses.replace(base.data, batch_size=4, eval_split=base.data.train_split)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=2)
    return dataclasses.replace(base, data=data, objectives=objectives, optimizer=optimizer)


def with_run(config, output, **train):
    settings = TrainConfig(output=str(output), steps=4, log_every=1, save_every=2, **train)
    return dataclasses.replace(config, train=settings)


def start(config, resume=False):
    ms.set_seed(config.seed)
    return Trainer(config, resume=resume)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Four uninterrupted steps."""
    ms.set_context(mode=ms.GRAPH_MODE)
    run = with_run(config, tmp_path_factory.mktemp("runs") / "whole", keep_checkpoints=5)
    start(run).run()
    return run


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines if "loss" in line]


def test_resumed_run_equals_the_uninterrupted_one(config, finished, tmp_path):
    run = with_run(config, tmp_path / "cut")
    kill_after(Path(finished.train.output), 2, tmp_path / "cut")
    ms.set_seed(99)  # nothing may depend on it
    Trainer(run, resume=True).run()

    whole, cut = locate(finished.train.output), locate(run.train.output)
    assert losses(tmp_path / "cut") == losses(whole.parent.parent)
    for name in (MODEL, "optimizer.safetensors"):
        expected, found = read_tensors(whole / name), read_tensors(cut / name)
        assert expected.keys() == found.keys()
        for tensor in expected:
            np.testing.assert_array_equal(found[tensor], expected[tensor], err_msg=tensor)


def test_run_folder_explains_itself(finished):
    folder = locate(finished.train.output).parent.parent
    assert (folder / "config.yaml").is_file() and any((folder / "tensorboard").iterdir())
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"step", "loss", "loss/contrastive", "loss/mlm", "loss/matching", "loss/denoise_text"} <= first.keys()
    assert first["samples_per_second"] > 0


def test_a_second_run_does_not_overwrite_the_first(finished):
    with pytest.raises(ConfigError, match="--resume"):
        Trainer(finished)


@pytest.fixture(scope="module")
def contrasting(config):
    """The same with one objective: its graph compiles faster."""
    return dataclasses.replace(config, objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0)))


def test_non_finite_loss_stops_the_run_and_names_the_step(contrasting, tmp_path):
    run = with_run(contrasting, tmp_path / "nan")
    trainer = start(run)
    bias = trainer.model.text_head.project.bias
    bias.set_data(Tensor(np.full(bias.shape, np.nan, np.float32)))
    with pytest.raises(TrainingError, match="step 1: not finite: total, contrastive.*samples"):
        trainer.run()


def test_frozen_parts_keep_their_weights(contrasting, tmp_path):
    optimizer = dataclasses.replace(contrasting.optimizer, freeze=("text_encoder", "scale"), layer_decay=0.5)
    run = dataclasses.replace(with_run(contrasting, tmp_path / "frozen"), optimizer=optimizer)
    trainer = start(run)
    before = {name: parameter.asnumpy().copy() for name, parameter in trainer.model.parameters_and_names()}
    trainer.run()
    after = read_tensors(locate(run.train.output) / MODEL)
    same = {name.split(".")[0] for name, array in after.items() if np.array_equal(array, before[name])}
    assert same >= {"text_encoder", "scale"} and not same & {"image_encoder", "audio_encoder", "text_head"}
    state = read_tensors(locate(run.train.output) / "optimizer.safetensors")
    assert not any("text_encoder" in name for name in state), "what is frozen costs no memory"


def test_fine_tuning_starts_from_the_given_weights(config, finished, tmp_path):
    run = with_run(config, tmp_path / "tuned", init_from=finished.train.output)
    trainer = Trainer(run)
    arrays = read_tensors(locate(finished.train.output) / MODEL)
    for name, parameter in trainer.model.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), arrays[name])
    assert trainer.step_number == 0

"""What the benchmarks compare with: the PyTorch twin computes the same losses and gradients, FLAVA the same task."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch

from benchmarks import device_step, flava, torch_network, torch_twin, train_step
from benchmarks.batch import PARTS, make_batch
from src.config import (
    Config,
    DataConfig,
    DenoiseImageConfig,
    DenoiseTextConfig,
    MaskingConfig,
    MatchingConfig,
    ObjectivesConfig,
    WeightsConfig,
    load_config,
)
from src.data.tokenizer import Tokenizer
from src.errors import UserError
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.table import active_objectives, needed_fields
from tests.oracles import OBJECTIVES, randomise, run_mode, tensors, tiny_model

SHARES = {
    "masking": MaskingConfig(batch_share=0.5),
    "matching": MatchingConfig(batch_share=0.8),
    "denoise_text": DenoiseTextConfig(batch_share=0.3),
    "denoise_image": DenoiseImageConfig(batch_share=0.4),
}
EVERYTHING = ObjectivesConfig(weights=WeightsConfig(**dict.fromkeys(OBJECTIVES, 0.7)), **SHARES)
IMAGE_TEXT = ObjectivesConfig(
    weights=WeightsConfig(**{name: float(name in train_step.IMAGE_TEXT) for name in OBJECTIVES})
)


def config_of(objectives: ObjectivesConfig) -> Config:
    return Config(model=tiny_model(), data=DataConfig(codes="x", batch_size=10), objectives=objectives)


@pytest.fixture(scope="module")
def opt() -> OPT:
    model = tiny_model()
    network = OPT(model, Tokenizer(model.text.vocab).size)
    randomise(network, spread=0.1)
    return network


@pytest.fixture(autouse=True)
def pynative() -> Iterator[None]:
    with run_mode("pynative"):
        yield


def test_twin_has_the_losses_and_gradients_of_the_network(opt: OPT) -> None:
    config = config_of(EVERYTHING)
    batch = make_batch(config)
    named = dict(opt.parameters_and_names())
    function = ms.value_and_grad(Objectives(opt, EVERYTHING, 10), None, list(named.values()), has_aux=True)
    values, gradients = function(tensors({name: batch[name] for name in needed_fields(EVERYTHING)}))
    twin = torch_network.OPT(config.model, opt.vocab_size)
    twin.load_state_dict({name: torch.from_numpy(parameter.asnumpy()) for name, parameter in named.items()})
    fields = {name: torch.from_numpy(batch[name]) for name in needed_fields(EVERYTHING)}
    total = torch_twin.Objectives(twin, config)(fields)
    total.backward()
    assert float(values[0]) == pytest.approx(total.item(), rel=1e-4)
    theirs = dict(twin.named_parameters())
    for name, gradient in zip(named, gradients, strict=True):
        other = theirs[name].grad
        expected = np.zeros(gradient.shape, np.float32) if other is None else other.numpy()
        np.testing.assert_allclose(gradient.asnumpy(), expected, atol=5e-5, rtol=2e-3, err_msg=name)


def test_flava_sees_what_is_masked_and_begins_at_chance() -> None:
    """Its heads want one width throughout."""
    config = config_of(IMAGE_TEXT)
    text, image, cross = (replace(getattr(config.model, part), width=16) for part in ("text", "image", "cross"))
    config = replace(config, model=replace(config.model, text=text, image=image, cross=cross))
    batch = make_batch(config, audio=False)
    given = flava.inputs(batch)
    assert (given["mlm_labels"] != flava.IGNORED).sum() == batch["mlm_weights"].sum()
    assert given["bool_masked_pos"].sum() == batch["mvm_weights"].sum()
    model, vocab = config.model, Tokenizer(config.model.text.vocab).size
    torch.manual_seed(0)
    network = flava.build(model, vocab)
    loss = flava.loss_of(network, batch)()
    loss.backward()
    pixels = given["pixel_values"].permute(0, 3, 1, 2) / 127.5 - 1
    parts = network(**{**given, "pixel_values": pixels}).loss_info
    assert parts.mmm_text.item() == pytest.approx(np.log(vocab), rel=0.1)
    assert parts.mmm_image.item() == pytest.approx(np.log(model.image_tokenizer.codes), rel=0.1)
    whole = parts.mmm_text + parts.mmm_image + parts.global_contrastive
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


def test_every_loss_is_left_out_once_and_the_peer_has_its_three() -> None:
    path = "config/pretrain/demo.yaml"
    variants = {variant.name: variant for variant in train_step.plan(path, train_step.LARGER)}
    for name in OBJECTIVES:
        active = active_objectives(load_config(path, variants[f"without {name}"].settings).objectives)
        assert set(active) == set(OBJECTIVES) - {name}
    (peer,) = (variant for variant in variants.values() if variant.peer)
    config = load_config(path, peer.settings)
    assert active_objectives(config.objectives) == train_step.IMAGE_TEXT
    assert (config.model.cross.layers, config.model.audio.layers, config.data.batch_size) == (4, 1, 32)


def test_a_loss_of_weight_0_leaves_the_graph(opt: OPT) -> None:
    counts = []
    with run_mode("graph"):
        for names in (("contrastive",), ("contrastive", "mlm")):
            config = config_of(
                ObjectivesConfig(weights=WeightsConfig(**{name: float(name in names) for name in OBJECTIVES}))
            )
            objectives = Objectives(opt, config.objectives, config.data.batch_size)
            objectives(tensors(make_batch(config)))
            counts.append(train_step.count_operators(objectives))
    assert 50 < counts[0] < counts[1] - 50


def test_report_says_what_each_row_costs() -> None:
    result = train_step.Result([0.2, 0.4, 0.3], [0.1], [1.0], [], 10.0, 1234)
    peer = replace(result, flava=[0.6])
    text = train_step.report({"all losses": result, "images and text alone": peer}, 30)
    assert "300" in text and "100" in text and "1,234" in text and "3.00" in text
    assert "FLAVA for images and text alone 600 ms, 0.50 of it here" in text


def test_device_rows_start_alike_and_a_failure_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both frameworks find the same first loss; what cannot run says why in the table."""
    one_layer = tuple(f"model.{part}.layers=1" for part in PARTS)
    small = (
        *one_layer,
        "data.batch_size=8",
        "model.image.size=16",
        "model.image_tokenizer.size=16",
        "model.image_tokenizer.side=2",
    )
    monkeypatch.setitem(device_step.SIZES, "demo", (device_step.DEMO, small))
    rows = [row for row in device_step.ROWS if row.name in ("MindSpore fp32", "PyTorch eager fp32")]
    rows.append(device_step.Row("nothing", "benchmarks.missing"))
    args = argparse.Namespace(device="CPU", rounds=1, seconds=120, total=300)
    tasks = [("demo", row) for row in rows]
    results = list(device_step.measure(tasks, tmp_path, tmp_path, args))
    (ours, theirs, broken) = (found for _, _, found, _ in results)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4) and min(ours.step, theirs.step) > 0
    assert "No module named benchmarks.missing" in broken
    assert broken in device_step.table([device_step.cells(*result) for result in results], device_step.HEADERS)


def test_device_rows_keep_the_frameworks_apart() -> None:
    for module, other in ((device_step.MINDSPORE, "torch"), (device_step.PYTORCH, "mindspore")):
        code = f"import sys, {module}; sys.exit('{other}' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(device_step.__file__).parents[1]).returncode == 0


def test_pytorch_does_not_see_the_other_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcublas.so.11").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:/elsewhere")
    theirs = device_step.environment(device_step.PYTORCH)
    assert "CUDA_HOME" not in theirs and theirs["LD_LIBRARY_PATH"] == "/elsewhere"
    assert device_step.environment(device_step.MINDSPORE)["CUDA_HOME"] == str(tmp_path)


def test_device_rows_are_chosen_by_parts_of_names() -> None:
    names = [(size, row.name) for size, row in device_step.chosen("larger,demo", "TF32,mindspore fp16", "GPU")]
    wanted = ["MindSpore TF32", "PyTorch eager TF32", "MindSpore fp16", "PyTorch compiled TF32"]
    assert names == [(size, name) for size in ("larger", "demo") for name in wanted]
    assert all(row.on_cpu for _, row in device_step.chosen("demo", "", "CPU"))
    with pytest.raises(UserError, match="--sizes huge"):
        device_step.chosen("huge", "", "GPU")
    with pytest.raises(UserError, match="--rows jax"):
        device_step.chosen("demo", "jax", "GPU")


def test_twin_stays_on_one_device() -> None:
    """A tensor that it made elsewhere would not mix with those that are nowhere."""
    config = config_of(EVERYTHING)
    nowhere = torch.device("meta")
    with nowhere:
        twin = torch_network.OPT(config.model, Tokenizer(config.model.text.vocab).size)
    made = make_batch(config)
    fields = {name: torch.from_numpy(made[name]).to(nowhere) for name in needed_fields(EVERYTHING)}
    loss = torch_twin.Objectives(twin, config)(fields)
    loss.backward()
    assert loss.device == nowhere

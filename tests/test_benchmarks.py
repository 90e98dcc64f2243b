"""What the benchmarks compare with: the PyTorch twin computes the same losses and gradients, FLAVA the same task."""

from collections.abc import Iterator
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch

from benchmarks import flava, torch_network, torch_twin, train_step
from src.config import Config, DataConfig, ObjectivesConfig, WeightsConfig, load_config
from src.data.tokenizer import Tokenizer
from src.models.opt import OPT
from src.objectives.objectives import Objectives, active_objectives, needed_fields
from tests.oracles import OBJECTIVES, randomise, run_mode, tensors, tiny_model

SHARES = {"token_fraction": 0.5, "sample_fraction": 0.8, "modality_fraction": 0.3, "draw_fraction": 0.4}
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
    batch = train_step.make_batch(config)
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


def test_flava_sees_what_is_hidden_and_begins_at_chance() -> None:
    """Its heads want one width throughout."""
    config = config_of(IMAGE_TEXT)
    text, image, cross = (replace(getattr(config.model, part), width=16) for part in ("text", "image", "cross"))
    config = replace(config, model=replace(config.model, text=text, image=image, cross=cross))
    batch = train_step.make_batch(config, clip=False)
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
    assert parts.mmm_image.item() == pytest.approx(np.log(model.tokenizer.codes), rel=0.1)
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
            objectives(tensors(train_step.make_batch(config)))
            counts.append(train_step.count_operators(objectives))
    assert 50 < counts[0] < counts[1] - 50


def test_report_says_what_each_row_costs() -> None:
    result = train_step.Result([0.2, 0.4, 0.3], [0.1], [1.0], [], 10.0, 1234)
    peer = replace(result, flava=[0.6])
    text = train_step.report({"all losses": result, "images and text alone": peer}, 30)
    assert "300" in text and "100" in text and "1,234" in text and "3.00" in text
    assert "FLAVA for images and text alone 600 ms, 0.50 of it here" in text

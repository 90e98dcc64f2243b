"""Learning rates by layer and frozen parts, against PyTorch's optimisers with a rate for every parameter."""

import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor

from src.config import ConfigError, OptimizerConfig
from src.models.opt import OPT
from src.training.layer_rates import rate_shares, unfrozen
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from tests.oracles import VOCAB, apply_gradients, run_mode, tiny_model

SHARES = {  # of the rate, at a decay of a half, in an encoder of three layers and in one of a single layer
    "text_encoder.tokens": 1 / 16,
    "text_encoder.norm.gain": 1 / 16,
    "text_encoder.transformer.blocks.0.ffn.up.weight": 1 / 8,
    "text_encoder.transformer.blocks.1.ffn.up.weight": 1 / 4,
    "text_encoder.transformer.blocks.2.ffn.up.weight": 1 / 2,
    "text_encoder.transformer.blocks.2.ffn.up.bias": 1 / 2,
    "text_encoder.transformer.final_norm.gain": 1.0,
    "cross_encoder.text_project.weight": 1 / 4,
    "cross_encoder.transformer.blocks.0.attention.query.weight": 1 / 2,
    "text_head.project.weight": 1.0,
    "text_decoder.transformer.blocks.0.ffn.up.weight": 1.0,
    "scale.log_scale": 1.0,
}


def made_up(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {name: (6, 8) if name.endswith(("weight", "tokens")) else (8,) for name in SHARES}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_layer_learns_at_a_share_of_the_one_above() -> None:
    parameters = [Parameter(Tensor(array), name=name) for name, array in made_up(np.random.default_rng(0)).items()]
    assert dict(zip(SHARES, rate_shares(parameters, 0.5), strict=True)) == SHARES
    assert set(rate_shares(parameters, 1.0)) == {1.0}


def test_every_parameter_of_the_network_has_a_share() -> None:
    """Two layers: only norms on top of the encoders, heads and decoders learn at the full rate."""
    parameters = list(OPT(tiny_model(layers=2), VOCAB).get_parameters())
    shares = dict(zip((p.name for p in parameters), rate_shares(parameters, 0.5), strict=True))
    low = {name for name, share in shares.items() if share < 1}
    expected = {n for n in shares if n.split(".")[0].endswith("_encoder") and "final_norm" not in n}
    assert low == expected and set(shares.values()) == {1.0, 0.5, 0.25, 0.125}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_update_equals_torch(name: str) -> None:
    rng = np.random.default_rng(1)
    arrays = made_up(rng)
    parameters = [Parameter(Tensor(array), name=key) for key, array in arrays.items()]
    config = OptimizerConfig(name=name, lr=1e-2, warmup_steps=2, weight_decay=0.1, layer_decay=0.5)
    rates = learning_rates(config, 5)
    twins = {key: torch.nn.Parameter(torch.tensor(array)) for key, array in arrays.items()}
    orthogonal = {key for key in arrays if name == "muon" and key.endswith("weight")}
    theirs = [_twin(key, twin, key in orthogonal, config) for key, twin in twins.items()]
    with run_mode("graph"):
        ours = build_optimizer(parameters, config, rates)
        for rate in rates:
            gradients = {key: rng.standard_normal(array.shape).astype(np.float32) for key, array in arrays.items()}
            apply_gradients(ours, gradients)
            for key, gradient in gradients.items():
                twins[key].grad = torch.tensor(gradient)
            for key, optimizer in zip(twins, theirs, strict=True):
                peak = config.muon_lr / config.lr if key in orthogonal else 1.0
                optimizer.param_groups[0]["lr"] = float(rate) * peak * SHARES[key]
                optimizer.step()
    for parameter in parameters:
        key = parameter.name
        tolerance = 2e-3 * SHARES[key] if key in orthogonal else 2e-6  # PyTorch orthogonalises in bfloat16
        expected = twins[key].detach().numpy()
        np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=0, atol=tolerance, err_msg=key)
        assert np.abs(parameter.asnumpy() - arrays[key]).max() > 5 * tolerance


def _twin(key: str, twin: torch.nn.Parameter, orthogonal: bool, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimiser of this one parameter, with a rate of its own."""
    if orthogonal:
        return torch.optim.Muon([twin], lr=1.0, momentum=config.muon_momentum, weight_decay=config.weight_decay)
    decay = config.weight_decay if twin.ndim > 1 else 0.0
    return torch.optim.AdamW([twin], 1.0, (config.beta1, config.beta2), config.eps, decay)


def test_frozen_parts_are_left_out() -> None:
    parameters = [Parameter(Tensor([0.0]), name=f"{part}.weight") for part in ("text_encoder", "text_head", "scale")]
    assert [p.name for p in unfrozen(parameters, ["text_encoder", "scale"])] == ["text_head.weight"]
    assert unfrozen(parameters, []) == parameters
    assert unfrozen(parameters, ["audio_encoder"], {"audio_encoder"}) == parameters
    with pytest.raises(ConfigError, match="optimizer.freeze=text: these objectives train scale, text_encoder, text_he"):
        unfrozen(parameters, ["text"])
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        unfrozen(parameters, ["text_encoder", "text_head", "scale"])

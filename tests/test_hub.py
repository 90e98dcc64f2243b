"""Networks by name, with and without trained weights; the sizes they are named after."""

from pathlib import Path

import numpy as np
import pytest

import mindspore_hub_conf as hub
from src.checkpoints.checkpoint import write_model
from src.checkpoints.files import CheckpointError
from src.config import ConfigError, load_config
from src.models.build import build_model
from src.models.opt import count_parameters

PARTS = ("text", "image", "audio", "cross", "text_decoder")
TINY = [f"model.{part}.{size}" for part in PARTS for size in ("layers=1", "width=32")]


def fused_length(name: str) -> int:
    model = load_config(hub.NETWORKS[name]).model
    patches = (model.image.size // model.image.patch) ** 2
    return 1 + model.text.max_len + patches + model.audio.max_frames // model.audio.stride


def test_sizes_of_the_fused_sequence() -> None:
    assert (fused_length("opt_base"), fused_length("opt_large")) == (327, 297)


def test_demo_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.create_network("opt_demo").cross_encoder.length == fused_length("opt_demo")


def test_base_has_the_size_its_file_states() -> None:
    """One layer a part is built; the others are the same block again: 4 or 6 matrices, biases, norms."""
    one_layer = [f"model.{part}.layers=1" for part in PARTS]
    built = count_parameters(hub.create_network("opt_base", *one_layer))["total"]
    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    cross_attention = 2 * (1024 * 1024 + 1024) + 2 * (768 * 1024 + 1024) + 2 * 1024
    decoder_block = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024 + cross_attention
    assert built + 4 * 11 * block + 5 * decoder_block == pytest.approx(483e6, rel=0.01)


def test_settings_are_those_of_the_commands() -> None:
    assert hub.create_network("opt_demo", *TINY).text_encoder.tokens.shape[1] == 32
    with pytest.raises(ConfigError, match="did you mean model.text.layers"):
        hub.create_network("opt_demo", "model.text.layer=1")
    with pytest.raises(TypeError):
        hub.create_network("opt_demo", trained=True)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown network 'opt_huge': opt_demo, opt_base, opt_large"):
        hub.create_network("opt_huge")


def test_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ROOT", tmp_path)
    config = load_config(hub.NETWORKS["opt_demo"], TINY)
    model = build_model(config)
    folder = tmp_path / "pretrained" / "opt_demo"
    folder.mkdir(parents=True)
    write_model(folder, config, model)
    loaded = hub.create_network("opt_demo", pretrained=True)
    for name, parameter in model.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), dict(loaded.parameters_and_names())[name].asnumpy(), name)


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ROOT", tmp_path)
    with pytest.raises(CheckpointError, match="pretrained/opt_large/model.safetensors is missing"):
        hub.create_network("opt_large", pretrained=True)

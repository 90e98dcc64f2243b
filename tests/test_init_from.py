"""Encoders that start from files of other libraries: what is taken, what is refused, and when it happens."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import save, tiny_dataset
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from src.checkpoints.files import CheckpointError, read_tensors
from src.checkpoints.pretrained import PretrainedError, init_encoder
from src.config import (
    Config,
    ConfigError,
    ModelConfig,
    TrainConfig,
    load_config,
)
from src.training.trainer import Trainer
from tests.networks import AUDIO, MAKERS, SIZES, TEXT, VOCAB, bert, build, loaded, model_config, scrambled, vit


def test_old_parameter_names_are_read(tmp_path: Path) -> None:
    """Files from before weights had today's names: gamma and beta, weight_g and weight_v."""
    norm, conv = ".parametrizations.weight.original", ".weight_"
    for section, changes in (
        ("text", {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}),
        ("audio", {f"{norm}0": f"{conv}g", f"{norm}1": f"{conv}v"}),
    ):
        folder = tmp_path / section
        MAKERS[section]().save_pretrained(folder)
        renamed = load_file(folder / "model.safetensors")
        before = len(renamed)
        for new, old in changes.items():
            renamed = {name.replace(new, old): array for name, array in renamed.items()}
            assert any(old in name for name in renamed)
        assert len(renamed) == before
        save_file(renamed, folder / "old.safetensors")
        found = [dict(loaded(section, folder / name).parameters_and_names()) for name in ("old.safetensors", "")]
        for name, parameter in found[0].items():
            assert np.array_equal(parameter.asnumpy(), found[1][name].asnumpy()), name


def test_report_names_what_is_taken_missing_and_unused(tmp_path: Path) -> None:
    bert(head=True, num_hidden_layers=3).save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    del arrays["bert.encoder.layer.1.output.dense.bias"]
    save_file(arrays, tmp_path / "model.safetensors")
    config = model_config("text", tmp_path)
    encoder = build("text", config)
    report = init_encoder(encoder, config, "text")
    ours = set(dict(encoder.parameters_and_names()))
    assert set(report.taken) | set(report.missing) == ours and not set(report.taken) & set(report.missing)
    assert report.missing == ["transformer.blocks.1.ffn.down.bias"]
    assert "bert.encoder.layer.2.output.dense.bias" in report.unused and "bert.pooler.dense.bias" in report.unused
    shown = str(report)
    assert f"model.text.init_from={tmp_path}" in shown
    assert f"taken: {len(ours) - 1}" in shown and "missing, new: 1" in shown
    assert "transformer.blocks.*.attention.query.weight × 2" in shown


def spoil(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    for section, changes, message in (
        (
            "text",
            {"max_len": 13},
            "embeddings.position_embeddings.weight .12, 16. and .* does not fit model.text's pos",
        ),
        (
            "text",
            {"width": 32},
            r"embeddings.word_embeddings.weight \[31, 16\] does not fit model.text's tokens \[31, 32\]",
        ),
        (
            "image",
            {"patch": 8},
            r"projection.weight \[16, 3, 4, 4\] does not fit model.image's project.weight \[16, 192\]",
        ),
        ("audio", {"position_kernel": 8}, "pos_conv_embed.* does not fit model.audio's positions"),
        ("audio", {"conv_width": 4}, r"conv_layers.0.conv.weight \[8, 1, 10\] does not fit"),
    ):
        folder = tmp_path / section
        if not folder.exists():
            MAKERS[section]().save_pretrained(folder)
        config = model_config(section, folder, **changes)
        encoder = build(section, config)
        before = {name: parameter.asnumpy().copy() for name, parameter in encoder.parameters_and_names()}
        with pytest.raises(PretrainedError, match=message) as caught:
            init_encoder(encoder, config, section)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        for name, parameter in encoder.parameters_and_names():
            assert np.array_equal(before[name], parameter.asnumpy()), "nothing is set"


def test_position_tables_must_be_square_grids(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)

    def cut(arrays: dict[str, np.ndarray]) -> None:
        name = next(name for name in arrays if name.endswith("position_embeddings"))
        arrays[name] = arrays[name][:, :-1].copy()

    spoil(tmp_path, cut)
    with pytest.raises(
        PretrainedError, match=r"position_embeddings \[1, 16, 16\] does not fit model.image's positions"
    ):
        loaded("image", tmp_path)


def test_settings_that_shapes_do_not_show_are_compared(tmp_path: Path) -> None:
    for section, changes, message in (
        ("text", {"heads": 2}, "num_attention_heads=4: set model.text.heads=4"),
        ("text", {"eps": 1e-5}, "layer_norm_eps=1e-12: set model.text.eps=1e-12"),
        ("audio", {"position_groups": 4}, "num_conv_pos_embedding_groups=2: set model.audio.position_groups=2"),
    ):
        folder = tmp_path / section
        MAKERS[section]().save_pretrained(folder)
        with pytest.raises(PretrainedError, match=message):
            loaded(section, folder, **changes)
    MAKERS["text"](hidden_act="relu").save_pretrained(tmp_path / "relu")
    with pytest.raises(PretrainedError, match="hidden_act=relu, only gelu is supported"):
        loaded("text", tmp_path / "relu")
    settings = transformers.RobertaConfig(vocab_size=VOCAB, max_position_embeddings=14, **SIZES)
    transformers.RobertaModel(settings).save_pretrained(tmp_path / "roberta")  # its positions begin at the third
    with pytest.raises(PretrainedError, match="model_type=roberta, only bert is supported"):
        loaded("text", tmp_path / "roberta")


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    bert().save_pretrained(folder)
    with pytest.raises(PretrainedError, match="missing: no such safetensors file, nor a folder with model.safetensors"):
        loaded("text", tmp_path / "missing")
    with pytest.raises(PretrainedError, match="no tensor of a wav2vec2, as encoder.layers.0.attention.q_proj"):
        loaded("audio", folder)
    (folder / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    with pytest.raises(PretrainedError, match=f"its vocab.txt is not model.text.vocab={TEXT.vocab}"):
        loaded("text", folder)
    shutil.copyfile(TEXT.vocab, folder / "vocab.txt")
    loaded("text", folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PretrainedError, match="cannot read .*model.safetensors"):
        loaded("text", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match="holds only a .bin file"):
        loaded("text", folder)
    with pytest.raises(PretrainedError, match="pytorch_model.bin is a .bin file, which can run code when read"):
        loaded("text", folder / "pytorch_model.bin")
    index = folder / "model.safetensors.index.json"
    for content, message in (
        ("{", "cannot read .*index.json"),
        ("[]", "cannot read .*index.json: it holds no JSON object"),
        ('{"weight_map": ["a"]}', "index.json has no weight_map: it is no index of safetensors files"),
    ):
        index.write_text(content, encoding="utf-8")
        for named in (folder, index):
            with pytest.raises(PretrainedError, match=message):
                loaded("text", named)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_git_lfs_pointers_are_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(PretrainedError, match=f"{name}: it is a Git LFS pointer"):
        loaded("text", tmp_path / name)
    with pytest.raises(CheckpointError, match="it is a Git LFS pointer"):
        read_tensors(tmp_path / name)


def write_beside(folder: Path, name: str, content: dict[str, object]) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "mean", "deviation"),
    [
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None, None),
        ({"do_normalize": False}, [0.0] * 3, [1.0] * 3),
    ],
)
def test_pixels_are_normalised_as_their_network_s(
    settings: dict[str, Any], mean: list[float] | None, deviation: list[float] | None, tmp_path: Path
) -> None:
    """The hidden states are those of ViT on pixels with its own mean and deviation."""
    theirs = scrambled(vit())
    theirs.save_pretrained(tmp_path)
    write_beside(tmp_path, "preprocessor_config.json", settings)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    mean, deviation = mean or settings["image_mean"], deviation or settings["image_std"]
    pixels = torch.from_numpy(((image / 255 - mean) / deviation).astype(np.float32)).permute(0, 3, 1, 2)
    expected = theirs(pixels).last_hidden_state[:, 1:].detach().numpy()
    np.testing.assert_allclose(loaded("image", tmp_path)(Tensor(image)).asnumpy(), expected, atol=1e-4)
    write_beside(tmp_path, "preprocessor_config.json", {"do_rescale": False})
    with pytest.raises(PretrainedError, match="does not scale pixels to 0 … 1"):
        loaded("image", tmp_path)


def test_waveforms_of_another_preparation_are_refused(tmp_path: Path) -> None:
    MAKERS["audio"]().save_pretrained(tmp_path)
    write_beside(tmp_path, "preprocessor_config.json", {"do_normalize": True})
    loaded("audio", tmp_path)
    write_beside(tmp_path, "preprocessor_config.json", {"do_normalize": False})
    with pytest.raises(PretrainedError, match="do_normalize=false"):
        loaded("audio", tmp_path)


def test_a_cased_vocabulary_is_refused(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris", *map(str, range(VOCAB - 7))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    write_beside(tmp_path, "tokenizer_config.json", {"do_lower_case": False})
    with pytest.raises(PretrainedError, match="its vocabulary is cased .1 tokens"):
        loaded("text", tmp_path, vocab=str(tmp_path / "vocab.txt"))
    write_beside(tmp_path, "tokenizer_config.json", {"do_lower_case": True})
    loaded("text", tmp_path, vocab=str(tmp_path / "vocab.txt"))
    # bert-base-chinese has the flag and no capitals
    shutil.copyfile(TEXT.vocab, tmp_path / "vocab.txt")
    write_beside(tmp_path, "tokenizer_config.json", {"do_lower_case": False})
    loaded("text", tmp_path)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_read(kind: str, tmp_path: Path) -> None:
    theirs = bert().to(getattr(torch, kind))
    theirs.save_pretrained(tmp_path)
    table = loaded("text", tmp_path).tokens.asnumpy()
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, theirs.embeddings.word_embeddings.weight.detach().float().numpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.text.init_from=x"], "model.text.norm.*the weights of init_from are for norm: post"),
        (["model.image.init_from=x", "model.image.norm=post"], "the weights of init_from are for norm: pre"),
        (["model.image.init_from=x", "model.image.input=region"], "model.image.init_from.*needs input: patch"),
        (["model.audio.init_from=x"], "model.audio.norm.*the weights of init_from are for norm: post"),
        (["model.audio.init_from=x", "model.audio.norm=post"], "model.audio.init_from.*needs input: wav2vec2"),
        (["model.audio.input=wav2vec2", "model.audio.max_frames=1"], "320 samples are fewer than the 400 of one token"),
        (["model.audio.input=wav2vec2", "model.audio.position_groups=5"], "position_groups.*must divide width"),
        (["model.audio.input=wav2vec2", "model.audio.conv_width=0"], "conv_width.*must be positive"),
        (["model.text.eps=0"], "model.text.eps.*must be positive"),
    ],
)
def test_contradictions_in_the_configuration(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("config/model/demo.yaml", settings)


def test_sample_rate_must_be_that_of_the_weights() -> None:
    with pytest.raises(ConfigError, match="sample_rate: init_from needs 16000"):
        replace(AUDIO, init_from="x", sample_rate=8000, max_frames=40)


def test_only_a_new_run_reads_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder's file, over it the checkpoint of train.init_from; --resume asks for neither."""
    config = Config(model=ModelConfig(text=TEXT), train=TrainConfig(output=str(tmp_path / "first"), steps=60))
    config = tiny_dataset(tmp_path / "tiny", 16, config)
    vocab = len(Path(config.model.text.vocab).read_text(encoding="utf-8").split())
    theirs = bert(vocab_size=vocab)
    theirs.save_pretrained(tmp_path / "bert")
    text = replace(config.model.text, init_from=str(tmp_path / "bert"))
    config = replace(config, model=replace(config.model, text=text))

    def tokens(trainer: Trainer) -> np.ndarray:
        return trainer.model.text_encoder.tokens.asnumpy()

    expected = theirs.embeddings.word_embeddings.weight.detach().numpy()
    first = Trainer(config)
    np.testing.assert_array_equal(tokens(first), expected)
    assert f"model.text.init_from={tmp_path / 'bert'}" in capsys.readouterr().out
    first.model.text_encoder.tokens.set_data(Tensor(expected + 1))
    save(first)

    train = replace(config.train, output=str(tmp_path / "second"), init_from=str(first.folder))
    second = Trainer(replace(config, train=train))
    np.testing.assert_array_equal(tokens(second), expected + 1)
    shutil.rmtree(tmp_path / "bert")
    assert capsys.readouterr().out
    np.testing.assert_array_equal(tokens(Trainer(config, resume=True)), expected + 1)
    assert "init_from" not in capsys.readouterr().out

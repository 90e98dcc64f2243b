"""Our encoders are BERT, ViT and wav2vec 2.0: the hidden states of transformers, from the files that it saves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
import transformers
from mindspore import Tensor, nn

from src.checkpoints.layouts import WAV2VEC2
from src.checkpoints.positions import cubic_matrix
from src.checkpoints.pretrained import init_encoder
from src.config import (
    AudioEncoderConfig,
    ImageEncoderConfig,
    ModelConfig,
    TextEncoderConfig,
)
from tests.networks import (
    AUDIO,
    IMAGE,
    POST,
    TEXT,
    VOCAB,
    bert,
    build,
    loaded,
    scrambled,
    vit,
    wav2vec2,
)
from tests.oracles import differentiate, random


def text_batch(length: int, vocab: int = VOCAB) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < np.array([[length], [length // 2], [1]])).astype(np.int32)
    return rng.integers(0, vocab, mask.shape).astype(np.int32), mask


def wave_batch(length: int) -> tuple[np.ndarray, np.ndarray]:
    """int16 [3, length] with zeros behind the end, and the samples of each."""
    samples = np.array([length, length * 2 // 3 + 1, 400], np.int32)
    noise = np.random.default_rng(0).normal(300, 4000, (3, length))
    return np.where(np.arange(length) < samples[:, None], noise, 0).astype(np.int16), samples


def heard(waves: np.ndarray, samples: np.ndarray) -> dict[str, torch.Tensor]:
    """The batch as the feature extractor of transformers hands it to its network."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rows = [wave[:count] / np.float32(32768) for wave, count in zip(waves, samples, strict=True)]
    made = extractor(rows, sampling_rate=16000, padding="max_length", max_length=waves.shape[1], return_tensors="pt")
    return {"input_values": made["input_values"], "attention_mask": made["attention_mask"]}


def pixels(image: np.ndarray) -> torch.Tensor:
    """(B, S, S, 3) uint8 as ViT's processor scales it."""
    return ((torch.from_numpy(image).float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def assert_close(found: np.ndarray, expected: torch.Tensor, tolerance: float = 1e-4, least: float = 0.0) -> None:
    """Relative to the largest expected number, which is taken to be at least ``least``."""
    expected = expected.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(least, np.abs(expected).max())


def compare_text(theirs: torch.nn.Module, ours: nn.Cell, length: int, vocab: int = VOCAB) -> None:
    ids, mask = text_batch(length, vocab)
    expected = theirs(torch.from_numpy(ids).long(), torch.from_numpy(mask)).last_hidden_state
    assert_close(ours(Tensor(ids), Tensor(mask)).asnumpy(), expected)


def compare_image(theirs: torch.nn.Module, ours: nn.Cell, size: int, **options: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    assert_close(ours(Tensor(image)).asnumpy(), theirs(pixels(image), **options).last_hidden_state[:, 1:])


def compare_audio(theirs: torch.nn.Module, ours: nn.Cell, length: int) -> None:
    waves, samples = wave_batch(length)
    given = heard(waves, samples)
    tokens, mask = (x.asnumpy() for x in ours(Tensor(waves), Tensor(samples)))
    expected = theirs(**given).last_hidden_state
    wanted = theirs._get_feature_vector_attention_mask(expected.shape[1], given["attention_mask"])
    assert np.array_equal(mask, wanted.numpy().astype(np.int32))
    assert_close(tokens[mask == 1], expected[wanted])
    # an audio clip that fills its row needs no mask
    assert_close(ours(Tensor(waves[:1]), Tensor(samples[:1]))[0].asnumpy(), theirs(given["input_values"][:1])[0])


@pytest.mark.parametrize("head", [False, True], ids=["plain", "with heads"])
def test_bert(head: bool, tmp_path: Path) -> None:
    theirs = scrambled(bert(head))
    theirs.save_pretrained(tmp_path)
    compare_text(theirs.bert if head else theirs, loaded("text", tmp_path), TEXT.max_len)


@pytest.mark.parametrize("head", [False, True], ids=["plain", "with heads"])
def test_vit(head: bool, tmp_path: Path) -> None:
    theirs = scrambled(vit(head))
    theirs.save_pretrained(tmp_path)
    compare_image(theirs.vit if head else theirs, loaded("image", tmp_path), IMAGE.size)


@pytest.mark.parametrize("head", [False, True], ids=["plain", "with heads"])
def test_wav2vec2(head: bool, tmp_path: Path) -> None:
    theirs = scrambled(wav2vec2(head))
    theirs.save_pretrained(tmp_path)
    compare_audio(theirs.wav2vec2 if head else theirs, loaded("audio", tmp_path), AUDIO.length)


def test_several_files_with_their_index(tmp_path: Path) -> None:
    theirs = scrambled(bert())
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    compare_text(theirs, loaded("text", tmp_path), TEXT.max_len)


@pytest.mark.parametrize("size", [8, 12, 24])
def test_vit_s_positions_are_interpolated(size: int, tmp_path: Path) -> None:
    theirs = scrambled(vit())
    theirs.save_pretrained(tmp_path)
    compare_image(theirs, loaded("image", tmp_path, size=size), size, interpolate_pos_encoding=True)


@pytest.mark.parametrize(("theirs", "ours"), [(14, 24), (14, 7), (5, 3), (1, 4)])
def test_interpolation_is_pytorch_s_bicubic(theirs: int, ours: int) -> None:
    grid, matrix = random(1, 3, theirs, theirs), cubic_matrix(theirs, ours)
    expected = torch.nn.functional.interpolate(torch.from_numpy(grid), (ours, ours), mode="bicubic")
    np.testing.assert_allclose(matrix @ grid[0] @ matrix.T, expected[0].numpy(), atol=1e-5)


def test_wav2vec2_s_gradients(tmp_path: Path) -> None:
    """Of every parameter, padding and hidden tokens included."""
    theirs = scrambled(wav2vec2())
    theirs.save_pretrained(tmp_path)
    ours = loaded("audio", tmp_path)
    waves, samples = wave_batch(AUDIO.length)
    vector = theirs.masked_spec_embed.detach().numpy().reshape(1, 1, -1)
    hidden = np.zeros((3, ours.tokens), np.float32)
    hidden[0, 1:3] = hidden[1, 0] = 1

    class Tokens(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.cell = ours

        def construct(self, waveform, samples, vector):
            tokens, mask = self.cell(waveform, samples, Tensor(hidden), vector)
            return tokens * mask.expand_dims(2).astype(ms.float32)

    output, (of_vector,), gradients = differentiate(
        Tokens(), [waves, samples, vector], (3, ours.tokens, ours.project.outputs)
    )
    given = heard(waves, samples)
    found = theirs(**given, mask_time_indices=torch.from_numpy(hidden).bool()).last_hidden_state
    kept = theirs._get_feature_vector_attention_mask(ours.tokens, given["attention_mask"])
    expected = found * kept[:, :, None]
    (expected * torch.from_numpy(random(*expected.shape))).sum().backward()
    assert_close(output, expected)
    assert_close(of_vector[0, 0], theirs.masked_spec_embed.grad, 1e-3)
    named = {WAV2VEC2.plain(name): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, gradient in gradients.items():
        (source, *_), convert = WAV2VEC2.sources(name.removeprefix("cell."))
        expected = torch.from_numpy(convert([named[source].numpy()], gradient.shape))
        assert_close(gradient, expected, 1e-3, least=1e-2)  # that of a key's bias is zero


BASE: dict[str, Any] = {"width": 768, "layers": 12, "heads": 12, "ffn": 3072}


@pytest.mark.e2e
@pytest.mark.parametrize("section", ["text", "image", "audio"])
def test_at_the_real_base_size(section: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {  # base is what transformers builds by default
        "text": TextEncoderConfig(vocab="config/vocab/bert-base-chinese.txt", max_len=30, **BASE, **POST),
        "image": ImageEncoderConfig(size=224, patch=16, cls_token=True, eps=1e-12, **BASE),
        "audio": AudioEncoderConfig(input="wav2vec2", max_frames=50, norm="post", **BASE),
    }
    config = ModelConfig(**{section: replace(sizes[section], init_from=str(tmp_path))})
    theirs = {
        "text": lambda: transformers.BertModel(transformers.BertConfig(vocab_size=21128)),
        "image": lambda: transformers.ViTModel(transformers.ViTConfig()),
        "audio": lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()),
    }[section]().eval()
    theirs.save_pretrained(tmp_path)
    encoder = build(section, config, 21128)
    report = init_encoder(encoder, config, section)
    assert not report.missing
    with torch.no_grad():
        if section == "text":
            compare_text(theirs, encoder, 30, 21128)
        elif section == "image":
            compare_image(theirs, encoder, 224)
        else:
            compare_audio(theirs, encoder, config.audio.length)
    (tmp_path / "model.safetensors").unlink()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 768

"""train.init_from with larger images, longer texts and audio: tables of positions."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from PIL import Image

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import CheckpointError
from src.checkpoints.positions import resize_grid, resize_line
from src.config import Config, ConfigError, ModelConfig, ObjectivesConfig, WeightsConfig, load_config, to_yaml
from src.data.tokenizer import Tokenizer
from src.demo.captions import write_caption
from src.demo.render import render_png
from src.demo.world import sample_scenes
from src.errors import UserError
from src.files import ROOT
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.image_tokenizer import ImageTokenizer
from src.models.layers import MEMORY_POSITION_STD, POSITION_STD
from src.models.opt import OPT
from src.training.continuation import start_from
from src.training.new_lengths import convert_positions, position_tables
from tests.conftest import tiny_dataset
from tests.oracles import VOCAB, feature_model, random, randomise, tiny_model

LONGER = ("model.text.max_len=9", "model.image.size=16", "model.audio.max_frames=40")
MEMORY = ("text_decoder.memory_positions", "image_decoder.memory_positions")
Start = Callable[..., tuple[nn.Cell, list[str]]]


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy().copy() for name, parameter in cell.parameters_and_names()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, nn.Cell]:
    """A configuration, a checkpoint of its network with weights of no pattern, and that network."""
    folder = tmp_path_factory.mktemp("saved")
    config = tiny_dataset(folder, 4, Config(model=tiny_model()))
    model = build_model(config)
    randomise(model)
    return config, save_checkpoint(folder / "run" / "checkpoints", 1, config, model), model


@pytest.fixture
def start(saved: tuple[Config, Path, nn.Cell], tmp_path: Path) -> Start:
    """Builds a network of other settings from that checkpoint; returns it and what is told."""
    config, folder, _ = saved

    def build(*settings: str) -> tuple[nn.Cell, list[str]]:
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        other = load_config(path, [f"train.init_from={folder}", *settings])
        model = build_model(other)
        return model, start_from(model, other)

    return build


def bicubic(table: np.ndarray, side: int) -> np.ndarray:
    """PyTorch's interpolation of positions [S², D], as ViT's fine-tuning does it: [side², D]."""
    theirs = round(len(table) ** 0.5)
    grid = torch.from_numpy(table.reshape(1, theirs, theirs, -1)).permute(0, 3, 1, 2)
    found = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return found.permute(0, 2, 3, 1).reshape(side * side, -1).numpy()


def other_sizes(model: ModelConfig) -> ModelConfig:
    return replace(
        model,
        text=replace(model.text, max_len=9),
        image=replace(model.image, size=16),
        audio=replace(model.audio, max_frames=40),
        image_tokenizer=replace(model.image_tokenizer, size=16, side=4),
    )


@pytest.mark.parametrize(
    "network", [lambda model: OPT(model, VOCAB), lambda model: ImageTokenizer(model.image_tokenizer)]
)
def test_every_table_that_changes_its_length_is_converted(network: Callable[[ModelConfig], nn.Cell]) -> None:
    small, large = (values(network(model)) for model in (tiny_model(), other_sizes(tiny_model())))
    changed = {name for name in small if small[name].shape != large[name].shape}
    assert changed and changed == position_tables(tiny_model()).keys() & small.keys()


def test_equal_sizes_change_nothing() -> None:
    model = OPT(tiny_model(), VOCAB)
    arrays = values(model)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert convert_positions(arrays, shapes, tiny_model(), tiny_model(), 0) == ({}, [])
    table = random(9, 5)
    assert np.array_equal(resize_grid(table, 9), table) and np.array_equal(resize_line(table, 9), table)


@pytest.mark.parametrize(("size", "side"), [(16, 4), (12, 3), (4, 1)])
def test_image_positions_are_interpolated(
    saved: tuple[Config, Path, nn.Cell], start: Start, size: int, side: int
) -> None:
    before = values(saved[2])
    model, told = start(f"model.image.size={size}")
    found = values(model)
    expected = bicubic(before["image_encoder.positions"][0], side)
    np.testing.assert_allclose(found["image_encoder.positions"][0], expected, atol=1e-5)
    for name in MEMORY:  # [CLS], 7 tokens, 4 patches, 6 tokens of audio
        text, image, audio = np.split(before[name][0], [8, 12])
        np.testing.assert_array_equal(found[name][0, :8], text)
        np.testing.assert_allclose(found[name][0, 8 : 8 + side**2], bicubic(image, side), atol=1e-5)
        np.testing.assert_array_equal(found[name][0, 8 + side**2 :], audio)
    how = f"image 2×2 → {side}×{side} (interpolated)"
    assert told[:-1] == [f"{name}: {how}" for name in ("image_encoder.positions", *MEMORY)]
    converted = {"image_encoder.positions", *MEMORY}
    assert all(np.array_equal(found[name], before[name]) for name in found if name not in converted)


def test_the_grid_of_codes_is_interpolated(saved: tuple[Config, Path, nn.Cell], start: Start) -> None:
    """Positions of a row and of a column, added: the sum on the larger grid is the bicubic one of the sum."""
    before = values(saved[2])
    model, told = start("model.image_tokenizer.size=20", "model.image_tokenizer.side=5")
    found = values(model)
    old, new = (
        tables["image_decoder.row_positions"] + tables["image_decoder.column_positions"] for tables in (before, found)
    )
    assert old.shape == (2, 2, 18) and new.shape == (5, 5, 18)
    np.testing.assert_allclose(new.reshape(25, 18), bicubic(old.reshape(4, 18), 5), atol=1e-5)
    assert told[0] == "image_decoder.row_positions: codes 2 → 5 (interpolated)"


def test_an_image_tokenizer_reads_larger_images(saved: tuple[Config, Path, nn.Cell], tmp_path: Path) -> None:
    config = replace(saved[0], task="image_tokenizer")
    old = build_model(config)
    randomise(old)
    place = save_checkpoint(tmp_path / "checkpoints", 1, config, old)
    sizes = replace(config.model.image_tokenizer, size=12, side=3)
    other = replace(
        config,
        model=replace(config.model, image_tokenizer=sizes),
        train=replace(config.train, init_from=str(place)),
    )
    model = build_model(other)
    told = start_from(model, other)
    for part in ("encoder", "decoder"):
        expected = bicubic(values(old)[f"{part}.positions"][0], 3)
        np.testing.assert_allclose(values(model)[f"{part}.positions"][0], expected, atol=1e-5)
        assert f"{part}.positions: image 2×2 → 3×3 (interpolated)" in told


def test_texts_and_audio_keep_their_places(saved: tuple[Config, Path, nn.Cell], start: Start) -> None:
    before = values(saved[2])
    model, told = start(*LONGER[::2])
    found = values(model)
    for name, old in (("text_encoder", 7), ("text_decoder", 7), ("audio_encoder", 6)):
        table = found[f"{name}.positions"]
        np.testing.assert_array_equal(table[:, :old], before[f"{name}.positions"])
        assert 0.1 < table[:, old:].std() < 0.6, "as new tables are"
    new = [found[f"{name}_encoder.positions"][0, old, 0] for name, old in (("text", 7), ("audio", 6))]
    new += [found[name][0, 8, 0] for name in MEMORY]
    deviations = np.array([POSITION_STD, POSITION_STD, MEMORY_POSITION_STD, MEMORY_POSITION_STD])
    assert np.diff(np.sort(new / deviations)).min() > 1e-3, "each table has numbers of its own"
    memory = found[MEMORY[0]][0]
    np.testing.assert_array_equal(memory[:8], before[MEMORY[0]][0, :8])
    np.testing.assert_array_equal(memory[10:20], before[MEMORY[0]][0, 8:])
    assert 0.5 < memory[[8, 9, 20, 21, 22, 23]].std() < 2
    assert told[0] == "text_encoder.positions: text 7 → 9 (the first 7 kept, 2 new)"
    assert f"{MEMORY[0]}: text 7 → 9 (the first 7 kept, 2 new), audio 6 → 10 (the first 6 kept, 4 new)" in told
    shorter, told = start("model.text.max_len=5")
    np.testing.assert_array_equal(values(shorter)["text_encoder.positions"], before["text_encoder.positions"][:, :5])
    assert told[0] == "text_encoder.positions: text 7 → 5 (the first 5 kept)"


def read(model: OPT, text_len: int, frames: int) -> dict[str, np.ndarray]:
    """What a network makes of two samples that fit the shorter lengths: two texts, two images, two audio clips."""
    rng = np.random.default_rng(0)
    ids, mask = np.zeros((2, text_len), np.int32), np.zeros((2, text_len), np.int32)
    audio = np.zeros((2, frames, 4), np.uint8)
    ids[:, :7], mask[:, :7] = rng.integers(5, VOCAB, (2, 7)), 1
    audio[:, :24] = rng.integers(1, 256, (2, 24, 4))
    image = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    text_ids, text_mask = Tensor(ids), Tensor(mask)
    text = model.text_encoder(text_ids, text_mask)
    patches, image_mask = model.encode_image((Tensor(image),))
    heard, audio_mask = model.audio_encoder(Tensor(audio), Tensor(np.array([24, 17], np.int32)))
    presence = Tensor(np.ones((2, 3), np.int32))
    fused, fused_mask = model.cross_encoder(text, patches, heard, text_mask, image_mask, audio_mask, presence)
    logits = model.text_decoder(Tensor(ids[:, :7]), fused, fused_mask)
    codes = Tensor(rng.integers(0, 9, (2, 4), np.int32))
    return {
        "text": model.embed_text(text, text_mask).asnumpy(),
        "audio": model.embed_audio(heard, audio_mask).asnumpy(),
        "text decoder": logits.asnumpy(),
        "image decoder": model.image_decoder(model.image_decoder.shift(codes), fused, fused_mask).asnumpy(),
    }


def test_what_fitted_before_is_read_as_before(saved: tuple[Config, Path, nn.Cell], start: Start) -> None:
    model, _ = start(*LONGER[::2])
    before, after = read(saved[2], 7, 24), read(model, 9, 40)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.text.width=18", *LONGER], r"tensor text_encoder\.\S+ of .* is \[.*\], the model's is \["),
        (
            ["model.image.patch=2", *LONGER],
            r"tensor image_encoder.project.weight of .* is \[24, 48\], ",
        ),
        (["model.text.layers=2", *LONGER], r"tensor text_encoder.transformer.blocks.1.\S+ is not in "),
        (["model.image_tokenizer.codes=8"], r"tensor (image_decoder|masked_code_head)\.\S+ of .* is \["),
        (["model.text.heads=1", *LONGER], "its text_encoder has model.text.heads=2, here it is 1"),
        (["model.audio.stride=2", *LONGER], "its audio_encoder has model.audio.stride=4, here it is 2"),
    ],
    ids=["width", "patch", "layers", "codes", "heads", "stride"],
)
def test_what_does_not_fit_is_refused_by_name(start: Start, settings: list[str], says: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=says) as error:
        start(*settings)
    assert "\n" not in str(error.value)


def test_another_number_of_regions_is_no_other_size(saved: tuple[Config, Path, nn.Cell], tmp_path: Path) -> None:
    config = replace(saved[0], model=replace(feature_model(), text=saved[0].model.text))
    place = save_checkpoint(tmp_path / "checkpoints", 1, config, build_model(config))
    image = replace(config.model.image, regions=6)
    other = replace(config, model=replace(config.model, image=image), train=replace(config.train, init_from=str(place)))
    with pytest.raises(UserError, match=r"tensor (text|image)_decoder.memory_positions of .* is \[1, 19, 20\]"):
        start_from(build_model(other), other)


def test_images_of_twice_the_side_are_ranked_as_before(tmp_path: Path) -> None:
    """The bundled checkpoint on 64 scenes, before any training. By chance a text finds 0.016 of them first."""
    bundled = ROOT / "pretrained" / "opt_demo"
    scenes = sample_scenes("demo_full", "test", 64, 5)
    captions = [write_caption(scene) for scene in scenes]
    right = np.array([[asked == other for other in captions] for asked in captions])
    config, model = load_model(bundled)
    encoded = [Tokenizer(config.model.text.vocab).encode(caption, config.model.text.max_len) for caption in captions]
    ids, mask = (Tensor(np.stack(column)) for column in zip(*encoded, strict=True))
    texts = model.embed_text(model.text_encoder(ids, mask), mask).asnumpy()

    def recall(model: OPT, size: int) -> float:
        """Share of texts whose image comes first, of images enlarged to ``size`` pixels a side."""
        opened = [Image.open(io.BytesIO(render_png(scene))).convert("RGB") for scene in scenes]
        pixels = np.stack([np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in opened])
        tokens, here = model.encode_image((Tensor(pixels),))
        ranked = texts @ model.embed_image(tokens, here).asnumpy().T
        return float(right[np.arange(len(texts)), ranked.argmax(1)].mean())

    before = recall(model, 64)
    larger = replace(
        config,
        model=replace(config.model, image=replace(config.model.image, size=128)),
        objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0)),  # mvm_code needs a code for each patch
        train=replace(config.train, init_from=str(bundled)),
    )
    model = build_model(larger)
    start_from(model, larger)
    after = recall(model, 128)
    table = model.image_encoder.positions
    table.set_data(Tensor(np.random.default_rng(0).normal(0, 0.3, table.shape), ms.float32))
    anew = recall(model, 128)
    assert before >= 0.98 and after >= 0.93 and anew <= after - 0.05, (before, after, anew)

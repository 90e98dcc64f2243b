"""model.image.resize has one effect in every place that turns a file into pixels, and what depends on it is refused."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import mindspore as ms
import numpy as np
import pytest
from conftest import png
from mindspore import Tensor
from PIL import Image
from test_image_tokenizer import filled

from src.checkpoints.checkpoint import read_config, save_checkpoint, write_model
from src.checkpoints.files import MODEL, VOCAB
from src.config import AugmentConfig, Config, ConfigError, ImageEncoderConfig, Resize
from src.data.errors import DataError
from src.data.image import decode_image, open_rgb, place, read_part
from src.data.image_codes import open_codes, tokenizer_fingerprint, write_codes
from src.data.images import ImageLoader
from src.data.pipeline import Loader
from src.data.prepare.media import read_row
from src.data.prepare.rows import Row
from src.data.regions import load_regions
from src.data.store import Dataset
from src.data.tokenizer import SPECIALS, Tokenizer
from src.data.writer import DatasetWriter
from src.evaluation.sheets import Sheets
from src.export.export import describe_preprocessing
from src.files import digest
from src.inference import features, gallery, media
from src.inference.engine import Engine
from src.inference.image_codes import Encode, encode_split
from src.models.build import build_model
from src.training.continuation import check_init, check_resume
from tests.oracles import randomise, tiny_model

ROOT = Path(__file__).parent.parent
MODES = get_args(Resize)
# of a landscape, a portrait, a square and one that is stored smaller; the last two have an alpha channel
SIZES = {"wide": (48, 20, 3), "tall": (25, 50, 3), "even": (32, 32, 4), "large": (90, 30, 4)}


def with_resize(config: Config, resize: str, **data: Any) -> Config:
    model = replace(config.model, image=replace(config.model.image, resize=resize))
    return replace(config, model=model, data=replace(config.data, **data))


def row(file: Path) -> Row:
    return Row(str(file), 1, file.stem, image=file, captions=("猫",))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (width, height, channels) in SIZES.items():
        colours = rng.integers(0, 256, (6, 6, channels), np.uint8)
        Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Config:
    """A dataset that was prepared from the files, with images of at most 64 pixels."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *"横竖猫狗"]) + "\n", encoding="utf-8")
    model = tiny_model()
    model = replace(model, image=replace(model.image, patch=2))  # so small that some show nothing but a bar
    config = Config(model=replace(model, text=replace(model.text, vocab=str(folder / "vocab.txt"))))
    with DatasetWriter(folder / "data", model.audio, {}) as writer:
        for file in files:
            writer.add("train", read_row(row(file), file.read_bytes(), config.model, 64))
    return replace(config, data=replace(config.data, path=str(folder / "data"), batch_size=len(files)))


def sides(config: Config) -> tuple[int, int]:
    """Of the squares of the image encoder and of the image tokenizer."""
    return config.model.image.size, config.model.image_tokenizer.size


@pytest.mark.parametrize("resize", MODES)
def test_training_evaluation_tokenizer_figures_and_queries_see_the_same_pixels(
    config: Config, files: list[Path], tmp_path: Path, resize: Resize
) -> None:
    config = with_resize(config, resize)
    size, grid = sides(config)
    records = {record.key: record for record in Dataset(config.data.path, "train").read(range(len(files)))}
    wanted = {key: decode_image(record.image, size, resize, key) for key, record in records.items()}
    loader = Loader(config, "train")
    ((batch, _, names),) = loader.evaluation(len(files))
    assert {key: image.tobytes() for (key, _), image in zip(names, batch["image"], strict=True)} == {
        key: image.tobytes() for key, image in wanted.items()
    }
    batches = loader.batches()
    trained = next(batches)
    batches.close()
    assert {image.tobytes() for image in trained["image"]} == {image.tobytes() for image in wanted.values()}
    ((batch, _, names),) = ImageLoader(config, "train").evaluation(len(files))
    for (key, _), image in zip(names, batch["image"], strict=True):
        assert np.array_equal(image, decode_image(records[key].image, grid, resize, key))
    shown = Sheets(loader, tmp_path)
    for sample, (record, _, _) in enumerate(loader.dataset.samples):
        key = list(records)[record]
        assert np.array_equal(shown.media(sample).image, wanted[key])
    for file in files:
        for found in (media.read_file(file, config.model), media.read_query(str(file), config.model)):
            if file.stem == "large":  # it was made smaller before it was brought into the square
                assert np.abs(found.content.astype(int) - wanted[file.stem]).mean() < 4
            else:
                assert np.array_equal(found.content, wanted[file.stem]), (
                    "a query is what training sees of the same file"
                )


def test_files_of_images_are_opened_in_one_room() -> None:
    """Any other place would have rules of its own; the demo opens the sheet of sprites that it draws with."""
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "src").rglob("*.py")}
    opening = {name for name, text in sources.items() if re.search(r"\bImage\.open\(|\bimread\(", text)}
    assert opening == {"src/data/image.py", "src/demo/render.py"}


def test_the_ways_differ_where_an_image_is_no_square(config: Config, files: list[Path]) -> None:
    found = {resize: [media.read_file(file, with_resize(config, resize).model) for file in files] for resize in MODES}
    for at, file in enumerate(files):
        different = len({found[resize][at].content.tobytes() for resize in MODES})
        assert different == (1 if file.stem == "even" else 3), file.stem


def test_a_prepared_dataset_holds_whole_images_and_fits_every_way(config: Config, files: list[Path]) -> None:
    for file in files:
        stored = {
            read_row(row(file), file.read_bytes(), with_resize(config, resize).model, 64).image for resize in MODES
        }
        assert len(stored) == 1
        size = open_rgb(stored.pop(), "").size
        assert size == ((64, 21) if file.stem == "large" else SIZES[file.stem][:2]), file.stem


@pytest.mark.parametrize("resize", MODES)
def test_augmentation_sees_it_in_training(config: Config, resize: Resize) -> None:
    """A mirrored view is the mirror of what evaluation sees; no image here has bars of unequal width beside it."""
    config = with_resize(config, resize, augment=AugmentConfig(flip=1.0))
    batches = Loader(config, "train").batches()
    views = {image.tobytes() for image in next(batches)["image"]}
    batches.close()
    ((batch, _, _),) = Loader(config, "train").evaluation(4)
    mirrored = {np.ascontiguousarray(image[:, ::-1]).tobytes() for image in batch["image"]}
    assert views == mirrored


@pytest.fixture(scope="module")
def tokenizer(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A network with random weights, and its run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    task = replace(config, task="image_tokenizer")
    model = filled(config.model.image_tokenizer)
    save_checkpoint(folder / "checkpoints", 1, task, model)
    return model.set_train(False), folder


@pytest.fixture
def coded(config: Config, tokenizer: tuple[Any, Path], tmp_path: Path) -> Callable[[str], Config]:
    """Makes codes of a copy of the dataset; returns a configuration that reads them."""
    model, run = tokenizer

    def make(resize: str) -> Config:
        shutil.copytree(config.data.path, tmp_path / "data", dirs_exist_ok=True)
        made = with_resize(config, resize, path=str(tmp_path / "data"), codes=str(run))
        datasets = {"train": Dataset(made.data.path, "train")}
        codes = {"train": encode_split(Encode(model), datasets["train"], made.model, 4)}
        write_codes(tmp_path / "data", made.model, tokenizer_fingerprint(run), datasets, codes)
        return made

    return make


def test_codes_are_of_the_squares_that_training_sees(
    coded: Callable[[str], Config], tokenizer: tuple[Any, Path]
) -> None:
    found = {}
    for resize in MODES:
        config = coded(resize)
        found[resize] = np.array(open_codes(Dataset(config.data.path, "train"), config))
        ((batch, _, _),) = ImageLoader(config, "train").evaluation(4)
        np.testing.assert_array_equal(found[resize], tokenizer[0].encode(Tensor(batch["image"])).asnumpy())
    assert len({codes.tobytes() for codes in found.values()}) == len(MODES)


def test_codes_of_other_squares_are_refused(coded: Callable[[str], Config]) -> None:
    for made in MODES:
        config = coded(made)
        assert json.loads((Path(config.data.path) / "codes.json").read_text())["resize"] == made
        for asked in MODES:
            if asked == made:
                Loader(with_resize(config, asked), "train").open_codes()
                continue
            with pytest.raises(DataError) as raised:
                Loader(with_resize(config, asked), "train").open_codes()
            message = str(raised.value)
            assert f"resize={made}, model.image.resize is {asked}: change the config, or make codes" in message
            assert "codes.json" in message and "\n" not in message


def test_codes_without_a_word_about_it_are_of_crops(coded: Callable[[str], Config]) -> None:
    config = coded("crop")
    path = Path(config.data.path) / "codes.json"
    about = json.loads(path.read_text())
    del about["resize"]
    path.write_text(json.dumps(about))
    open_codes(Dataset(config.data.path, "train"), config)
    with pytest.raises(DataError, match="resize=crop, model.image.resize is squash"):
        open_codes(Dataset(config.data.path, "train"), with_resize(config, "squash"))


def test_an_earlier_checkpoint_reads_crops(tmp_path: Path) -> None:
    for folder in ("opt_demo", "opt_demo/tokenizer"):
        written = (ROOT / "pretrained" / folder / "config.yaml").read_text(encoding="utf-8")
        earlier = written.replace("    resize: crop\n", "")
        assert earlier != written
        (tmp_path / "config.yaml").write_text(earlier, encoding="utf-8")
        assert read_config(tmp_path).model.image.resize == "crop"


def test_a_run_keeps_it_and_another_run_is_told(config: Config, tokenizer: tuple[Any, Path], tmp_path: Path) -> None:
    place = save_checkpoint(tmp_path, 1, with_resize(config, "pad"), build_model(config))
    assert read_config(place).model.image.resize == "pad"
    with pytest.raises(ConfigError, match=r"--resume: model\.image\.resize is 'crop', but 'pad' in"):
        check_resume(config, place)
    check_resume(with_resize(config, "pad"), place)
    for shared, told in (({"image_encoder"}, True), ({"text_encoder"}, False)):
        found = check_init(config, place, shared)
        assert [line.partition(" ")[2] for line in found] == [
            "was trained with model.image.resize=pad, here it is crop"
        ] * told
        assert check_init(with_resize(config, "pad"), place, shared) == []
    task = replace(config, task="image_tokenizer")
    own = tokenizer[1] / "checkpoints" / "step-00000001"
    assert check_init(task, own, {"encoder"}) == []
    assert "model.image.resize=crop, here it is squash" in check_init(with_resize(task, "squash"), own, {"encoder"})[0]


def test_an_index_belongs_to_it_and_earlier_ones_to_crops(config: Config, tmp_path: Path) -> None:
    write_model(tmp_path, config, build_model(config))
    marks = {resize: gallery.fingerprint_of(tmp_path, with_resize(config, resize).model) for resize in MODES}
    assert len(set(marks.values())) == len(MODES)
    settings = asdict(config.model)
    del settings["text"]["vocab"], settings["image"]["resize"]  # what there was before
    whole = json.dumps(settings, sort_keys=True) + digest(tmp_path / MODEL) + digest(tmp_path / VOCAB)
    assert marks["crop"] == hashlib.sha256(whole.encode()).hexdigest()


def test_embeddings_of_a_query_follow_it(config: Config, files: list[Path]) -> None:
    model = build_model(config)
    randomise(model, spread=0.3)
    model.set_train(False)
    found = {}
    for resize in MODES:
        own = with_resize(config, resize)
        read = [media.read_file(file, own.model) for file in files]
        found[resize] = Engine(own, model).encode(read).embeddings
    even = [file.stem for file in files].index("even")
    for resize in ("pad", "squash"):
        apart = np.abs(found[resize] - found["crop"]).max(1)
        assert apart[even] < 1e-6 and np.delete(apart, even).min() > 1e-3


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize(("width", "height"), [(240, 100), (100, 240), (200, 200), (37, 53), (5000, 3)])
def test_boxes_of_patches_lie_where_their_pixels_come_from(width: int, height: int, resize: Resize) -> None:
    """An image whose colour says where it is: red to the right, green downwards."""
    side, patch = 64, 8
    red, green = np.broadcast_arrays(np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None])
    image = np.rint(np.stack([red, green, np.full_like(red, 10)], 2)).astype(np.uint8)
    square = decode_image(png(image), side, resize, "p").astype(float)
    placed = place(read_part(width, height, resize), side, resize)
    boxes = features.patch_boxes(placed, width, height, side // patch)
    patches = square.reshape(8, patch, 8, patch, 3).swapaxes(1, 2).reshape(64, -1, 3)
    seen = 0
    for pixels, (x1, y1, x2, y2) in zip(patches, boxes.tolist(), strict=True):
        inside = np.abs(pixels[:, 2] - 10) <= 3  # not on a bar
        assert inside.any() == (x2 > x1 and y2 > y1)
        assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height
        if inside.any():
            seen += 1
            across, down = pixels[inside][:, :2].mean(0)
            middle = (x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5
            assert abs(across - middle[0] * 255 / (width - 1)) < 3, (x1, x2)
            assert abs(down - middle[1] * 255 / (height - 1)) < (3 if height > 3 else 130), (y1, y2)
    areas = ((boxes[:, 2:] - boxes[:, :2]).prod(1)).sum()
    part = placed.part
    assert areas == pytest.approx((part[2] - part[0]) * (part[3] - part[1]), rel=1e-4), "all that is read, once"
    assert seen == 64 or resize == "pad"


def test_extracted_regions_are_those_of_the_image(
    config: Config, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide image of 48 × 20: of its padded square the patches that show nothing of it are left out."""
    monkeypatch.setattr(features, "setup", lambda *_: None)  # this process has begun already
    lines = [json.dumps({"id": file.stem, "image": file.name, "caption": "猫"}) for file in files]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = build_model(config)
    size, patch = config.model.image.size, config.model.image.patch
    for resize in MODES:
        own, out = with_resize(config, resize), tmp_path / resize
        (out / "run").mkdir(parents=True)
        write_model(out / "run", own, model)
        features.extract_features(
            tmp_path / "manifest.jsonl", out / "made", out / "run", media=files[0].parent, only="image"
        )
        for file in files:
            regions = load_regions(out / "made" / "regions" / f"{file.stem}.png.npz", config.model.image.width)
            width, height, _ = SIZES[file.stem]
            assert (regions.width, regions.height) == (width, height)
            placed = place(read_part(width, height, resize), size, resize)
            boxes = features.patch_boxes(placed, width, height, size // patch)
            shown = (boxes[:, 2:] > boxes[:, :2]).all(1)
            assert np.array_equal(regions.boxes, boxes[shown])
            assert shown.all() == (resize != "pad" or file.stem == "even")
            image = decode_image(file.read_bytes(), size, resize, "")[None]
            tokens = model.set_train(False).encode_image((ms.Tensor(image),))[0].asnumpy()[0]
            np.testing.assert_allclose(regions.features, tokens[shown], rtol=4e-3, atol=4e-3)
            assert (regions.box_vectors()[:, 6] > 0).all()


def test_a_folder_of_features_that_was_begun_earlier_goes_on(config: Config, tmp_path: Path) -> None:
    model = build_model(config)
    features.claim(tmp_path, model, config.model, ["image"])
    image = config.model.image
    kept = [f"{one.name}={getattr(image, one.name)!r}" for one in fields(ImageEncoderConfig) if one.name != "resize"]
    found = hashlib.sha256(f"ImageEncoderConfig({', '.join(kept)})".encode())  # what there was before
    for name, parameter in model.image_encoder.parameters_and_names():
        found.update(name.encode() + parameter.asnumpy().tobytes())
    assert json.loads((tmp_path / "features.json").read_text())["image"] == found.hexdigest()
    with pytest.raises(DataError, match="features of another image encoder"):
        features.claim(tmp_path, model, with_resize(config, "pad").model, ["image"])


def test_an_export_says_it(config: Config) -> None:
    said = {}
    for resize in MODES:
        model = with_resize(config, resize).model
        found = describe_preprocessing(model, Tokenizer(model.text.vocab))["image"]
        assert found["resize"] == resize and "white" in found["transparency"]
        said[resize] = found["geometry"]
    assert "centre kept" in said["crop"] and "(128, 128, 128)" in said["pad"] and "both sides" in said["squash"]

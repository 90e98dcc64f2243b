"""Codes of images beside the shards: made once, read by record, refused when they are stale."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import edit_info, tiny_dataset, unlisted
from mindspore import Tensor
from test_image_tokenizer import C, filled, settings

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import CheckpointError
from src.config import Config, ModelConfig, ObjectivesConfig, WeightsConfig
from src.data.errors import DataError
from src.data.image import decode_image
from src.data.image_codes import code_type, open_codes, tokenizer_fingerprint, write_codes
from src.data.pipeline import Loader
from src.data.schema import IMAGE, batch_fields, check_batch
from src.data.store import Dataset
from src.inference import image_codes
from src.inference.image_codes import Encode, encode_split
from src.inference.loading import load_model
from src.models.image_tokenizer import ImageTokenizer
from src.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.fixture(scope="module")
def model() -> ImageTokenizer:
    return filled().set_train(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model) -> Config:
    """A configuration of pre-training on a dataset with codes; its tokenizer's run stands beside it."""
    folder = tmp_path_factory.mktemp("codes")
    config = tiny_dataset(folder, config=settings())
    save_checkpoint(folder / "run" / "checkpoints", 3, config, model)
    data = Path(config.data.path)
    datasets = {name: Dataset(data, name) for name in ("train", "dev")}
    fingerprint = tokenizer_fingerprint(folder / "run")
    codes = {name: encode_split(Encode(model), dataset, config.model, 5) for name, dataset in datasets.items()}
    write_codes(data, config.model, fingerprint, datasets, codes)
    return replace(config, task="pretrain", data=replace(config.data, codes=str(folder / "run")))


@pytest.fixture
def copied(made, tmp_path) -> Config:
    """The same on a copy that a test may spoil."""
    shutil.copytree(Path(made.data.path).parent, tmp_path / "all")
    data = replace(made.data, path=str(tmp_path / "all" / "data"), codes=str(tmp_path / "all" / "run"))
    return replace(made, data=data)


def test_a_dataset_that_cannot_be_written_is_told_before_anything_is_encoded(copied, monkeypatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr(image_codes, "require_writable", refuse)
    monkeypatch.setattr(image_codes, "encode_split", lambda *_: pytest.fail("hours of work"))
    with pytest.raises(OSError, match="Read-only file system"):
        image_codes.make_codes(Path(copied.data.path), Path(copied.data.codes))


def refused(config: Config, error: type[ValueError] = DataError) -> str:
    with pytest.raises(error) as raised:
        open_codes(Dataset(config.data.path, "train"), config)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_every_image_has_the_codes_that_the_model_gives_it(made, model):
    dataset = Dataset(made.data.path, "train")
    codes = open_codes(dataset, made)
    assert codes.shape == (dataset.records, C) and codes.dtype == np.int16
    assert not list(Path(made.data.path).glob(".*"))
    for row, record in zip(codes, dataset.read(range(dataset.records)), strict=True):
        if record.image is None:
            assert (row == -1).all()
        else:
            pixels = decode_image(record.image, 16, "crop", "image")[None]
            np.testing.assert_array_equal(row, model.encode(Tensor(pixels)).asnumpy()[0])
    assert (codes[:, 0] == -1).any() and len(np.unique(codes)) > 3


def test_the_loader_hands_them_out_by_record(made):
    loader = Loader(made, "train")
    loader.open_codes()
    codes = open_codes(loader.dataset, made)
    batches = loader.batches()
    batch = next(batches)
    batches.close()
    check_batch(batch, batch_fields(made.model, len(batch["sample_id"]), made.objectives.masking.ratio))
    records = loader.dataset.samples[batch["sample_id"], 0]
    np.testing.assert_array_equal(batch["image_codes"], codes[records])
    np.testing.assert_array_equal(batch["image_codes"][:, 0] >= 0, batch["presence"][:, IMAGE] == 1)


def test_there_are_none_unless_they_are_asked_for(made):
    loader = Loader(made, "train")
    batches = loader.batches()
    assert (next(batches)["image_codes"] == -1).all()
    batches.close()


def test_a_training_needs_those_that_its_objectives_read(copied, tmp_path):
    train = replace(copied.train, output=str(tmp_path / "new"), steps=2, eval_every=0)
    image = replace(copied.model.image, patch=copied.model.image.size // copied.model.image_tokenizer.side)
    model = replace(copied.model, masked_features=True, image_codes=True, image=image)
    config = replace(copied, model=model, train=train, optimizer=replace(copied.optimizer, warmup_steps=0))

    def training(**weights):
        objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, **weights))
        return Trainer(replace(config, objectives=objectives))

    def codes(trainer):
        batches = trainer.loader.batches()
        batch = next(batches)
        batches.close()
        return batch["image_codes"]

    assert (codes(training(mvm_code=1.0)) >= 0).any()
    (Path(copied.data.path) / "codes.json").unlink()
    for name in ("mvm_code", "denoise_image"):
        with pytest.raises(DataError, match="holds no image codes"):
            training(**{name: 1.0})
    assert (codes(training(mlm=1.0)) == -1).all()


def test_no_codes_and_no_tokenizer_are_named(copied):
    shutil.move(copied.data.codes, copied.data.codes + "-moved")
    assert "no checkpoint in" in refused(copied, CheckpointError)
    (Path(copied.data.path) / "codes.json").unlink()
    message = refused(copied)
    assert "holds no image codes" in message and "python tools/make_image_codes.py --data" in message


def test_another_tokenizer_is_refused(copied):
    folder = Path(copied.data.codes)
    shutil.rmtree(folder)
    config = replace(copied, task="image_tokenizer")
    save_checkpoint(folder / "checkpoints", 3, config, filled(seed=1))
    assert "tokenizer" in refused(copied) and "run python tools/make_image_codes.py" in refused(copied)


def test_settings_belong_to_the_fingerprint(copied):
    before = tokenizer_fingerprint(copied.data.codes)
    path = Path(copied.data.codes) / "checkpoints" / "step-00000003" / "config.yaml"
    unlisted(path.parent)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("heads: 2", "heads: 4"), encoding="utf-8")
    assert tokenizer_fingerprint(copied.data.codes) != before
    path.write_text(text.replace("task: image_tokenizer", "task: pretrain"), encoding="utf-8")
    with pytest.raises(DataError, match="is a checkpoint of task=pretrain"):
        tokenizer_fingerprint(copied.data.codes)


def test_shards_that_were_made_again_are_refused(copied):
    folder = Path(copied.data.path)
    info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    info["splits"]["train"]["shards"][0]["files"][0]["sha256"] = "0" * 64
    edit_info(folder, info)
    assert "split 'train' was written again after its codes" in refused(copied)


def test_a_grid_that_is_not_the_models_is_refused(made):
    model = replace(made.model, image_tokenizer=replace(made.model.image_tokenizer, codes=99))
    assert "codes=12, model.image_tokenizer.codes is 99" in refused(replace(made, model=model))


@pytest.mark.parametrize("damage", ["cut", "gone", "another code", "no json", "half a json"])
def test_damage_is_named(copied, damage):
    folder = Path(copied.data.path)
    path = folder / ("codes.json" if "json" in damage else "codes-train.npy")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "another code":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.write_text("{" if damage == "no json" else "{}", encoding="utf-8")
    assert path.name in refused(copied)


def test_a_kill_leaves_no_codes_rather_than_those_of_two_tokenizers(copied, monkeypatch):
    dataset = Dataset(copied.data.path, "train")
    codes = {"train": np.zeros((dataset.records, C), np.int16)}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("src.data.image_codes.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_codes(Path(copied.data.path), ModelConfig(), "new", {"train": dataset}, codes)
    assert "holds no image codes" in refused(copied)


def test_the_type_holds_every_code():
    assert code_type(512) is np.int16 and code_type(1 << 15) is np.int16 and code_type((1 << 15) + 1) is np.int32
    assert np.array([(1 << 15) - 1]).astype(code_type(1 << 15))[0] == (1 << 15) - 1


@pytest.mark.e2e
def test_the_command_writes_what_the_loader_reads(copied):
    folder = Path(copied.data.path)
    before = np.load(folder / "codes-train.npy")
    for path in folder.glob("codes*"):
        path.unlink()
    command = [
        *(sys.executable, str(ROOT / "tools" / "make_image_codes.py")),
        *("--data", str(folder), "--checkpoint", copied.data.codes),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(open_codes(Dataset(folder, "train"), copied), before)
    found = {code for path in folder.glob("codes-*.npy") for code in np.unique(np.load(path)).tolist()}
    assert -1 in found, "a record has no image"
    assert f", {len(found) - 1} of {copied.model.image_tokenizer.codes} codes in use" in done.stdout
    done = subprocess.run([*command[:-1], str(folder)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: no checkpoint in")


def test_a_damaged_record_has_no_codes(made, copied, capsys):
    """As a record without an image; more than data.max_bad of them are an error."""
    data = Path(copied.data.path)
    dataset = Dataset(data, "train")
    whole = np.load(data / "codes-train.npy")
    number = int(np.flatnonzero((whole >= 0).all(1))[1])
    (record,) = dataset.read([number])
    path = data / "train-00000.mindrecord"
    content = bytearray(path.read_bytes())
    content[content.index(record.image) + len(record.image) // 2] ^= 1
    path.write_bytes(content)
    model = load_model(copied.data.codes)[1]
    found = encode_split(Encode(model), Dataset(data, "train"), copied.model, 5, max_bad=1)
    assert (found[number] == -1).all() and np.array_equal(np.delete(found, number, 0), np.delete(whole, number, 0))
    assert f"no codes: {data}/train-00000.mindrecord" in capsys.readouterr().out
    with pytest.raises(DataError, match="more than data.max_bad=0 records"):
        encode_split(Encode(model), Dataset(data, "train"), copied.model, 5)

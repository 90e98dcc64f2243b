"""What a run takes from a checkpoint: network, vocabulary and image tokenizer, where shapes do not tell them apart."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.checkpoints import checkpoint
from src.checkpoints.checkpoint import load_checkpoint_config, save_checkpoint
from src.checkpoints.places import locate
from src.config import Config, ConfigError, load_config, to_yaml
from src.data.errors import DataError
from src.data.image_codes import tokenizer_fingerprint
from src.data.tokenizer import SPECIALS
from src.models.build import build_model
from src.training.continuation import check_init, check_resume, describe_changes, resume_place
from tests.conftest import tiny_dataset
from tests.oracles import randomise, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A checkpoint of a network that generates image codes, and its configuration."""
    folder = tmp_path_factory.mktemp("continuation")
    config = tiny_dataset(folder, 8, Config(model=tiny_model()))
    tokenizers = []
    for seed in (1, 2):
        task = replace(config, task="image_tokenizer")
        model = build_model(task)
        randomise(model, seed)
        tokenizers.append(save_checkpoint(folder / f"tokenizer-{seed}" / "checkpoints", 1, task, model))
    config = replace(config, data=replace(config.data, codes=str(folder / "tokenizer-1")))
    assert tokenizer_fingerprint(tokenizers[0]) != tokenizer_fingerprint(tokenizers[1])
    return config, save_checkpoint(folder / "run" / "checkpoints", 1, config, build_model(config))


def changed(config: Config, tmp_path: Path, *settings: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return load_config(path, settings)


def swapped_vocabulary(config: Config, tmp_path: Path) -> Config:
    """The same tokens, two of them in each other's rows."""
    tokens = Path(config.model.text.vocab).read_text(encoding="utf-8").split("\n")
    tokens[8], tokens[9] = tokens[9], tokens[8]
    (tmp_path / "swapped.txt").write_text("\n".join(tokens), encoding="utf-8")
    return changed(config, tmp_path, f"model.text.vocab={tmp_path / 'swapped.txt'}")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        "model.cross.heads=1",
        "model.text.norm=post",
        "model.image.eps=1e-12",
        "model.image.size=16",
        "model.text.max_len=9",
        "model.audio.max_frames=48",
        "seed=2",
        "optimizer.name=muon",
        "optimizer.freeze=[scale]",
        "optimizer.layer_decay=0.5",
    ],
)
def test_resume_keeps_network_and_seed(saved: tuple[Config, Path], tmp_path: Path, setting: str) -> None:
    config, folder = saved
    check_resume(config, folder)
    message = refused(lambda: check_resume(changed(config, tmp_path, setting), folder))
    assert message.startswith(f"--resume: {setting.partition('=')[0]} is "), message


def test_resume_takes_what_may_change(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    copied = tmp_path / "copied.txt"
    shutil.copyfile(config.model.text.vocab, copied)
    settings = ["model.text.dropout=0.1", "optimizer.lr=0.5", "train.steps=9", "data.batch_size=3", "train.init_from=x"]
    check_resume(changed(config, tmp_path, *settings, f"model.text.vocab={copied}"), folder)


def test_resume_keeps_vocabulary_and_image_tokenizer(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    message = refused(lambda: check_resume(swapped_vocabulary(config, tmp_path), folder))
    assert message.startswith(
        f"--resume: model.text.vocab={tmp_path / 'swapped.txt'} is not the vocabulary of {folder}"
    )
    assert "line 9: " in message
    other = str(Path(config.data.codes).with_name("tokenizer-2"))
    message = refused(lambda: check_resume(changed(config, tmp_path, f"data.codes={other}"), folder))
    assert message.startswith(f"--resume: data.codes={other} is another image tokenizer")
    check_resume(changed(config, tmp_path, f"data.codes={locate(config.data.codes)}"), folder)


def test_resume_refuses_what_is_no_vocabulary(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    path = tmp_path / "gbk.txt"
    path.write_bytes("\n".join([*SPECIALS, "你"]).encode("gbk"))
    with pytest.raises(DataError, match=rf"^{path}: the vocabulary is not UTF-8 text$"):
        check_resume(changed(config, tmp_path, f"model.text.vocab={path}"), folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path}: no such vocabulary file"):
        check_resume(changed(config, tmp_path, f"model.text.vocab={path}"), folder)


def test_init_from_compares_shared_parts_alone(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    shared = {"text_encoder", "cross_encoder"}
    assert check_init(config, folder, shared) == []
    for key, value in (("model.text.heads", 1), ("model.cross.norm", "post")):
        theirs = {"model.text.heads": config.model.text.heads, "model.cross.norm": "pre"}[key]
        message = refused(lambda: check_init(changed(config, tmp_path, f"{key}={value}"), folder, shared))  # noqa: B023
        assert message.endswith(f"has {key}={theirs}, here it is {value}: set {key}={theirs}"), message
    check_init(changed(config, tmp_path, "model.image.heads=1", "seed=2", "optimizer.name=muon"), folder, shared)


@pytest.mark.parametrize("setting", ["sample_rate=8000", "hop_ms=10", "window_ms=20", "mels=8", "stride=2"])
def test_init_from_keeps_the_units_of_audio(saved: tuple[Config, Path], tmp_path: Path, setting: str) -> None:
    """What a place of the audio encoder's input stands for; how many places there are may change."""
    config, folder = saved
    key = f"model.audio.{setting.partition('=')[0]}"
    other = changed(config, tmp_path, f"model.audio.{setting}")
    message = refused(lambda: check_init(other, folder, {"audio_encoder"}))
    assert f"its audio_encoder has {key}=" in message, message
    assert check_init(other, folder, {"text_encoder"}) == []
    assert check_init(changed(config, tmp_path, "model.audio.max_frames=48"), folder, {"audio_encoder"}) == []


def test_init_from_keeps_the_kind_of_input(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    regions = changed(config, tmp_path, "model.image.input=region")
    message = refused(lambda: check_init(regions, folder, {"image_encoder"}))
    assert message.endswith("has model.image.input=patch, here it is region: set model.image.input=patch")


def test_init_from_tells_another_image_tokenizer(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    other = changed(config, tmp_path, f"data.codes={Path(config.data.codes).with_name('tokenizer-2')}")
    assert check_init(other, folder, {"image_encoder"}) == []
    (told,) = check_init(other, folder, {"image_decoder"})
    assert "the codes of another image tokenizer" in told


def test_an_image_tokenizer_that_is_gone_is_not_another_one(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    gone = changed(config, tmp_path, f"data.codes={tmp_path / 'gone'}")
    check_resume(gone, folder)
    assert check_init(gone, folder, {"image_decoder"}) == []


def test_what_changed_is_told_as_it_is_written(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    told = describe_changes(config, folder, {"ranks": 2}, 2)
    assert told == ""
    settings = ["data.sources=[{path: a, weight: 2}, {path: b}]", "data.path=", "optimizer.freeze=[scale]"]
    told = describe_changes(changed(config, tmp_path, *settings), folder, {"ranks": 1}, 2)
    sources = [{"path": "a", "weight": 2.0}, {"path": "b", "weight": 1.0}]
    assert f"data.path: {config.data.path} → ''" in told and f"data.sources: [] → {sources}" in told
    assert "optimizer.freeze: [] → ['scale']" in told and told.endswith(", ranks: 1 → 2")


def test_a_checkpoint_carries_its_image_tokenizer(saved: tuple[Config, Path], tmp_path: Path) -> None:
    """A copy is evaluated with the same codes where the folder of data.codes is gone."""
    config, folder = saved
    shutil.copytree(folder, tmp_path / "copy")
    found = load_checkpoint_config(tmp_path / "copy")
    assert found.data.codes == str(tmp_path / "copy" / "tokenizer")
    assert tokenizer_fingerprint(found.data.codes) == tokenizer_fingerprint(config.data.codes)
    assert checkpoint.parts_of(tmp_path / "copy") >= {"text_encoder", "image_decoder"}
    gone = replace(config, data=replace(config.data, codes=str(tmp_path / "gone")))
    place = save_checkpoint(tmp_path / "checkpoints", 1, gone, build_model(config))
    assert not (place / "tokenizer").exists()


@pytest.mark.parametrize("gone", [False, True])
def test_later_checkpoints_carry_the_image_tokenizer_of_the_first(
    saved: tuple[Config, Path], tmp_path: Path, gone: bool
) -> None:
    """Its codes are learned, also where another one is trained in its folder meanwhile, or it is removed."""
    config, _ = saved
    first, other = (Path(config.data.codes).with_name(f"tokenizer-{number}") for number in (1, 2))
    moving = tmp_path / "tokenizer"
    shutil.copytree(first, moving)
    config = replace(config, data=replace(config.data, codes=str(moving)))
    model = build_model(config)
    save_checkpoint(tmp_path / "checkpoints", 1, config, model)
    shutil.rmtree(moving)
    if not gone:
        shutil.copytree(other, moving)
    second = save_checkpoint(tmp_path / "checkpoints", 2, config, model, keep=1)
    assert tokenizer_fingerprint(second / "tokenizer") == tokenizer_fingerprint(str(first))
    assert tokenizer_fingerprint(second / "tokenizer") != tokenizer_fingerprint(str(other))


def test_a_checkpoint_of_cut_epochs_goes_on_in_its_epoch(saved: tuple[Config, Path]) -> None:
    """Earlier versions took full steps only: where an epoch has two, step 3 is the first of the second epoch."""
    config, folder = saved
    size = config.data.batch_size
    loader = SimpleNamespace(ranks=1, order=SimpleNamespace(size=2 * size + 2))
    assert resume_place({"step": 3}, folder, loader) == {"position": 3 * size + 2, "postponed": []}
    loader = SimpleNamespace(ranks=2, order=SimpleNamespace(size=2 * size + 2))
    assert resume_place({"step": 3}, folder, loader) == {"position": 3 * (2 * size + 2), "postponed": []}

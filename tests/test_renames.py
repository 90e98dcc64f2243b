"""Checkpoints of earlier versions: their configuration is read as it was meant; a user's old keys are errors."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from src.checkpoints.checkpoint import load_checkpoint_config, read_config
from src.checkpoints.renames import RENAMED, rename
from src.config import ConfigError, load_config
from src.data.image_codes import tokenizer_fingerprint

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests" / "data" / "old_config.yaml"  # that of pretrained/opt_demo, as an earlier version wrote it
LATER = {
    "runtime.recompute": False,
    "runtime.shard_optimizer": False,
    "train.accumulate": 1,
    "train.ema_decay": 0.0,
    "train.max_bad_steps": 1,
    "train.log_samples": True,
    "train.wandb": "",
    "train.best_metric": "",
    "train.patience": 0,
    "train.stop_on_eval_error": False,
    "model.image.resize": "crop",
    "data.max_unknown": 0.2,
    "data.max_bad": 100,
    "eval.rerank.tuned_on": "",
    "objectives.self_critical.samples": 5,
    "eval.reconstruction.max_items": 0,
    "eval.zero_shot.path": "",
    "eval.zero_shot.given": "image",
    "eval.zero_shot.templates": "",
    "eval.zero_shot.names": "",
    "model.answers": "",
    "objectives.answer.head": "classify",
    "objectives.answer.given": ["text+image", "image+audio"],
    "eval.vqa.max_items": 0,
}
BUNDLED = ROOT / "pretrained" / "opt_demo"


def flat(mapping: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in mapping.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copyfile(OLD, tmp_path / "config.yaml")
    return tmp_path


def change(folder: Path, **settings: object) -> None:
    """Changes old keys of a checkpoint: section__key."""
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    for name, value in settings.items():
        *sections, key = name.split("__")
        place = content
        for section in sections:
            place = place[section]
        place[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_every_old_key_has_a_place(folder: Path) -> None:
    old = flat(yaml.safe_load(OLD.read_text(encoding="utf-8")))
    assert RENAMED.keys() <= old.keys(), "the table renames what there was"
    today = flat(asdict(read_config(folder)))
    renamed = {key: list(value) if isinstance(value, tuple) else value for key, value in rename(old).items()}
    today = {key: list(value) if isinstance(value, tuple) else value for key, value in today.items()}
    assert renamed == {key: today[key] for key in renamed}
    # what came later, or was off
    assert {key: today[key] for key in today.keys() - renamed.keys()} == LATER


def test_the_bundled_checkpoint_is_written_in_todays_keys() -> None:
    assert load_config(BUNDLED / "config.yaml") == read_config(BUNDLED)
    content = yaml.safe_load((BUNDLED / "config.yaml").read_text(encoding="utf-8"))
    assert content == yaml.safe_load(yaml.safe_dump(rename_nested(OLD)))


def rename_nested(path: Path) -> dict:
    """A file in today's keys; the default of what came later is added."""
    nested: dict = {}
    renamed = rename(flat(yaml.safe_load(path.read_text(encoding="utf-8"))))
    for key, value in (renamed | LATER).items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def test_one_setting_became_two(folder: Path) -> None:
    change(folder, eval__captions=7)
    config = load_checkpoint_config(folder)
    assert (config.eval.caption.max_items, config.eval.transcript.max_items) == (7, 7)


@pytest.mark.parametrize(("samples", "task"), [(0, "caption"), (4, "self_critical")])
def test_a_captioner_that_was_refined_is_of_another_task(folder: Path, samples: int, task: str) -> None:
    change(folder, task="caption", objectives__self_critical=samples, objectives__denoise_given=["image"])
    config = read_config(folder)
    assert config.task == task and config.objectives.self_critical.samples == (samples or 5)


def test_overrides_have_todays_keys_alone(folder: Path) -> None:
    assert load_checkpoint_config(folder, ["eval.rerank.top_k=3"]).eval.rerank.top_k == 3
    with pytest.raises(ConfigError, match=r"unknown key eval.captions=3 in command line"):
        load_checkpoint_config(folder, ["eval.captions=3"])


def test_a_users_file_is_not_renamed(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text("eval: {gallery: 7}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key eval.gallery=7 .*did you mean eval.retrieval.gallery_size"):
        load_checkpoint_config(folder, config_file=path)
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(folder / "config.yaml")


def test_an_image_tokenizer_keeps_its_fingerprint(tmp_path: Path) -> None:
    """Codes that are stored beside shards name it."""
    place = tmp_path / "tokenizer"
    shutil.copytree(BUNDLED / "tokenizer", place)
    today = "ad3ac382d6ef843853c0c0c422bdcb6a378c80636d28dc241dde8c53d12d9f1a"  # as the version before computed it
    assert tokenizer_fingerprint(place) == today
    content = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
    content["model"]["tokenizer"] = content["model"].pop("image_tokenizer")
    (place / "config.yaml").write_text(yaml.safe_dump({"name": "old"} | content, sort_keys=False), encoding="utf-8")
    assert tokenizer_fingerprint(place) == today

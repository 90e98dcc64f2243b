"""Configuration: every shipped file, every kind of mistake, no key that nothing reads."""

import ast
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from src.config import COLOURS, OBJECTIVES, Config, ConfigError, SourceConfig, load_config, to_yaml

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path for path in (ROOT / "config").rglob("*.yaml"))


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    """The message, which is one line."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert "\n" not in message and 0 < len(message) < 300
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_file_loads_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, to_yaml(config))) == config
    assert (ROOT / config.model.text.vocab).is_file()


def test_files_are_shipped() -> None:
    names = {str(path.relative_to(ROOT / "config")) for path in SHIPPED}
    assert {"model/demo.yaml", "pretrain/demo.yaml"} <= names


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_resolved_yaml_holds_every_key(tmp_path: Path) -> None:
    def keys(cls: type, prefix: str = "") -> set[str]:
        found = set()
        for name, kind in get_type_hints(cls).items():
            found |= keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else {f"{prefix}{name}"}
        return found

    def written(mapping: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, value in mapping.items():
            found |= written(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
        return found

    assert written(yaml.safe_load(to_yaml(Config()))) == keys(Config)


def test_base_is_relative_to_the_file_and_its_keys_lose(tmp_path: Path) -> None:
    """A file's own keys win over its parents', the command line over all, the last override over the first."""
    write(tmp_path, "seed: 1\nname: root\ndata: {batch_size: 2, workers: 3}", "model/root.yaml")
    write(tmp_path, "base: root.yaml\nname: middle\nseed: 2", "model/middle.yaml")
    path = write(tmp_path, "base: ../model/middle.yaml\ndata: {batch_size: 5}", "pretrain/run.yaml")
    config = load_config(path)
    assert (config.seed, config.name, config.data.batch_size, config.data.workers) == (2, "middle", 5, 3)
    assert load_config(path, ["data.batch_size=7", "data.batch_size=8"]).data.batch_size == 8


def test_base_that_leads_back(tmp_path: Path) -> None:
    write(tmp_path, "base: two.yaml", "one.yaml")
    write(tmp_path, "base: three.yaml", "two.yaml")
    path = write(tmp_path, "base: one.yaml", "three.yaml")
    assert "leads back" in refused(path)
    assert "leads back" in refused(write(tmp_path, "base: self.yaml", "self.yaml"))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert "absent.yaml" in refused(tmp_path / "absent.yaml") and "No such file" in refused(tmp_path / "absent.yaml")
    assert "absent.yaml" in refused(write(tmp_path, "base: absent.yaml"))
    assert str(tmp_path) in refused(tmp_path), "a folder"
    for text in ("a: [1", "- 1\n- 2", "just words"):
        assert "run.yaml" in refused(write(tmp_path, text))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "binary.yaml" in refused(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("data.batchsize", "data.batch_size"),
        ("optimizer.learning_rate", ""),
        ("lr", "optimizer.lr"),
        ("batch_size", "batch_size"),
        ("model.txt.width", "model.text.width"),
        ("modle.text.width", "model.text.width"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, wrong: str, near: str) -> None:
    section, _, name = wrong.rpartition(".")
    nested: Any = {name: 1}
    for part in reversed([part for part in section.split(".") if part]):
        nested = {part: nested}
    path = write(tmp_path, yaml.safe_dump(nested))
    message = refused(path)
    assert f"unknown key {wrong}=1" in message and str(path) in message
    assert near in message and (not near or "did you mean" in message)
    assert f"unknown key {wrong}=1 in command line" in refused(write(tmp_path, ""), f"{wrong}=1")


@pytest.mark.parametrize("wrong", ["model=demo", "data={}", "objectives=1"])
def test_a_section_is_not_a_key(tmp_path: Path, wrong: str) -> None:
    assert "unknown key" in refused(write(tmp_path, ""), wrong)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=true", "a whole number, not bool"),
        ("seed=1.0", "a whole number, not float"),
        ("seed=one", "a whole number, not str"),
        ("seed=", "a whole number, not str"),
        ("seed=[1]", "a whole number, not list"),
        ("seed={a: 1}", "a whole number, not dict"),
        ("optimizer.lr=true", "a number, not bool"),
        ("optimizer.lr=fast", "a number, not str"),
        ("optimizer.lr=", "a number, not str"),
        ("name=3", "text, not int"),
        ("runtime.distributed=1", "true or false, not int"),
        ("runtime.distributed='False'", "true or false, not str"),
        ("runtime.device=cpu", "one of CPU, GPU, Ascend"),
        ("runtime.mode=[graph]", "one of graph, pynative"),
        ("model.text.norm=middle", "one of pre, post"),
        ("objectives.denoise_given=image", "a list"),
        ("objectives.denoise_given=[1]", "text, not int"),
    ],
)
def test_a_wrong_type_names_key_value_and_source(tmp_path: Path, override: str, says: str) -> None:
    message = refused(write(tmp_path, ""), override)
    assert override.partition("=")[0] + "=" in message and says in message and "command line" in message


def test_a_wrong_type_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    parent = write(tmp_path, "train: {steps: many}", "parent.yaml")
    message = refused(write(tmp_path, "base: parent.yaml\nseed: 3"))
    assert "train.steps='many'" in message and str(parent) in message


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0.0), ("1", 1.0), ("1e-3", 1e-3), ("1.5e-3", 1.5e-3), ("'2'", 2.0), (".5", 0.5)]
)
def test_numbers_that_pass_as_floats(tmp_path: Path, text: str, value: float) -> None:
    """YAML reads ``1e-3`` as text and ``0`` as an int."""
    config = load_config(write(tmp_path, f"objectives: {{mlm: {text}}}"))
    assert config.objectives.mlm == value and isinstance(config.objectives.mlm, float)
    assert load_config(write(tmp_path, ""), [f"objectives.mlm={text}"]) == config


def test_booleans_are_booleans(tmp_path: Path) -> None:
    for text, value in (("false", False), ("False", False), ("true", True), ("no", False)):
        assert load_config(write(tmp_path, ""), [f"runtime.distributed={text}"]).runtime.distributed is value


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("model.text.heads=3", "model.text.heads=3", "must divide width=128"),
        ("model.text.width=0", "model.text.width=0", "positive"),
        ("model.cross.layers=-1", "model.cross.layers=-1", "positive"),
        ("model.audio.dropout=1", "model.audio.dropout=1.0", "[0, 1)"),
        ("model.audio.dropout=nan", "model.audio.dropout", "finite"),
        ("model.text.max_len=3", "model.text.max_len=3", "at least 4"),
        ("model.image.patch=7", "model.image.patch=7", "must divide size=64"),
        ("model.image.patch=0", "model.image.patch=0", "must divide"),
        ("model.audio.stride=7", "model.audio.stride=7", "must divide max_frames"),
        ("model.embed_dim=0", "model.embed_dim=0", "positive"),
        ("data.batch_size=0", "data.batch_size=0", "positive"),
        ("data.augment.crop_scale=[0.5]", "data.augment.crop_scale=(0.5,)", "[least, most]"),
        ("data.augment.crop_scale=[0, 1]", "data.augment.crop_scale=(0.0, 1.0)", "[least, most]"),
        ("data.augment.crop_scale=[1, 0.5]", "data.augment.crop_scale=(1.0, 0.5)", "[least, most]"),
        ("data.augment.crop_aspect=0.5", "data.augment.crop_aspect=0.5", "at least 1"),
        ("data.augment.flip=1.5", "data.augment.flip=1.5", "[0, 1]"),
        ("data.augment.contrast=2", "data.augment.contrast=2.0", "[0, 1]"),
        ("data.augment.time_masks=-1", "data.augment.time_masks=-1", "not be negative"),
        ("data.augment.time_share=0", "data.augment.time_share=0.0", "(0, 1]"),
        ("objectives.mlm=-1", "objectives.mlm=-1.0", "not be negative"),
        ("objectives.contrastive=0", "objectives", "one weight must be positive"),
        ("objectives.token_fraction=0", "objectives.token_fraction=0.0", "(0, 1]"),
        ("objectives.mask_ratio=1", "objectives.mask_ratio=1.0", "(0, 1)"),
        ("objectives.label_smoothing=1", "objectives.label_smoothing=1.0", "[0, 1)"),
        ("objectives.denoise_given=[]", "objectives.denoise_given=()", "list out of"),
        ("objectives.denoise_given=[text]", "objectives.denoise_given=('text',)", "list out of"),
        ("optimizer.lr=0", "optimizer.lr=0.0", "positive"),
        ("optimizer.min_lr=1", "optimizer.min_lr=1.0", "between 0 and lr"),
        ("optimizer.warmup_steps=1000", "optimizer.warmup_steps=1000", "below train.steps=1000"),
        ("optimizer.layer_decay=0", "optimizer.layer_decay=0.0", "(0, 1]"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0", "[0, 1)"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm=0.0", "positive"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1", "negative"),
        ("optimizer.eps=0", "optimizer.eps=0.0", "positive"),
        ("optimizer.lr=.nan", "optimizer.lr", "finite"),
        ("optimizer.lr=inf", "optimizer.lr", "finite"),
        ("optimizer.weight_decay=nan", "optimizer.weight_decay", "finite"),
        ("train.steps=0", "train.steps=0", "positive"),
        ("train.output=''", "train.output=''", "must name a folder"),
        ("train.eval_every=-1", "train.eval_every=-1", "not be negative"),
        ("eval.gallery=-1", "eval.gallery=-1", "not be negative"),
        ("seed=-1", "seed=-1", "not be negative"),
        ("model.image.layers=0", "model.image.layers=0", "positive"),
        ("model.image.regions=0", "model.image.regions=0", "positive"),
        ("model.audio.feature_dim=0", "model.audio.feature_dim=0", "positive"),
        ("model.audio.layers=-1", "model.audio.layers=-1", "positive"),
        ("model.text.layers=-1", "model.text.layers=-1", "not be negative"),
        ("model.image.input=pixel", "model.image.input='pixel'", "one of patch, region"),
        ("objectives.mvm_class=1", "objectives.mvm_class", "needs model.masked_features=true"),
        ("task=swim", "task='swim'", "one of pretrain"),
        ("task=caption", "objectives.denoise_text", "task=caption needs it"),
        ("runtime.precision=fp8", "runtime.precision='fp8'", "one of fp32, fp16, bf16"),
    ],
)
def test_an_impossible_value_names_key_value_and_reason(tmp_path: Path, override: str, key: str, says: str) -> None:
    message = refused(write(tmp_path, ""), override)
    assert key in message and says in message, message


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("objectives: {mvm_class: 1}", "objectives.mvm_class", "needs model.image.input=region"),
        ("model: {image: {input: region}}\nobjectives: {mvm_code: 1}", "objectives.mvm_code", "input=patch"),
        ("model: {image: {input: region}}\neval: {draw: 5}", "eval.draw", "needs model.image.input=patch"),
    ],
)
def test_objectives_of_another_input_are_refused(tmp_path: Path, text: str, key: str, says: str) -> None:
    message = refused(write(tmp_path, text), "model.masked_features=true", "model.image_codes=true")
    assert key in message and says in message, message


def test_an_impossible_combination_of_defaults_says_so(tmp_path: Path) -> None:
    """The culprit may be a default that the file never named."""
    path = write(tmp_path, "train: {steps: 10}")
    assert "optimizer.warmup_steps in the defaults: must be below train.steps=10" in refused(path)


SOURCES = "data: {sources: [{path: one, weight: 3}, {path: two}]}"


def test_a_list_of_mappings_is_a_list_of_sources(tmp_path: Path) -> None:
    path = write(tmp_path, SOURCES)
    config = load_config(path)
    assert config.data.sources == (SourceConfig("one", 3.0), SourceConfig("two", 1.0))
    assert config.data.mixture == (("one", 3.0), ("two", 1.0))
    assert load_config(write(tmp_path, to_yaml(config), "again.yaml")) == config
    other = load_config(path, ["data.sources=[{path: three, weight: 1e-3}]"])
    assert other.data.sources == (SourceConfig("three", 1e-3),), "a list is replaced, not merged"
    assert load_config(path, ["data.sources=[]", "data.path=four"]).data.mixture == (("four", 1.0),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("one", "data.sources='one' in command line: must be a list"),
        ("[one]", "data.sources[0]='one' in command line: must be a mapping of path, weight"),
        (
            "[{path: one}, {path: two, wieght: 2}]",
            "unknown key data.sources[1].wieght=2 in command line; did you mean data.sources[1].weight?",
        ),
        ("[{path: one, weight: {of: 2}}]", "unknown key data.sources[0].weight.of=2 in command line"),
        ("[{path: one, weight: heavy}]", "data.sources[0].weight='heavy' in command line: must be a number, not str"),
        ("[{path: one, weight: 0}]", "data.sources[0].weight=0.0 in command line: must be positive"),
        ("[{weight: 2}]", "data.sources[0].path in the defaults: every source must name a dataset folder"),
        ("[{path: one}, {path: one}]", "a folder is listed twice: give it one weight"),
    ],
)
def test_a_mistake_in_an_item_is_named_with_its_place(tmp_path: Path, value: str, says: str) -> None:
    assert says in refused(write(tmp_path, ""), f"data.sources={value}")


def test_a_mistake_in_an_item_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SOURCES.replace("weight", "wait"))
    assert f"unknown key data.sources[0].wait=3 in {path}" in refused(path)


def test_one_folder_or_several(tmp_path: Path) -> None:
    message = refused(write(tmp_path, SOURCES), "data.path=three")
    assert "data.sources" in message and "data.path is given too: leave one of the two empty" in message


COMPLETE = """
model: {masked_features: true, image_codes: true}
data: {codes: tokenizer}
objectives: {mvm_code: 1, denoise_image: 1}
"""


@pytest.mark.parametrize("setting", ["crop_scale=[0.5, 1]", "flip=0.5", "saturation=0.2"])
def test_codes_of_whole_images_do_not_fit_varied_ones(tmp_path: Path, setting: str) -> None:
    """Hidden patches' codes do not; what is drawn is given no image, and varied audio clips leave images alone."""
    path, override = write(tmp_path, COMPLETE), f"data.augment.{setting}"
    assert "objectives.mvm_code=1.0" in refused(path, override) and "crop_scale, flip" in refused(path, override)
    assert load_config(path, [override, "objectives.mvm_code=0"]).data.augment.augments_images
    assert load_config(path, ["data.augment.time_masks=2"]).data.augment.augments_audio


@pytest.mark.parametrize(
    ("given", "override", "says"),
    [
        ("model.image.input=region", "data.augment.flip=0.5", "regions cannot be varied"),
        ("model.audio.input=feature", "data.augment.time_masks=1", "SpecAugment is for log-mel frames"),
        ("model.audio.input=wav2vec2", "data.augment.frequency_masks=1", "SpecAugment is for log-mel frames"),
    ],
)
def test_only_pixels_and_log_mels_are_varied(tmp_path: Path, given: str, override: str, says: str) -> None:
    path = write(tmp_path, "")
    message = refused(path, given, override)
    assert says in message and given.partition("=")[0] in message
    load_config(path, [given])


@pytest.mark.parametrize("override", ["seed", "--seed 3", ""])
def test_an_override_is_key_and_value(tmp_path: Path, override: str) -> None:
    assert "is not key=value" in refused(write(tmp_path, ""), override)


def test_an_override_that_is_not_yaml(tmp_path: Path) -> None:
    assert "name=[1 (command line)" in refused(write(tmp_path, ""), "name=[1")


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), ["name=a=b"]).name == "a=b"


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 2  # type: ignore[misc]


def leaves(cls: type) -> list[tuple[str, str]]:
    """(class, field) of every key."""
    found = []
    for name, kind in get_type_hints(cls).items():
        (item, *_) = get_args(kind) or (None,)
        inner = kind if dataclasses.is_dataclass(kind) else item if dataclasses.is_dataclass(item) else None
        found += leaves(inner) if inner else [(cls.__name__, name)]
    return found


@functools.cache
def attributes_read() -> set[str]:
    """Names that any source but the config itself reads as an attribute."""
    sources = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]
    found: set[str] = set()
    for path in sources:
        if path.name != "config.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_load(node)}
    return found


def _is_load(node: ast.Attribute) -> bool:
    """A read that is not of the object's own: ``self.x`` is a Cell's attribute, not a key."""
    own = isinstance(node.value, ast.Name) and node.value.id == "self"
    return isinstance(node.ctx, ast.Load) and not own


@pytest.mark.parametrize(("section", "key"), sorted(set(leaves(Config))))
def test_every_key_is_read(section: str, key: str) -> None:
    # read with getattr, one after the other
    by_list = {"ObjectivesConfig": OBJECTIVES, "AugmentConfig": COLOURS, "EvalConfig": ("rerank_embedding",)}
    is_read = key in attributes_read() or key in by_list.get(section, ())
    assert is_read, f"nothing reads {section}.{key}"


def test_every_field_is_explained() -> None:
    """Names that do not speak for themselves have a comment; a unit or a special value always does."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src" / "config").glob("*.py")))
    for key in ("hop_ms", "stride", "eval_every", "gallery", "rerank", "clip_norm", "token_fraction", "mode"):
        assert re.search(rf"^    {key}: .*  # ", source, re.MULTILINE), f"{key} has no comment"


def test_of_several_bases_the_later_one_wins(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("seed: 2\nname: first\n", encoding="utf-8")
    (tmp_path / "second.yaml").write_text("seed: 3\n", encoding="utf-8")
    (tmp_path / "child.yaml").write_text("base: [first.yaml, second.yaml]\n", encoding="utf-8")
    config = load_config(tmp_path / "child.yaml")
    assert (config.seed, config.name) == (3, "first")


def test_nothing_behind_the_equals_sign_is_empty_text() -> None:
    """What a shell makes of data.path=''."""
    path = ROOT / "config" / "caption" / "demo.yaml"
    assert load_config(path, ["train.init_from="]).train.init_from == ""
    with pytest.raises(ConfigError, match="train.steps='' in command line: must be a whole number"):
        load_config(path, ["train.steps="])

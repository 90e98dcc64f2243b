"""Configuration: every shipped file, every kind of mistake, no key that nothing reads."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from src.config import COLOURS, OBJECTIVES, TASKS, Config, ConfigError, EvalConfig, SourceConfig, load_config, to_yaml
from src.data.image_codes import GRID
from src.inference.rerank import TERMS

ROOT = Path(__file__).parent.parent
SECTIONS = ("text", "image", "audio")  # of model, which init_from is read of
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
    assert Path(config.model.text.vocab).is_file()


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
    write(tmp_path, "seed: 1\ntask: image_tokenizer\ndata: {batch_size: 2, workers: 3}", "model/root.yaml")
    write(tmp_path, "base: root.yaml\ntask: retrieval\nseed: 2", "model/middle.yaml")
    path = write(tmp_path, "base: ../model/middle.yaml\ndata: {batch_size: 5}", "pretrain/run.yaml")
    config = load_config(path)
    assert (config.seed, config.task, config.data.batch_size, config.data.workers) == (2, "retrieval", 5, 3)
    assert load_config(path, ["data.batch_size=7", "data.batch_size=8"]).data.batch_size == 8


def test_base_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path, "seed: 5", "home/mine.yaml")
    assert load_config(write(tmp_path, "base: ~/mine.yaml", "run.yaml")).seed == 5


def test_a_section_of_which_all_is_commented_out_is_the_parents(tmp_path: Path) -> None:
    write(tmp_path, "data: {batch_size: 7}\neval: {decoding: {beam_size: 3}}", "parent.yaml")
    path = write(tmp_path, "base: parent.yaml\ndata:\n#  batch_size: 5\neval:\n  decoding:\nseed: 2", "run.yaml")
    config = load_config(path)
    assert (config.data.batch_size, config.eval.decoding.beam_size, config.seed) == (7, 3, 2)
    assert "unknown key date=None" in refused(write(tmp_path, "date:\n", "other.yaml"))


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
        ("objectives.mlm", "objectives.weights.mlm"),
        ("objectives.denoise_given", "objectives.denoise_text.given"),
        ("objectives.label_smoothing", "objectives.denoise_text.label_smoothing"),
        ("objectives.mask_ratio", "objectives.masking.ratio"),
        ("eval.gallery", "eval.retrieval.gallery_size"),
        ("eval.rerank_likelihood", "eval.rerank.likelihood"),
        ("eval.draw_samples", "eval.image_generation.samples"),
        ("eval.draw_guidance", "eval.image_generation.guidance"),
        ("eval.beam", "eval.decoding.beam_size"),
        ("eval.length_penalty", "eval.decoding.length_penalty"),
        ("data.unique_pictures", "data.unique_images"),
        ("model.tokenizer.codes", "model.image_tokenizer.codes"),
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
        ("runtime.distributed=1", "true or false, not int"),
        ("runtime.distributed='False'", "true or false, not str"),
        ("runtime.device=cpu", "one of CPU, GPU, Ascend"),
        ("runtime.mode=[graph]", "one of graph, pynative"),
        ("model.text.norm=middle", "one of pre, post"),
        ("model.image.resize=stretch", "one of crop, pad, squash"),
        ("objectives.denoise_text.given=image", "a list"),
        ("objectives.denoise_text.given=[1]", "text, not int"),
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
    config = load_config(write(tmp_path, f"objectives: {{weights: {{mlm: {text}}}}}"))
    assert config.objectives.weights.mlm == value and isinstance(config.objectives.weights.mlm, float)
    assert load_config(write(tmp_path, ""), [f"objectives.weights.mlm={text}"]) == config


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
        ("objectives.weights.mlm=-1", "objectives.weights.mlm=-1.0", "not be negative"),
        ("objectives.weights.contrastive=0", "objectives", "one weight must be positive"),
        ("objectives.masking.batch_share=0", "objectives.masking.batch_share=0.0", "(0, 1]"),
        ("objectives.masking.ratio=1", "objectives.masking.ratio=1.0", "(0, 1)"),
        ("objectives.denoise_text.label_smoothing=1", "objectives.denoise_text.label_smoothing=1.0", "[0, 1)"),
        ("objectives.denoise_text.given=[]", "objectives.denoise_text.given=()", "list out of"),
        ("objectives.denoise_text.given=[text]", "objectives.denoise_text.given=('text',)", "list out of"),
        ("optimizer.lr=0", "optimizer.lr=0.0", "positive"),
        ("optimizer.min_lr=1", "optimizer.min_lr=1.0", "between 0 and lr"),
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
        ("eval.retrieval.gallery_size=-1", "eval.retrieval.gallery_size=-1", "not be negative"),
        ("seed=-1", "seed=-1", "not be negative"),
        ("model.image.layers=0", "model.image.layers=0", "positive"),
        ("model.image.regions=0", "model.image.regions=0", "positive"),
        ("model.audio.feature_dim=0", "model.audio.feature_dim=0", "positive"),
        ("model.audio.layers=-1", "model.audio.layers=-1", "positive"),
        ("model.text.layers=-1", "model.text.layers=-1", "not be negative"),
        ("model.image.input=pixel", "model.image.input='pixel'", "one of patch, region"),
        ("objectives.weights.mvm_class=1", "objectives.weights.mvm_class", "needs model.masked_features=true"),
        ("task=swim", "task='swim'", "one of pretrain"),
        ("task=caption", "objectives.weights.denoise_text", "task=caption needs it"),
        ("runtime.precision=fp8", "runtime.precision='fp8'", "one of fp32, fp16, bf16"),
    ],
)
def test_an_impossible_value_names_key_value_and_reason(tmp_path: Path, override: str, key: str, says: str) -> None:
    message = refused(write(tmp_path, ""), override)
    assert key in message and says in message, message


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("objectives: {weights: {mvm_class: 1}}", "objectives.weights.mvm_class", "needs model.image.input=region"),
        ("model: {image: {input: region}}\nobjectives: {weights: {mvm_code: 1}}", "weights.mvm_code", "input=patch"),
        (
            "model: {image: {input: region}}\neval: {image_generation: {max_items: 5}}",
            "eval.image_generation.max_items",
            "needs model.image.input=patch",
        ),
    ],
)
def test_objectives_of_another_input_are_refused(tmp_path: Path, text: str, key: str, says: str) -> None:
    message = refused(write(tmp_path, text), "model.masked_features=true", "model.image_codes=true")
    assert key in message and says in message, message


def test_an_impossible_combination_of_defaults_says_so(tmp_path: Path) -> None:
    """The culprit may be a default that the file never named."""
    path = write(tmp_path, "model: {text: {width: 30}}")
    assert "model.text.heads in the defaults: must divide width=30" in refused(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {path: a}\ntrain: {steps: 5}\ndata: {batch_size: 4}", "data"),
        ("model:\n  text:\n    heads: 2\n    heads: 4", "model.text.heads"),
        ("train.steps: 5\ntrain: {steps: 6}", "train.steps"),
        ("data: {sources: [{path: one, path: two}]}", "data.sources[0].path"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, text)
    message = refused(path)
    assert message.startswith(f"{key} stands twice in {path}"), message


def test_a_key_that_stands_twice_on_the_command_line_is_refused(tmp_path: Path) -> None:
    message = refused(write(tmp_path, ""), "data.sources=[{path: one, weight: 1, weight: 2}]")
    assert message.startswith("[0].weight stands twice in data.sources="), message


def test_anchors_and_merges_are_no_doubles(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  text: &part {heads: 2, ffn: 64}\n  cross: {<<: *part, heads: 8}")
    model = load_config(path).model
    assert (model.text.heads, model.cross.heads, model.cross.ffn) == (2, 8, 64)


def test_null_is_no_path(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {init_from: somewhere}\ndata: {codes: null}")
    config = load_config(path, ["train.init_from=null"])
    assert (config.train.init_from, config.data.codes) == ("", "")
    assert "train.output" in refused(path, "train.output=null")


def test_a_waveform_has_no_stride(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {audio: {stride: 4}}")
    load_config(path, ["model.audio.input=wav2vec2", "model.audio.max_frames=250"])
    assert "must divide max_frames=250" in refused(path, "model.audio.max_frames=250")


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
        ("[{path: one}, {path: ./two/../one/}]", "a folder is listed twice: give it one weight"),
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
objectives: {weights: {mvm_code: 1, denoise_image: 1}}
"""


@pytest.mark.parametrize("setting", ["crop_scale=[0.5, 1]", "flip=0.5", "saturation=0.2"])
def test_codes_of_whole_images_do_not_fit_varied_ones(tmp_path: Path, setting: str) -> None:
    """Those of masked patches do not; a generated image is given none, and augmented audio leaves images alone."""
    path, override = write(tmp_path, COMPLETE), f"data.augment.{setting}"
    assert "objectives.weights.mvm_code=1.0" in refused(path, override) and "crop_scale, flip" in refused(
        path, override
    )
    assert load_config(path, [override, "objectives.weights.mvm_code=0"]).data.augment.augments_images
    assert load_config(path, ["data.augment.time_masks=2"]).data.augment.augments_audio


@pytest.mark.parametrize(
    ("given", "override", "says"),
    [
        ("model.image.input=region", "data.augment.flip=0.5", "regions cannot be augmented"),
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
    assert "optimizer.freeze=[1 (command line)" in refused(write(tmp_path, ""), "optimizer.freeze=[1")


WORDS = ("runs/exp #3", "&a b", "2024", "2026-11-28", "off", "1e3", "a: b", "[1", "'a", "'a' #")


@pytest.mark.parametrize("text", WORDS)
def test_text_on_the_command_line_is_taken_as_it_is(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, ""), [f"data.path={text}", f"train.wandb={text}"])
    assert (config.data.path, config.train.wandb) == (text, text)
    assert f"runtime.device={text!r} in command line: must be one of" in refused(None, f"runtime.device={text}")


@pytest.mark.parametrize("word, text", (("'it''s #3'", "it's #3"), (r'"a\tb"', "a\tb"), ("'null'", "null"), ("''", "")))
def test_quoted_text_on_the_command_line_is_what_is_quoted(tmp_path: Path, word: str, text: str) -> None:
    config = load_config(write(tmp_path, ""), [f"data.path={word}", f"train.wandb={word}"])
    assert (config.data.path, config.train.wandb) == (text, text)


def test_other_values_of_the_command_line_are_yaml_as_files_are(tmp_path: Path) -> None:
    assert "must be text, not int" in refused(write(tmp_path, "data: {path: 2024}"))
    config = load_config(write(tmp_path, ""), ["train.steps=7 # few", "optimizer.freeze=[a, 'b #']"])
    assert (config.train.steps, config.optimizer.freeze) == (7, ("a", "b #"))


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), ["data.path=a=b"]).data.path == "a=b"


# per kind of limit: values that are just allowed, values that are just not, and the keys that it holds of
LIMITS = {
    "a positive number": (
        ("1",),
        ("0", "-1"),
        "train.steps train.log_every train.save_every train.keep_checkpoints train.accumulate train.max_bad_steps "
        "data.batch_size data.workers data.prefetch eval.batch_size eval.retrieval.folds eval.decoding.beam_size "
        "eval.image_generation.samples model.embed_dim model.image.regions model.image.region_dim "
        "model.image.region_classes model.audio.feature_dim model.audio.sample_rate model.audio.mels "
        "model.audio.hop_ms model.audio.window_ms model.audio.stride model.image.ffn "
        "model.cross.layers model.image_tokenizer.code_dim objectives.masking.audio_span",
    ),
    "above zero, however little": (
        ("1e-9",),
        ("0", "-1e-9"),
        "optimizer.lr optimizer.muon_lr optimizer.eps optimizer.clip_norm model.text.eps "
        "objectives.masking.temperature",
    ),
    "zero or more": (
        ("0",),
        ("-1",),
        "seed train.eval_every train.patience optimizer.warmup_steps optimizer.weight_decay data.max_bad "
        "data.augment.time_masks data.augment.frequency_masks eval.retrieval.gallery_size eval.rerank.top_k "
        "eval.rerank.embedding eval.rerank.matching eval.rerank.likelihood "
        "eval.caption.max_items eval.transcript.max_items eval.masked.max_items eval.reconstruction.max_items "
        "eval.image_generation.max_items eval.image_generation.temperature eval.image_generation.top_k "
        "eval.image_generation.guidance eval.decoding.length_penalty eval.decoding.no_repeat_ngram "
        "eval.decoding.min_length eval.decoding.max_length eval.vqa.max_items model.text.layers "
        "model.image_tokenizer.commitment objectives.weights.mlm",
    ),
    "below one": (
        ("0", "0.99"),
        ("1", "-0.01"),
        "train.ema_decay optimizer.beta1 optimizer.beta2 optimizer.muon_momentum model.text.dropout "
        "model.image_tokenizer.ema_decay model.image_tokenizer.revive_below objectives.denoise_text.label_smoothing "
        "objectives.denoise_image.drop_given",
    ),
    "at most one": (
        ("1", "0.01"),
        ("0", "1.01"),
        "optimizer.layer_decay objectives.masking.batch_share data.augment.time_share data.augment.frequency_share",
    ),
    "a share": (("0", "1"), ("-0.01", "1.01"), "data.max_unknown data.augment.flip data.augment.brightness"),
    "between": (("0.01", "0.99"), ("0", "1"), "objectives.masking.ratio"),
    "two or more": (("2",), ("1",), "objectives.self_critical.samples model.image_tokenizer.codes"),
    "room for two tokens": (("4",), ("3",), "model.text.max_len"),
    "one or more": (("1",), ("0.99",), "data.augment.crop_aspect"),
}


@pytest.mark.parametrize(("limit", "key"), [(limit, key) for limit in LIMITS for key in LIMITS[limit][2].split()])
def test_limits(tmp_path: Path, limit: str, key: str) -> None:
    """The last value that is allowed is, the first that is not is refused by its key."""
    allowed, refused, _ = LIMITS[limit]
    path = write(tmp_path, "optimizer: {min_lr: 0}\neval: {decoding: {max_length: 0}}")
    for value in allowed:
        load_config(path, [f"{key}={value}"])
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{re.escape(key)}="):
            load_config(path, [f"{key}={value}"])


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 2  # type: ignore[misc]


class Reads(ast.NodeVisitor):
    """Which keys a source reads, each as (class, field).

    The class of an expression is known from annotations (``config: EvalConfig``), from what is assigned (``settings =
    config.eval``), and from the field that is read of a known class. An expression that is not known, such as
    ``self.config``, is taken for the sections that are called like its last name.
    """

    def __init__(self, root: type) -> None:
        self.classes, self.sections, self.found = {}, {}, set()
        self._collect("config", root)
        self.names: dict[str, set[type]] = {}

    def _collect(self, name: str, cls: type) -> None:
        self.classes[cls.__name__] = cls
        self.sections.setdefault(name, set()).add(cls)
        for field, kind in get_type_hints(cls).items():
            for inner in {kind, *get_args(kind)}:
                if dataclasses.is_dataclass(inner):
                    self._collect(field, inner)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.names = self.names, dict(self.names)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.arg == "self":
                continue
            names = {part.id for part in ast.walk(argument.annotation or argument) if isinstance(part, ast.Name)}
            self.names[argument.arg] = {self.classes[name] for name in names & self.classes.keys()}
        self.generic_visit(node)
        self.names = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    self.names[name.id] = self._class_of(value)
                self.visit(name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(self._class_of(node.value), node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called == "getattr":
            for name in by_name(node.args[1]):
                self._read(self._class_of(node.args[0]), name)
        if called in ("Transformer", "super().__init__") and node.args:  # takes the sizes of any part
            for name in ("width", "layers", "heads", "ffn", "norm", "dropout"):
                self._read(self._class_of(node.args[0]), name)
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        for generator in node.generators:
            if isinstance(generator.target, ast.Name):
                self.names[generator.target.id] = self._class_of(generator.iter)
        self.generic_visit(node)

    def _class_of(self, node: ast.expr) -> set[type]:
        if isinstance(node, ast.Name):
            return self.names.get(node.id) or self.sections.get(node.id, set())
        if isinstance(node, ast.Attribute):
            if owners := self._class_of(node.value):
                return sections_of(owners, (node.attr,))
            return self.sections.get(node.attr, set())
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            return sections_of(self._class_of(node.args[0]), by_name(node.args[1]))
        return set()

    def _read(self, classes: set[type], name: str) -> None:
        for cls in classes:
            if name in cls.__dataclass_fields__:
                self.found |= {(one.__name__, name) for one in cls.__mro__}
            elif isinstance(getattr(cls, name, None), property):  # reads fields of its own
                outer, self.names = self.names, {"self": {cls}}
                self.visit(ast.parse(textwrap.dedent(inspect.getsource(getattr(cls, name).fget))).body[0])
                self.names = outer


def sections_of(classes: set[type], names: Sequence[str]) -> set[type]:
    """The classes of these fields, of a list's items where a field is one."""
    kinds = [get_type_hints(cls).get(name) for cls in classes for name in names]
    return {one for kind in kinds for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)}


def by_name(node: ast.expr) -> tuple[str, ...]:
    """What the second argument of getattr may be: a constant, or a variable that goes through one of these lists."""
    if isinstance(node, ast.Constant):
        return (node.value,)
    variable = ast.unparse(node)
    lists = {"colour": COLOURS, "term": TERMS, "key": GRID, "kind": ("image", "audio"), "section": SECTIONS}
    return lists.get(variable, (*OBJECTIVES, *COLOURS) if variable in ("name", "row.name") else ())


def leaves(cls: type) -> set[tuple[str, str]]:
    """(class, field) of every key."""
    found = set()
    for name, kind in get_type_hints(cls).items():
        inner = [one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)]
        found |= set().union(*map(leaves, inner)) if inner else {(cls.__name__, name)}
    return found


def unread(root: type) -> set[tuple[str, str]]:
    """The keys that no source outside src/config reads."""
    reads = Reads(root)
    for path in [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]:
        if not path.is_relative_to(ROOT / "src" / "config"):
            reads.names = {}
            reads.visit(ast.parse(path.read_text(encoding="utf-8")))
    return leaves(root) - reads.found


def test_every_key_is_read() -> None:
    assert unread(Config) == set()


@pytest.mark.parametrize(
    ("section", "key"), [("eval", "width"), ("objectives.masking", "max_items"), ("data", "samples"), ("", "name")]
)
def test_a_key_that_nothing_reads_is_found(section: str, key: str) -> None:
    """Even one that is called like a key of another section, or like an attribute of something else."""

    def grown(cls: type, names: list[str]) -> type:
        hints = get_type_hints(cls)
        if names:
            changed_kind = grown(hints[names[0]], names[1:])
            changed = [(names[0], changed_kind, dataclasses.field(default_factory=changed_kind))]
        else:
            changed = [(key, int, dataclasses.field(default=0))]
        return dataclasses.make_dataclass(cls.__name__, changed, bases=(cls,), frozen=True)

    root = grown(Config, section.split(".") if section else [])
    assert {found for _, found in unread(root)} == {key}


def test_every_field_is_explained() -> None:
    """Names that do not speak for themselves have a comment; a unit or a special value always does."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src" / "config").glob("*.py")))
    for key in ("hop_ms", "stride", "eval_every", "gallery_size", "top_k", "clip_norm", "batch_share", "mode"):
        assert re.search(rf"^    {key}: .*  # ", source, re.MULTILINE), f"{key} has no comment"


def test_of_several_bases_the_later_one_wins(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("seed: 2\ntask: retrieval\n", encoding="utf-8")
    (tmp_path / "second.yaml").write_text("seed: 3\n", encoding="utf-8")
    (tmp_path / "child.yaml").write_text("base: [first.yaml, second.yaml]\n", encoding="utf-8")
    config = load_config(tmp_path / "child.yaml")
    assert (config.seed, config.task) == (3, "retrieval")


def test_nothing_behind_the_equals_sign_is_empty_text() -> None:
    """What a shell makes of data.path=''."""
    path = ROOT / "config" / "caption" / "demo.yaml"
    assert load_config(path, ["train.init_from="]).train.init_from == ""
    with pytest.raises(ConfigError, match="train.steps='' in command line: must be a whole number"):
        load_config(path, ["train.steps="])


def test_a_path_of_a_shipped_file_is_the_repositorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any current folder; paths that do not begin with a folder of the repository stay relative to it."""
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "config" / "pretrain" / "demo.yaml")
    assert config.model.text.vocab == str(ROOT / "config" / "vocab" / "demo.txt")
    assert (config.data.path, config.train.output) == ("runs/demo/data", "runs/demo/pretrain")
    assert Path(Config().model.text.vocab).is_file(), "a default ships, too"


def test_a_path_of_a_user_is_relative_to_the_current_folder(tmp_path: Path) -> None:
    """In a file of one's own and on the command line, but not what a shipped parent says."""
    shipped = ROOT / "config" / "pretrain" / "demo.yaml"
    path = write(tmp_path, f"base: {shipped}\ntrain: {{init_from: pretrained/mine}}\ndata: {{path: config/x}}")
    config = load_config(path, ["data.eval_path=assets/y"])
    assert (config.train.init_from, config.data.path, config.data.eval_path) == (
        "pretrained/mine",
        "config/x",
        "assets/y",
    )
    assert config.model.text.vocab == str(ROOT / "config" / "vocab" / "demo.txt")
    assert load_config(shipped, ["model.text.vocab=config/mine.txt"]).model.text.vocab == "config/mine.txt"


def test_home_is_expanded_in_paths_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "data: {sources: [{path: ~/corpus}]}\neval: {split: ~/test}")
    config = load_config(path, ["train.output=~/runs", "data.codes=runs/~"])
    assert config.data.sources[0].path == str(tmp_path / "corpus")
    assert (config.train.output, config.data.codes, config.eval.split) == (str(tmp_path / "runs"), "runs/~", "~/test")


def test_a_task_says_what_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path, "objectives: {denoise_text: {given: [image]}}")
    assert load_config(path, ["task=self_critical"]).network == TASKS["caption"].network == "opt"
    assert load_config(path, ["task=image_tokenizer"]).network == "image_tokenizer"
    for overrides, message in (
        (
            ["task=self_critical", "model.cross.dropout=0.1"],
            "model.cross.dropout=0.1 in command line: task=self_critical",
        ),
        (["task=self_critical", "objectives.denoise_text.given=[audio]"], "reads nothing but image"),
        (["task=speech_to_text", "objectives.weights.denoise_text=1"], "reads nothing but audio, image+audio"),
        (["task=text_to_image"], "objectives.weights.denoise_image in the defaults: task=text_to_image needs it"),
        (["task=image_tokenizer", "optimizer.layer_decay=0.9"], "optimizer.layer_decay=0.9"),
        (["objectives.self_critical.samples=1"], "objectives.self_critical.samples=1"),
        (["eval.decoding.max_length=99"], "eval.decoding.max_length=99"),
        (["model.text.max_len=16", "eval.decoding.min_length=16"], "model.text.max_len leaves room for 15 tokens"),
    ):
        assert message in refused(path, *overrides)


def test_the_page_says_what_no_items_mean() -> None:
    """0 is none of some and all of others: as the comments beside the keys have it, with the defaults of the code."""
    page = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `eval\.(\w+)\.(max_items|gallery_size)` \| (\d+) \| (all|none) \|$", page, re.MULTILINE)
    sections = {name: kind for name, kind in get_type_hints(EvalConfig).items() if dataclasses.is_dataclass(kind)}
    expected = []
    for name, kind in sections.items():
        for key, default, meaning in re.findall(
            r"^    (max_items|gallery_size): int = (\d+)  # .*; 0: (?:the whole split|(\w+))",
            inspect.getsource(kind),
            re.M,
        ):
            expected.append((name, key, default, meaning or "all"))
    assert sorted(told) == sorted(expected) and len(told) == 7

"""Training on what a corpus has: objectives it cannot feed, evaluation after saving, and the best checkpoint."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.checkpoints.checkpoint import load_checkpoint_config, read_state, save_checkpoint
from src.checkpoints.files import MANIFEST, MODEL, OPTIMIZER, STATE, read_tensors
from src.checkpoints.places import locate, pointed
from src.config import (
    Config,
    DataConfig,
    DenoiseImageConfig,
    DenoiseTextConfig,
    EvalConfig,
    ImageGenerationConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    WeightsConfig,
)
from src.data.errors import DataError
from src.data.record import Record
from src.data.regions import Regions
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.data.store import Dataset
from src.data.writer import DatasetWriter
from src.evaluation.run import Evaluation
from src.inference.engine import Engine
from src.inference.images import resize_images
from src.models.build import build_model
from src.tasks import registry
from src.training.held_out import HeldOut, Measured
from src.training.trainer import Trainer
from src.training.unfed import absent_modalities, unfed_objectives
from tests.conftest import CHARACTERS, png, save, tiny_dataset
from tests.oracles import OBJECTIVES, feature_model, tiny_model

CONTRASTIVE = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
TRAINED = WeightsConfig(contrastive=1.0, mlm=1.0, mvm_feature=1.0, mam_feature=1.0, matching=1.0, denoise_text=1.0)


def corpus(folder: Path, has: set[int], config: Config, texts: str = CHARACTERS) -> Config:
    """A dataset of 8 training and 6 dev records with some modalities, and a run on it."""
    base = tiny_dataset(folder / "vocab", 8, config)
    rng = np.random.default_rng(0)
    with DatasetWriter(folder / "data", config.model.audio, {"name": "tiny"}) as writer:
        for split, count in (("train", 8), ("dev", 6)):
            for number in range(count):
                image = png(rng.integers(0, 256, (8, 8, 3), np.uint8)) if IMAGE in has else None
                captions = ("".join(rng.choice(list(texts), 4)),) if TEXT in has else ()
                clip = rng.integers(1, 256, (12, config.model.audio.mels), np.uint8) if AUDIO in has else None
                writer.add(split, Record(f"{split}-{number}", image, captions, (clip,)))
    return replace(base, data=replace(base.data, path=str(folder / "data"), batch_size=4, prefetch=1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = Config(model=tiny_model(), objectives=CONTRASTIVE, optimizer=OptimizerConfig(warmup_steps=0))
    return corpus(tmp_path_factory.mktemp("whole"), {TEXT, IMAGE, AUDIO}, config)


def with_run(config: Config, output: Path, **train: object) -> Config:
    settings = {"steps": 3, "log_every": 1, "save_every": 100, "eval_every": 1, "keep_checkpoints": 1}
    settings["log_samples"] = False  # drawing takes longer than all else
    return replace(config, train=TrainConfig(output=str(output), **(settings | train)))


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def measures(monkeypatch: pytest.MonkeyPatch, measure: Callable[[int], dict[str, float]]) -> None:
    """Instead of an evaluation: what is found of a step, whose checkpoint is saved before."""

    def found(held_out: HeldOut) -> Measured:
        return Measured(measure(read_state(locate(held_out.config.train.output))["step"]))

    monkeypatch.setattr(HeldOut, "measure", found)


def test_best_marks_the_right_checkpoint(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measures(monkeypatch, lambda step: {"mean_R@1": {1: 0.1, 2: 0.5, 3: 0.3}[step]})
    Trainer(with_run(tiny, tmp_path / "run")).run()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [pointed(checkpoints / name).name for name in ("latest", "best")] == ["step-00000003", "step-00000002"]
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-00000002", "step-00000003"}
    state = read_state(locate(tmp_path / "run"))
    assert state["best"] == 0.5 and state["step"] == 3 and state["evaluation_due"] is False
    assert [line["eval/mean_R@1"] for line in logged(tmp_path / "run") if "eval/mean_R@1" in line] == [0.1, 0.5, 0.3]


def test_a_failed_evaluation_costs_no_step(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is there, and where train.stop_on_eval_error ends the run, a resumed one makes up for it."""

    def fail_at_two(step: int) -> dict[str, float]:
        if step == 2:
            raise RuntimeError("no memory")
        return {"mean_R@1": 0.2}

    measures(monkeypatch, fail_at_two)
    run = with_run(tiny, tmp_path / "run", keep_checkpoints=5, stop_on_eval_error=True)
    with pytest.raises(RuntimeError, match="no memory"):
        Trainer(run).run()
    state = read_state(locate(tmp_path / "run"))
    assert state["step"] == 2 and state["evaluation_due"] is True and state["best"] == 0.2
    measures(monkeypatch, lambda step: {"mean_R@1": step / 10})
    Trainer(run, resume=True).run()
    found = [(line["step"], line["eval/mean_R@1"]) for line in logged(tmp_path / "run") if "eval/mean_R@1" in line]
    assert found == [(1, 0.2), (2, 0.2), (3, 0.3)]
    assert pointed(tmp_path / "run" / "checkpoints" / "best").name == "step-00000003"


def test_what_cannot_be_measured_does_not_end_training(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(step: int) -> dict[str, float]:
        raise DataError("nothing here") if step == 1 else RuntimeError("no memory\nat all")

    measures(monkeypatch, nothing)
    Trainer(with_run(tiny, tmp_path / "run", steps=2)).run()
    state = read_state(locate(tmp_path / "run"))
    assert (state["step"], state["best"], state["evaluation_due"]) == (2, None, False)
    told = [line for line in capsys.readouterr().out.splitlines() if "not evaluated" in line]
    assert told == ["step 1: not evaluated: nothing here", "step 2: not evaluated: no memory"]
    missing = replace(tiny, data=replace(tiny.data, eval_split="held-out"))
    Trainer(with_run(missing, tmp_path / "missing", steps=1)).run()
    assert (locate(tmp_path / "missing") / MODEL).is_file()
    said = capsys.readouterr().out
    assert "has no split data.eval_split='held-out', but train, dev" in said and "parameters" not in said


def test_verbose_prints_the_parameters(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "_loop", lambda *_: None)
    Trainer(with_run(tiny, tmp_path / "run"), verbose=True).run()
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("has", "left"),
    [
        ({TEXT, IMAGE, AUDIO}, set()),
        ({TEXT, AUDIO}, {"mvm_code", "mvm_feature", "denoise_image"}),
        ({IMAGE, AUDIO}, {"mlm", "denoise_text"}),
        ({TEXT, IMAGE}, {"mam_feature", "mam_contrastive"}),
        (
            {IMAGE},
            {"contrastive", "mlm", "mam_feature", "mam_contrastive", "matching", "denoise_text", "denoise_image"},
        ),
    ],
)
def test_objectives_without_data_are_found(has: set[int], left: set[str], tmp_path: Path) -> None:
    names = [name for name in OBJECTIVES if name != "mvm_class"]
    weights = WeightsConfig(**{"contrastive": 0.0, **dict.fromkeys(names, 1.0)})
    config = corpus(tmp_path, has, Config(model=tiny_model()))
    config = replace(config, objectives=ObjectivesConfig(weights=weights), data=replace(config.data, codes="x"))
    data = Dataset(config.data.path, "train")
    assert set(unfed_objectives(config, [data])) == left
    regions = SimpleNamespace(model=SimpleNamespace(image=SimpleNamespace(input="region")))
    assert set(absent_modalities(config, [data])) == {TEXT, IMAGE, AUDIO} - has
    assert set(absent_modalities(regions, [data])) == {TEXT, IMAGE, AUDIO} - has | {IMAGE}, "no image has regions"
    if IMAGE not in has:
        denoise = DenoiseTextConfig(given=("image",))
        silent = replace(config, objectives=replace(config.objectives, denoise_text=denoise))
        assert set(unfed_objectives(silent, [data])) == left | {"denoise_text"}
        objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=0.0, mvm_feature=1.0))
        with pytest.raises(DataError, match="feeds no objective .mvm_feature: no image"):
            unfed_objectives(replace(config, objectives=objectives), [data])
    if TEXT not in has:
        with pytest.raises(DataError, match="no text, which task=caption"):
            unfed_objectives(replace(config, task="caption"), [data])


def test_what_a_task_generates_from_must_be_there(tmp_path: Path) -> None:
    """A transcriber does not learn captions where speech is missing, and an image is not generated from nothing."""
    weights = WeightsConfig(contrastive=1.0, denoise_text=1.0, denoise_image=1.0)
    denoise = {"denoise_text": DenoiseTextConfig(given=("audio", "image+audio"))}
    denoise["denoise_image"] = DenoiseImageConfig(given=("text",))
    config = Config(model=tiny_model(), objectives=ObjectivesConfig(weights, **denoise), data=DataConfig(codes="x"))
    sources = {}
    for has in ({TEXT, IMAGE}, {TEXT, AUDIO}, {IMAGE, AUDIO}):
        made = corpus(tmp_path / "".join(map(str, has)), has, config)
        sources[tuple(has)] = Dataset(made.data.path, "train")
    unspoken, unseen, unsaid = sources.values()
    assert unfed_objectives(config, [unspoken]) == {}, "pre-training takes what there is: the image alone"
    speech, image = (replace(config, task=task) for task in ("speech_to_text", "text_to_image"))
    wanted = "nothing that objectives.denoise_text.given names, which task=speech_to_text"
    with pytest.raises(DataError, match=wanted):
        unfed_objectives(speech, [unspoken])
    assert unfed_objectives(speech, [unseen]) == {"denoise_image": "no image to make codes of"}
    beside = replace(denoise["denoise_text"], given=("image+audio",))
    with pytest.raises(DataError, match=wanted):
        unfed_objectives(replace(speech, objectives=replace(config.objectives, denoise_text=beside)), [unseen])
    assert unfed_objectives(speech, [unspoken, unseen]) == {}
    found = {"denoise_text": "no text", "denoise_image": "nothing that objectives.denoise_image.given names"}
    assert unfed_objectives(config, [unsaid]) == found
    with pytest.raises(DataError, match="nothing that objectives.denoise_image.given names, which task=text_to_image"):
        unfed_objectives(image, [unsaid])
    assert unfed_objectives(image, [unsaid, unspoken]) == {}


def test_one_source_of_a_mixture_is_enough() -> None:
    """Images with texts, and speech with texts: together they feed all."""
    weights = WeightsConfig(contrastive=1.0, mlm=1.0, mvm_feature=1.0, mam_feature=1.0, matching=1.0, denoise_text=1.0)
    config = Config(model=tiny_model(), objectives=ObjectivesConfig(weights=weights))
    sources = [SimpleNamespace(folder=str(has), count=has.__contains__) for has in ({TEXT, IMAGE}, {TEXT, AUDIO})]
    assert unfed_objectives(config, sources) == {}
    assert unfed_objectives(config, sources[:1]) == {"mam_feature": "no audio"}
    assert unfed_objectives(config, sources[1:]) == {"mvm_feature": "no image"}


def test_sources_feed_together_only_what_one_of_them_feeds() -> None:
    """Speech with texts, and images alone: no text stands beside an image, and nothing but speech beside a text."""
    objectives = ObjectivesConfig(WeightsConfig(denoise_text=1.0), denoise_text=DenoiseTextConfig(given=("image",)))
    sources = [SimpleNamespace(folder=str(has), count=has.__contains__) for has in ({IMAGE}, {TEXT, AUDIO})]
    config = Config(model=tiny_model(), objectives=objectives)
    assert unfed_objectives(config, sources) == {"denoise_text": "no source has what it needs together"}
    with pytest.raises(DataError, match="no source has what it needs together, which task=caption"):
        unfed_objectives(replace(config, task="caption"), sources)
    separate = [SimpleNamespace(folder=str(has), count=has.__contains__) for has in ({IMAGE}, {TEXT})]
    with pytest.raises(DataError, match="the data feeds no objective .contrastive: no source has what it needs tog"):
        unfed_objectives(config, separate)


@pytest.mark.parametrize("known", [(-1, -1, -1), (-1, -1, 3), (3, -1, -1)])
def test_regions_feed_what_they_hold(known: tuple[int, ...], tmp_path: Path) -> None:
    """A detector's file may lack classes, and a corpus of regions the images, of which codes are made."""
    model = replace(feature_model(), image=replace(feature_model().image, regions=2))  # of the three of an image
    weights = WeightsConfig(contrastive=1.0, mvm_feature=1.0, mvm_class=1.0, denoise_image=1.0)
    config = Config(model=model, objectives=ObjectivesConfig(weights=weights), data=DataConfig(codes="x"))
    boxes = np.float32([[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 8, 8]])
    features = np.zeros((3, model.image.region_dim), np.float16)
    ones = np.ones(3, np.float32)
    regions = [Regions(features, boxes, np.int32(classes), ones, 8, 8) for classes in ([-1] * 3, known)]
    for name, image in (("regions", None), ("images", png(np.zeros((8, 8, 3), np.uint8)))):
        with DatasetWriter(tmp_path / name, model.audio, {"name": name}) as writer:
            for number, found in enumerate(regions):
                writer.add("train", Record(f"r{number}", image, ("一",), (None,), found))
    alone, both = (Dataset(tmp_path / name, "train", model.audio, model.image) for name in ("regions", "images"))
    left = {} if known[0] >= 0 else {"mvm_class": "no known class of a region in up to 2,000 samples"}
    assert unfed_objectives(config, [alone]) == left | {"denoise_image": "no image to make codes of"}
    assert unfed_objectives(config, [both]) == unfed_objectives(config, [alone, both]) == left
    with pytest.raises(DataError, match="no image to make codes of, which task=text_to_image"):
        unfed_objectives(replace(config, task="text_to_image"), [alone])


def test_frozen_parts_may_lack_data(tmp_path: Path) -> None:
    """What is not encoded for want of data is not trained: to freeze it is no mistake."""
    config = corpus(tmp_path, {TEXT, IMAGE}, Config(model=tiny_model(), objectives=ObjectivesConfig(weights=TRAINED)))
    freeze = OptimizerConfig(warmup_steps=0, freeze=("audio_encoder", "masked_audio_head", "text_encoder"))
    trainer = Trainer(with_run(replace(config, optimizer=freeze), tmp_path / "run"))
    trained = " ".join(parameter.name for parameter in trainer.step.optimizer.parameters_)
    assert "image_encoder" in trained and not any(part in trained for part in freeze.freeze)


def test_parts_need_not_share_what_the_data_cannot_feed(tmp_path: Path) -> None:
    """Three rows of images that are not there."""
    shares = DenoiseImageConfig(batch_share=0.75)
    objectives = ObjectivesConfig(replace(TRAINED, denoise_image=1.0), denoise_image=shares)
    config = corpus(tmp_path, {TEXT, AUDIO}, Config(model=tiny_model()))
    config = replace(config, objectives=objectives, data=replace(config.data, codes="an image tokenizer"))
    trainer = Trainer(with_run(config, tmp_path / "run", accumulate=2, eval_every=0))
    assert trainer.trained.objectives.weights.denoise_image == 0 and trainer.step.accumulated.parts == 2


@pytest.mark.parametrize(
    ("has", "losses", "metrics"),
    [
        ({IMAGE, AUDIO}, {"contrastive", "mvm_feature", "mam_feature", "matching"}, {"mean_R@1", "patch_cosine"}),
        (
            {TEXT, AUDIO},
            {"contrastive", "mlm", "mam_feature", "matching", "denoise_text"},
            {"mean_R@1", "mlm_accuracy"},
        ),
    ],
    ids=["without captions", "without images"],
)
def test_a_corpus_without_a_modality_is_trained_and_evaluated(
    has: set[int], losses: set[str], metrics: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as it goes: no loss of 0 is logged, and no metric of what is not there."""
    weights = TRAINED if IMAGE in has else replace(TRAINED, mvm_code=1.0, denoise_image=1.0)
    config = with_run(corpus(tmp_path, has, Config(model=tiny_model())), tmp_path / "run", steps=1)
    # without images nobody looks for the image tokenizer
    data = replace(config.data, codes="" if IMAGE in has else str(tmp_path / "gone"))
    generation = ImageGenerationConfig(max_items=0 if IMAGE in has else 2)
    settings = replace(config.eval, image_generation=generation)
    config = replace(config, data=data, objectives=ObjectivesConfig(weights=weights), eval=settings)
    Trainer(config).run()
    assert "not trained, for the data cannot feed it: " in capsys.readouterr().out
    lines = logged(tmp_path / "run")
    assert {name[5:] for line in lines for name in line if name.startswith("loss/")} == losses
    found = {name[5:] for line in lines for name in line if name.startswith("eval/")}
    assert metrics <= found and not any("image" in name for name in found if IMAGE not in has)
    whole = load_checkpoint_config(locate(tmp_path / "run"))
    again = Evaluation(Engine(whole, build_model(whole)), registry.get("pretrain").evaluators).run("dev")
    assert again["retrieval"].keys() and "image_generation" not in again
    state = locate(tmp_path / "run") / STATE
    active = {name for name, weight in vars(weights).items() if weight}
    stored = json.loads(state.read_text())
    assert set(stored["left_out"]) == active - losses and stored["absent"] == sorted({TEXT, IMAGE, AUDIO} - has)
    gone = [
        f"{name}_{part}" for name in MODALITIES if MODALITIES.index(name) not in has for part in ("encoder", "head")
    ]
    moments = read_tensors(locate(tmp_path / "run") / OPTIMIZER)
    assert not any(part in name for name in moments for part in gone), "what is not there is not encoded, nor trained"


def test_a_run_of_before_keeps_its_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its optimizer has moments for every part that it was to train."""
    config = Config(model=tiny_model(), objectives=ObjectivesConfig(weights=replace(TRAINED, denoise_text=0.0)))
    config = with_run(corpus(tmp_path, {TEXT, AUDIO}, config), tmp_path / "run", steps=1, eval_every=0)
    with monkeypatch.context() as before:
        before.setattr("src.training.trainer.unfed_objectives", lambda *_: {})
        before.setattr("src.training.trainer.absent_modalities", lambda *_: [])
        save(Trainer(config))
    state = locate(tmp_path / "run") / STATE
    (state.parent / MANIFEST).unlink()
    content = json.loads(state.read_text())
    state.write_text(json.dumps({"step": content["step"], "best": None}))
    objectives = Trainer(config, resume=True).step.gradients.objectives
    assert "mvm_feature" in objectives.names and not objectives.absent


def test_texts_of_unknown_tokens_are_evaluated(tmp_path: Path) -> None:
    config = Config(model=tiny_model(), objectives=ObjectivesConfig(weights=TRAINED))
    config = corpus(tmp_path, {TEXT, IMAGE, AUDIO}, config, texts="甲乙丙丁戊")
    metrics = Evaluation(Engine(config, build_model(config)), registry.get("pretrain").evaluators).run("dev")
    assert np.isfinite(metrics["retrieval"]["text_to_image"]["R@1"]) and metrics["caption"]["cider_d"] >= 0


def test_an_image_tokenizer_of_another_size_than_the_image_encoder(tmp_path: Path) -> None:
    """Generated images are embedded at the encoder's size; base configurations have 256 and 224."""
    model = tiny_model()
    model = replace(model, image_tokenizer=replace(model.image_tokenizer, size=12))
    settings = EvalConfig(image_generation=ImageGenerationConfig(max_items=3, samples=2, rank_by="matching"))
    config = replace(corpus(tmp_path, {TEXT, IMAGE}, Config(model=model)), task="image_tokenizer")
    place = save_checkpoint(tmp_path / "tokenizer" / "checkpoints", 1, config, build_model(config))
    objectives = ObjectivesConfig(weights=WeightsConfig(denoise_image=1.0))
    data = replace(config.data, codes=str(place))
    config = replace(config, task="text_to_image", eval=settings, data=data, objectives=objectives)
    metrics = Evaluation(Engine(config, build_model(config)), registry.get(config.task).evaluators).run("dev")
    assert 0 <= metrics["image_generation"]["text"]["R@1"] <= 1 and metrics["reconstruction"]["images"] == 3


def test_generated_images_are_resized_as_images_are() -> None:
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert resize_images(images, 8) is images
    found = resize_images(images, 6)
    assert found.shape == (2, 6, 6, 3) and found.dtype == np.uint8
    expected = np.asarray(Image.fromarray(images[1]).resize((6, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found[1], expected)


def test_a_frozen_temperature_at_its_clamp_is_told(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny, optimizer=OptimizerConfig(warmup_steps=0, freeze=("scale",)))
    for folder, scale in (("healthy", 14.0), ("sick", 500.0)):
        trainer = Trainer(with_run(config, tmp_path / folder, eval_every=0))
        trainer.model.scale.log_scale.set_data(Tensor(math.log(scale), ms.float32))
        trainer.run()
    assert capsys.readouterr().out.count("warning: logit_scale_at_limit: the logit scale is 100.0") == 1
    logged_scales = {line["logit_scale"] for line in logged(tmp_path / "sick")}
    assert logged_scales == {100.0}
    assert trainer.model.scale.value() == pytest.approx(float(trainer.model.scale().asnumpy()))
    assert logged(tmp_path / "healthy")[0]["logit_scale"] == pytest.approx(14.0)

"""All that is measured of a pre-trained model, at once, with the image tokenizer that is bundled with it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import CheckpointError, own_files
from src.config import (
    Config,
    ConfigError,
    EvalConfig,
    ImageGenerationConfig,
    MaskedConfig,
    ObjectivesConfig,
    RerankConfig,
    WeightsConfig,
    load_config,
)
from src.data.image_codes import tokenizer_fingerprint, write_codes
from src.data.pipeline import Loader
from src.data.store import Dataset
from src.evaluation.masked import MaskedEvaluator
from src.evaluation.run import Evaluation, glance
from src.export.export import ExportError, export_weights
from src.inference.engine import Engine
from src.inference.image_codes import Encode, encode_split
from src.inference.images import load_image_tokenizer
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.image_tokenizer import ImageTokenizer
from src.report.tables import summary
from src.tasks import registry
from tests.conftest import tiny_dataset
from tests.oracles import OBJECTIVES, randomise, run_mode, tiny_model

ALL = ObjectivesConfig(weights=WeightsConfig(**dict.fromkeys(OBJECTIVES, 1.0)))


@pytest.fixture(scope="module", autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """The configuration of a pre-training whose image tokenizer is a run beside the data; what is bundled of it."""
    folder = tmp_path_factory.mktemp("pretraining")
    settings = EvalConfig(
        split="dev",
        batch_size=4,
        rerank=RerankConfig(top_k=0),
        image_generation=ImageGenerationConfig(max_items=3),
        masked=MaskedConfig(max_items=9),
    )
    config = tiny_dataset(folder, config=Config(model=tiny_model()))
    ms.set_seed(1)
    tokenizer = ImageTokenizer(config.model.image_tokenizer)
    randomise(tokenizer, spread=0.3)
    save_checkpoint(folder / "run" / "checkpoints", 3, replace(config, task="image_tokenizer"), tokenizer)
    config = replace(config, data=replace(config.data, codes=str(folder / "run")), objectives=ALL, eval=settings)
    model = build_model(config)
    randomise(model, spread=0.1)
    return config, export_weights(config, model, folder / "bundle")


def test_the_bundle_carries_the_tokenizer_in_half_precision(made: tuple[Config, Path]) -> None:
    config, bundle = made
    assert sorted(path.name for path in (bundle / "tokenizer").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "vocab.txt",
    ]
    theirs = dict(load_image_tokenizer(config).parameters_and_names())
    bundled = replace(config, data=replace(config.data, codes=str(bundle / "tokenizer")))
    for name, parameter in load_image_tokenizer(bundled).parameters_and_names():
        np.testing.assert_allclose(parameter.asnumpy(), theirs[name].asnumpy(), rtol=1e-3, atol=1e-6, err_msg=name)


def test_what_a_checkpoint_carries_is_used(made: tuple[Config, Path], tmp_path: Path) -> None:
    config, bundle = made
    assert own_files(bundle) == [f"model.text.vocab={bundle / 'vocab.txt'}", f"data.codes={bundle / 'tokenizer'}"]
    assert len(own_files(Path(config.data.codes))) == 1
    assert load_model(bundle)[0].data.codes == str(bundle / "tokenizer")
    assert load_model(bundle, [f"data.codes={config.data.codes}"])[0].data.codes == config.data.codes
    again = export_weights(*load_model(bundle), bundle)  # over itself
    assert (again / "tokenizer" / "model.safetensors").is_file()
    assert not (tmp_path / "bundle").exists()
    nowhere = replace(config, data=replace(config.data, codes=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere"):
        export_weights(nowhere, build_model(config), tmp_path / "bundle")
    another = replace(config, data=replace(config.data, codes=str(bundle)))
    with pytest.raises(ConfigError, match=r"bundle is a checkpoint of task=pretrain: name an image tokenizer"):
        load_image_tokenizer(another)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ExportError, match="something else"):
        export_weights(config, build_model(config), tmp_path / "mine")


GLANCED = (
    "retrieval.gallery_size",
    *(f"{name}.max_items" for name in ("caption", "transcript", "image_generation")),
    *(f"{name}.max_items" for name in ("masked", "reconstruction", "vqa")),
)


def test_one_command_measures_everything(made: tuple[Config, Path], tmp_path: Path) -> None:
    _, bundle = made
    config, model = load_model(bundle)
    task = registry.get(config.task)
    evaluation = Evaluation(Engine(config, model), task.evaluators)
    metrics = evaluation.run(output=tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    sections = {"retrieval", "caption", "transcription", "reconstruction", "image_generation", "masked"}
    assert sections <= metrics.keys() and sections <= written.keys()
    generated, masked = metrics["image_generation"], metrics["masked"]
    assert generated.keys() == {"text", "speech"} and metrics["reconstruction"]["images"] == 3
    assert {"mlm_accuracy", "mvm_code_accuracy", "patch_cosine", "frame_cosine", "confusion"} <= masked.keys()
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"reconstruction.png", "generated.png", "generated_album.png", "matching.png", "captions.png"} <= files
    text = summary(metrics)
    for part in ("Retrieval", "captions", "transcripts", "PSNR", "generated from", "masked words right", "five cases"):
        assert part in text
    logged = evaluation.logged(evaluation.run(settings=glance(config.eval)))
    recalls = {"mean_R@1", "generated_text_R@10", "generated_speech_R@10"}
    assert recalls | {"mlm_accuracy", "mvm_code_accuracy"} <= logged.keys()
    assert task.best_metric(logged, config.objectives) == logged["mean_R@1"]
    untrained = {"contrastive": 0.0, "mam_feature": 1.0}
    weights = WeightsConfig(**untrained, mlm=1.0, mvm_code=1.0, denoise_image=0.5)
    others = replace(config.objectives, weights=weights)
    judged = [logged[name] for name in ("mlm_accuracy", "mvm_code_accuracy", "generated_mean_R@1")]
    assert task.best_metric(logged, others) == pytest.approx(sum(judged) / 3), "no recall by what nothing trains"
    cosines = replace(others, weights=WeightsConfig(**untrained))
    assert task.best_metric(logged, cosines) is None


def test_training_looks_at_no_more_than_eval_asks_for() -> None:
    """0 is none of what is optional, and all of what belongs to a task."""
    most = glance(
        load_config(
            None, [f"eval.{key}=100000" for key in GLANCED] + ["model.image_codes=true", "data.codes=tokenizer"]
        ).eval
    )
    few = glance(
        load_config(
            None, [f"eval.{key}=7" for key in GLANCED] + ["model.image_codes=true", "data.codes=tokenizer"]
        ).eval
    )
    none = glance(
        load_config(
            None, [f"eval.{key}=0" for key in GLANCED] + ["model.image_codes=true", "data.codes=tokenizer"]
        ).eval
    )
    for key in GLANCED:
        section, name = key.split(".")
        numbers = [getattr(getattr(found, section), name) for found in (most, few, none)]
        optional = section in ("caption", "transcript", "image_generation")
        limit = 100 if section == "image_generation" else 500
        assert numbers == [limit, 7, 0 if optional else limit], key
    assert most.rerank.top_k == 0 and most.retrieval.folds == 1


def test_codes_made_at_evaluation_are_those_of_the_shards(made: tuple[Config, Path]) -> None:
    config, _ = made
    config = replace(config, objectives=ObjectivesConfig(weights=WeightsConfig(mvm_code=1.0)))
    model, tokenizer = build_model(config), load_image_tokenizer(config)
    randomise(model, spread=0.3)
    model.set_train(False)
    fresh = MaskedEvaluator(Engine(config, model)).measure(Loader(config, "dev"))
    data = Path(config.data.path)
    dataset = Dataset(data, "dev")
    codes = {"dev": encode_split(Encode(tokenizer), dataset, config.model, 5)}
    write_codes(data, config.model, tokenizer_fingerprint(config.data.codes), {"dev": dataset}, codes)
    # images that the image tokenizer does not read as they are: the codes beside the shards are used
    bigger = replace(config.model, image_tokenizer=replace(config.model.image_tokenizer, size=16))
    stored = MaskedEvaluator(Engine(replace(config, model=bigger), model))
    assert stored.reads_codes
    loader = Loader(config, "dev")
    loader.open_codes()
    assert stored.measure(loader) == pytest.approx(fresh) and "mvm_code_accuracy" in fresh
    (data / "codes.json").unlink()


def test_codes_of_another_grid_are_refused(made: tuple[Config, Path]) -> None:
    config, _ = made
    other = replace(config.model, image_tokenizer=replace(config.model.image_tokenizer, codes=10))
    with pytest.raises(ConfigError, match="has codes=9, model.image_tokenizer.codes is 10"):
        Evaluation(Engine(replace(config, model=other), build_model(config)), registry.get(config.task).evaluators)
    for weights in ({"mvm_code": 1.0}, {"denoise_image": 1.0}):  # before anything is computed, whoever needs the codes
        objectives = ObjectivesConfig(weights=WeightsConfig(**weights))
        engine = Engine(replace(config, model=other, objectives=objectives), build_model(config))
        with pytest.raises(ConfigError, match="has codes=9"):
            Evaluation(engine, registry.get("pretrain").evaluators)

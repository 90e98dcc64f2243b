"""All that is measured of a pre-trained model, at one go, with the image tokenizer that is shipped with it."""

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
)
from src.data.image_codes import tokenizer_fingerprint, write_codes
from src.data.pipeline import Loader
from src.data.store import Dataset
from src.evaluation.masked import MaskedEvaluator
from src.evaluation.run import Evaluator
from src.export.export import ExportError, export_weights
from src.inference.image_codes import Encode, encode_split
from src.inference.images import load_tokenizer
from src.inference.load import load_model
from src.models.build import build_model
from src.models.image_tokenizer import ImageTokenizer
from src.report.tables import summary
from src.tasks.registry import pretrain_figures
from tests.conftest import tiny_dataset
from tests.oracles import OBJECTIVES, randomise, run_mode, tiny_model

ALL = ObjectivesConfig(weights=WeightsConfig(**dict.fromkeys(OBJECTIVES, 1.0)))


@pytest.fixture(scope="module", autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """The configuration of a pre-training whose tokenizer is a run beside the data; its box, with no codes stored."""
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
    tokenizer = ImageTokenizer(config.model.tokenizer)
    randomise(tokenizer, spread=0.3)
    save_checkpoint(folder / "run" / "checkpoints", 3, replace(config, task="image_tokenizer"), tokenizer)
    config = replace(config, data=replace(config.data, codes=str(folder / "run")), objectives=ALL, eval=settings)
    model = build_model(config)
    randomise(model, spread=0.1)
    return config, export_weights(config, model, folder / "box")


def test_the_box_carries_the_tokenizer_in_half_precision(made: tuple[Config, Path]) -> None:
    config, box = made
    assert sorted(path.name for path in (box / "tokenizer").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "vocab.txt",
    ]
    theirs = dict(load_tokenizer(config).parameters_and_names())
    boxed = replace(config, data=replace(config.data, codes=str(box / "tokenizer")))
    for name, parameter in load_tokenizer(boxed).parameters_and_names():
        np.testing.assert_allclose(parameter.asnumpy(), theirs[name].asnumpy(), rtol=1e-3, atol=1e-6, err_msg=name)


def test_what_a_checkpoint_carries_is_used(made: tuple[Config, Path], tmp_path: Path) -> None:
    config, box = made
    assert own_files(box) == [f"model.text.vocab={box / 'vocab.txt'}", f"data.codes={box / 'tokenizer'}"]
    assert len(own_files(Path(config.data.codes))) == 1
    assert load_model(box)[0].data.codes == str(box / "tokenizer")
    assert load_model(box, [f"data.codes={config.data.codes}"])[0].data.codes == config.data.codes
    again = export_weights(*load_model(box), box)  # over itself
    assert (again / "tokenizer" / "model.safetensors").is_file()
    assert not (tmp_path / "box").exists()
    nowhere = replace(config, data=replace(config.data, codes=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere"):
        export_weights(nowhere, build_model(config), tmp_path / "box")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ExportError, match="something else"):
        export_weights(config, build_model(config), tmp_path / "mine")


def test_one_command_measures_everything(made: tuple[Config, Path], tmp_path: Path) -> None:
    _, box = made
    config, model = load_model(box)
    evaluator = Evaluator(config, model)
    metrics = evaluator.run(output=tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    sections = {"retrieval", "caption", "transcription", "reconstruction", "drawing", "probe"}
    assert sections <= metrics.keys() and sections <= written.keys()
    assert metrics["drawing"].keys() == {"text", "speech"} and metrics["reconstruction"]["images"] == 3
    assert {"mlm_accuracy", "mvm_code_accuracy", "patch_cosine", "frame_cosine", "confusion"} <= metrics["probe"].keys()
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"reconstruction.png", "drawings.png", "drawn_texts.png", "matching.png", "captions.png"} <= figures
    text = summary(metrics)
    for part in ("Retrieval", "captions", "transcripts", "PSNR", "what was drawn", "hidden words right", "five cases"):
        assert part in text
    glance = pretrain_figures(evaluator, config)
    assert {"mean_r1", "mlm_accuracy", "mvm_code_accuracy", "drawn_text_r10", "drawn_speech_r10"} <= glance.keys()


def test_codes_made_at_evaluation_are_those_of_the_shards(made: tuple[Config, Path]) -> None:
    config, _ = made
    config = replace(config, objectives=ObjectivesConfig(weights=WeightsConfig(mvm_code=1.0)))
    model, tokenizer = build_model(config), load_tokenizer(config)
    randomise(model, spread=0.3)
    model.set_train(False)
    fresh = MaskedEvaluator(config, model, tokenizer).run(Loader(config, "dev", stored_codes=False))
    data = Path(config.data.path)
    dataset = Dataset(data, "dev")
    codes = {"dev": encode_split(Encode(tokenizer), dataset, config.model.tokenizer, 5)}
    write_codes(data, config.model.tokenizer, tokenizer_fingerprint(config.data.codes), {"dev": dataset}, codes)
    stored = MaskedEvaluator(config, model)
    assert stored.reads_codes
    assert stored.run(Loader(config, "dev")) == pytest.approx(fresh) and "mvm_code_accuracy" in fresh
    (data / "codes.json").unlink()


def test_codes_of_another_grid_are_refused(made: tuple[Config, Path]) -> None:
    config, _ = made
    other = replace(config.model, tokenizer=replace(config.model.tokenizer, codes=10))
    with pytest.raises(ConfigError, match="has codes=9, model.tokenizer.codes is 10"):
        Evaluator(replace(config, model=other), build_model(config))

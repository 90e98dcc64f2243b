"""The probe of masked modelling and matching: forced answers, counted slots, and its figures in plain numpy."""

from collections.abc import Iterator
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import Config, EvalConfig, MaskingConfig, MatchingConfig, ObjectivesConfig, WeightsConfig
from src.data.pipeline import Loader
from src.data.schema import MATCH_CASES
from src.evaluation.masked import MaskedEvaluator, _figures
from src.models.build import build_model
from src.models.opt import OPT
from tests.conftest import tiny_dataset
from tests.oracles import run_mode, tiny_model

PROBED = {"mlm": 1.0, "mvm_feature": 1.0, "mam_feature": 1.0, "mam_contrastive": 1.0, "matching": 1.0}


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    small = Config(
        model=tiny_model(),
        objectives=ObjectivesConfig(
            weights=WeightsConfig(**PROBED),
            masking=MaskingConfig(batch_share=0.5),
            matching=MatchingConfig(batch_share=0.5),
        ),
        eval=EvalConfig(split="dev", batch_size=5),
    )
    return tiny_dataset(tmp_path_factory.mktemp("probe"), config=small)


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    ms.set_seed(1)
    return build_model(config)


@pytest.fixture(scope="module")
def probe(config: Config, model: OPT) -> MaskedEvaluator:
    return MaskedEvaluator(config, model)


def labels(config: Config) -> np.ndarray:
    """The hidden words of the split."""
    found = []
    for batch, n, _ in Loader(config, "dev").evaluation(5):
        found.append(batch["mlm_labels"][:n][batch["mlm_weights"][:n] > 0])
    return np.concatenate(found)


def test_a_model_that_always_says_the_same_is_right_as_often_as_that_is(
    config: Config, model: OPT, probe: MaskedEvaluator
) -> None:
    words, counts = np.unique(labels(config), return_counts=True)
    word = int(words[0])
    bias = np.zeros(model.vocab_size, np.float32)
    bias[word] = 1e4
    model.masked_text_head.bias.set_data(Tensor(bias))
    answers = np.zeros(len(MATCH_CASES), np.float32)
    answers[2] = 1e4
    model.matching_head.classify.bias.set_data(Tensor(answers))
    figures = probe.run(Loader(config, "dev"))
    assert figures["mlm_accuracy"] == pytest.approx(counts[0] / counts.sum())
    assert figures["mlm_chance"] == pytest.approx(counts.max() / counts.sum())
    confusion = np.array(figures["confusion"])
    assert confusion.sum() == confusion[:, 2].sum() > 0
    assert figures["matching_accuracy"] == pytest.approx(confusion[2, 2] / confusion.sum())
    assert figures["matching_chance"] == pytest.approx(confusion.sum(1).max() / confusion.sum())
    assert {"patch_cosine", "patch_chance", "frame_cosine", "frame_chance"} <= figures.keys()


def test_only_what_is_trained_is_probed(config: Config, model: OPT) -> None:
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, mlm=1.0, denoise_text=1.0))
    probe = MaskedEvaluator(replace(config, objectives=objectives), model)
    assert probe.active == ("mlm",)
    assert set(probe.run(Loader(config, "dev"), 6)) == {"mlm_accuracy", "mlm_chance"}
    nothing = MaskedEvaluator(
        replace(config, objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))), model
    )
    assert nothing.active == ()


def test_cosines_stand_beside_the_best_constant_answer() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 6)) + 1
    figures = _figures({"frame_p": truth * 2, "frame_t": truth})
    assert figures["frame_cosine"] == pytest.approx(1)
    mean = truth.mean(0)
    cosines = truth @ mean / np.linalg.norm(truth, axis=1) / np.linalg.norm(mean)
    assert figures["frame_chance"] == pytest.approx(cosines.mean())

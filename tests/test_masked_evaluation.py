"""Masked modelling and matching, measured: forced answers, counted slots, and the metrics in plain numpy."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import Config, EvalConfig, MaskingConfig, MatchingConfig, ObjectivesConfig, WeightsConfig
from src.data.pipeline import Loader
from src.data.schema import MATCH_CASES
from src.evaluation.masked import MaskedEvaluator, _metrics
from src.inference.engine import Engine
from src.models.build import build_model
from src.models.opt import OPT
from tests.conftest import tiny_dataset
from tests.oracles import run_mode, tiny_model

MEASURED = {"mlm": 1.0, "mvm_feature": 1.0, "mam_feature": 1.0, "mam_contrastive": 1.0, "matching": 1.0}


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    small = Config(
        model=tiny_model(),
        objectives=ObjectivesConfig(
            weights=WeightsConfig(**MEASURED),
            masking=MaskingConfig(batch_share=0.5),
            matching=MatchingConfig(batch_share=0.5),
        ),
        eval=EvalConfig(split="dev", batch_size=5),
    )
    return tiny_dataset(tmp_path_factory.mktemp("masked"), config=small)


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    ms.set_seed(1)
    return build_model(config)


@pytest.fixture(scope="module")
def evaluator(config: Config, model: OPT) -> MaskedEvaluator:
    return MaskedEvaluator(Engine(config, model))


def labels(config: Config) -> np.ndarray:
    """The masked words of the split."""
    found = []
    for batch, n, _ in Loader(config, "dev").evaluation(5):
        found.append(batch["mlm_labels"][:n][batch["mlm_weights"][:n] > 0])
    return np.concatenate(found)


def test_a_model_that_always_says_the_same_is_right_as_often_as_that_is(
    config: Config, model: OPT, evaluator: MaskedEvaluator
) -> None:
    words, counts = np.unique(labels(config), return_counts=True)
    word = int(words[0])
    bias = np.zeros(model.vocab_size, np.float32)
    bias[word] = 1e4
    model.masked_text_head.bias.set_data(Tensor(bias))
    answers = np.zeros(len(MATCH_CASES), np.float32)
    answers[2] = 1e4
    model.matching_head.classify.bias.set_data(Tensor(answers))
    metrics = evaluator.measure(Loader(config, "dev"))
    assert metrics["mlm_accuracy"] == pytest.approx(counts[0] / counts.sum())
    assert metrics["mlm_chance"] == pytest.approx(counts.max() / counts.sum())
    confusion = np.array(metrics["confusion"])
    assert confusion.sum() == confusion[:, 2].sum() > 0
    assert metrics["matching_accuracy"] == pytest.approx(confusion[2, 2] / confusion.sum())
    assert metrics["matching_chance"] == pytest.approx(confusion.sum(1).max() / confusion.sum())
    assert {"patch_cosine", "patch_chance", "frame_cosine", "frame_chance"} <= metrics.keys()


def test_only_what_is_trained_is_measured(config: Config, model: OPT) -> None:
    def trained_with(**weights: float) -> MaskedEvaluator:
        objectives = ObjectivesConfig(weights=WeightsConfig(**weights))
        return MaskedEvaluator(Engine(replace(config, objectives=objectives), model))

    evaluator = trained_with(contrastive=1.0, mlm=1.0, denoise_text=1.0)
    assert evaluator.active == ("mlm",)
    assert set(evaluator.measure(Loader(config, "dev"), 6)) == {"mlm_accuracy", "mlm_chance"}
    nothing = trained_with(contrastive=1.0)
    assert nothing.active == () and nothing.needs(config.eval) is None


def test_cosines_stand_beside_the_best_constant_answer() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 6)) + 1
    metrics = _metrics({"frame_p": truth * 2, "frame_t": truth})
    assert metrics["frame_cosine"] == pytest.approx(1)
    mean = truth.mean(0)
    cosines = truth @ mean / np.linalg.norm(truth, axis=1) / np.linalg.norm(mean)
    assert metrics["frame_chance"] == pytest.approx(cosines.mean())


def test_only_slots_whose_truth_is_known_count() -> None:
    """A patch without a code is masked all the same: nobody can say what it was. The last row fills up the batch."""
    weights = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], np.float32)
    truth, guesses = np.array([4, -1, 5, 6, 7, 8, 1, 2, 3]), np.arange(9)
    evaluator = SimpleNamespace(active={"mvm_code"})
    found = MaskedEvaluator._note(evaluator, {"mvm_weights": weights}, [guesses, truth], 2)
    assert found["mvm_code_t"].ravel().tolist() == [4, 6] and found["mvm_code_p"].ravel().tolist() == [0, 3]


def test_copies_that_fill_a_batch_are_no_candidates_for_negatives(config: Config, model: OPT) -> None:
    """Matching is measured on the same negatives whatever eval.batch_size adds to a split."""
    count, states = len(Loader(config, "dev").dataset), []
    rows = np.random.default_rng(0).normal(0, 0.01, (3, count, 4)).astype(np.float32)  # all are about as hard
    for size in (count, count + 40):
        evaluator = MaskedEvaluator(Engine(replace(config, eval=replace(config.eval, batch_size=size)), model))
        fields, given = evaluator.predictions.fields, {}
        (level,) = (level for level in evaluator.predictions.objectives.levels if "matching" in level.names)
        evaluator.predictions = Recorder(fields, given)
        evaluator._note = lambda *_: {}
        (evaluated,) = Loader(config, "dev").evaluation(size)
        evaluator._predict(evaluated)
        embeddings = np.pad(rows, ((0, 0), (0, size - count), (0, 0)), mode="edge")
        states.append([part.asnumpy()[:count] for part in level.state(given, list(map(Tensor, embeddings)))])
    assert (states[0][0] != np.arange(count)).any(), "some texts are negatives"
    np.testing.assert_array_equal(states[0], states[1])


class Recorder:
    """In place of the network: keeps what it is given, by name."""

    def __init__(self, fields: tuple[str, ...], given: dict[str, Tensor]) -> None:
        self.fields, self.given = fields, given

    def __call__(self, *tensors: Tensor) -> tuple[()]:
        self.given.update(zip(self.fields, tensors, strict=True))
        return ()

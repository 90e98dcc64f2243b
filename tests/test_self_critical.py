"""Self-critical training: what is sampled, what it is worth, what the loss makes of it, and that it helps."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.config import (
    Config,
    ConfigError,
    DenoiseTextConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    SelfCriticalConfig,
    TrainConfig,
    WeightsConfig,
    load_config,
)
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.record import Record
from src.data.schema import IMAGE
from src.data.sources import Sources
from src.data.store import Dataset
from src.generation.cache import CachedDecoder
from src.generation.text_sampling import TextSampler, _SampleStep, never_generated
from src.metrics.captions import cider_d, words
from src.models.build import build_model
from src.objectives.self_critical import References, SelfCriticalObjectives, build_self_critical
from src.training.trainer import Trainer
from tests.conftest import tiny_dataset
from tests.oracles import CLS, PAD, SEP, randomise, run_mode, tiny_model

SAMPLES, BATCH = 4, 8
GIVEN_IMAGES = ObjectivesConfig(
    weights=WeightsConfig(contrastive=0.0, denoise_text=1.0), denoise_text=DenoiseTextConfig(given=("image",))
)


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Captions of a tiny model on a tiny dataset; some of its images have no caption, some captions no image."""
    objectives = replace(GIVEN_IMAGES, self_critical=SelfCriticalConfig(SAMPLES))
    small = Config(task="self_critical", model=tiny_model(), objectives=objectives)
    return tiny_dataset(tmp_path_factory.mktemp("self_critical"), config=small)


@pytest.fixture(scope="module")
def built(config: Config) -> SelfCriticalObjectives:
    ms.set_seed(1)
    model = build_model(config)
    randomise(model, seed=1, spread=0.3)
    objectives = build_self_critical(model, config)
    bias = model.text_decoder.output_bias  # what is never generated would be likely
    bias.set_data(bias + Tensor((never_generated(objectives.before_step.tokenizer) < 0) * np.float32(3)))
    return objectives


@pytest.fixture(scope="module")
def batch(config: Config) -> dict[str, np.ndarray]:
    return next(Loader(config, "train").evaluation(BATCH))[0]


@pytest.fixture(scope="module")
def sampled(built: SelfCriticalObjectives, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with run_mode("graph"):
        return {**batch, **built.before_step(batch)}


class Logits(nn.Cell):
    """Stands for a cached decoder: the logits of its rows are given."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = Tensor(logits)

    def step(self, ids, position, bias):
        return self.logits


def test_a_token_is_the_first_whose_sum_of_probabilities_reaches_the_random_number() -> None:
    """Four tokens of a quarter each, two that may not be generated between them: also at the bounds."""
    never = np.array([0, -1e4, 0, 0, -1e4, 0, -1e4], np.float32)
    uniform = np.array([1e-7, 0.25, 0.2501, 0.5, 0.7499, 0.75, 0.7501, 1.0], np.float32)
    step = _SampleStep(Logits(np.zeros((len(uniform), len(never)), np.float32)), never)
    with run_mode("pynative"):
        found = step(None, None, None, Tensor(uniform[:, None])).asnumpy()
    assert found.tolist() == [0, 0, 2, 2, 3, 3, 5, 5]


def test_the_largest_random_number_samples_a_token_though_sums_are_rounded() -> None:
    """In float32 the probabilities of a thousand tokens add up to a little more or less than 1."""
    logits = np.random.default_rng(0).standard_normal((64, 997)).astype(np.float32)
    step = _SampleStep(Logits(logits), np.zeros(997, np.float32))
    with run_mode("pynative"):
        found = step(None, None, None, Tensor(np.ones((64, 1), np.float32))).asnumpy()
    assert found.max() < 997


def test_a_text_that_ended_is_filled_while_others_go_on() -> None:
    sampled = np.array([[5, 6, 7, 8], [SEP, 6, SEP, 8], [9, SEP, 5, 9], [5, 5, SEP, 7]])
    asked: list[np.ndarray] = []

    def step(ids: Tensor, position: Tensor, _: Tensor, uniform: Tensor) -> Tensor:
        assert uniform.asnumpy().tolist() == [[1.0]] * 4, "never 0, at which the first token would be sampled"
        asked.append(ids.asnumpy())
        return Tensor(sampled[:, int(position)].astype(np.int32))

    sampler = TextSampler.__new__(TextSampler)
    sampler.cached = SimpleNamespace(length=4, beams=2)
    sampler.tokenizer = SimpleNamespace(pad_id=PAD, cls_id=CLS, sep_id=SEP)
    sampler.step = step
    found = sampler.sample(2, lambda count: np.zeros(count))
    assert found.tolist() == [
        [[CLS, 5, 6, 7], [CLS, SEP, PAD, PAD]],
        [[CLS, 9, SEP, PAD], [CLS, 5, 5, SEP]],
    ]
    assert [ids.tolist() for ids in asked] == [found.reshape(4, 4)[:, place].tolist() for place in range(3)]


def test_rewards_are_cider_d_on_words(config: Config) -> None:
    """A caption's reward is what pycocoevalcap's formula gives it among the references of the whole split."""
    dataset = Dataset(config.data.path, "train")
    found = References.read(Sources(config, "train"))
    records = list(dataset.read(range(dataset.records)))
    numbers = dict(dataset.samples[:, [0, 2]].tolist())
    usable = {numbers[i]: r.captions for i, r in enumerate(records) if r.image is not None and r.captions}
    assert found.by_image.keys() == usable.keys() and len(usable) < dataset.records
    tokens = {number: [words(text) for text in texts] for number, texts in usable.items()}
    captions = {number: texts[0][:4] for number, texts in usable.items()}
    whole = cider_d([words(text) for text in captions.values()], list(tokens.values()))
    assert np.mean([found.rewards([text], number)[0] for number, text in captions.items()]) == pytest.approx(whole)


def test_references_take_little_memory() -> None:
    """Of captions of ten words; their weighted n-grams would take 8 kB each."""
    texts = np.random.default_rng(0).integers(0, 500, (2000, 5, 10))
    records = [
        Record(str(at), b"", tuple(" ".join(map(str, text)) for text in group), ()) for at, group in enumerate(texts)
    ]
    dataset = SimpleNamespace(records=len(records), read_good=lambda numbers: (records[number] for number in numbers))
    samples = np.stack([np.arange(len(records))] * 3, 1)
    words("1")  # its dictionary is loaded once
    tracemalloc.start()
    found = References.read(SimpleNamespace(samples=samples, datasets=[dataset], first_records=[0]))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / texts[:, :, 0].size < 1000
    own, other = found.rewards([records[0].captions[0], records[1].captions[0]], 0)
    assert own > 1 > other


def test_an_image_in_several_records_has_the_captions_of_all() -> None:
    """Those of another corpus, which has other words for the same picture; a record that cannot be read has none."""
    captions = (("一只猫",), ("两条狗", "黑狗"), None, ("白猫", "，"))
    records = [group and Record(str(at), b"", group, ()) for at, group in enumerate(captions)]
    dataset = SimpleNamespace(records=4, read_good=lambda numbers: (records[number] for number in numbers))
    samples = np.array([(0, 0, 0), (1, 0, 1), (1, 1, 1), (2, 0, 2), (3, 0, 0), (3, 1, 0)])
    found = References.read(SimpleNamespace(samples=samples, datasets=[dataset], first_records=[0]))
    expected = {0: ["一只猫", "白猫"], 1: ["两条狗", "黑狗"]}  # what has no words is no reference
    assert found.by_image == {image: [tuple(words(text)) for text in texts] for image, texts in expected.items()}


def test_samples_end_and_are_compared_with_the_others(
    built: SelfCriticalObjectives, batch: dict[str, np.ndarray], sampled: dict[str, np.ndarray]
) -> None:
    ids, reward = sampled["sampled_ids"], sampled["reward"]
    assert ids.shape == (BATCH, SAMPLES, batch["text_ids"].shape[1]) and (ids[:, :, 0] == CLS).all()
    assert len(np.unique(ids.reshape(-1, ids.shape[2]), axis=0)) > BATCH
    behind = np.cumsum(ids == SEP, axis=2) - (ids == SEP) > 0
    assert (ids[behind] == PAD).all() and (ids[~behind] != PAD).all()
    np.testing.assert_allclose(sampled["advantage"].sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(sampled["advantage"][:, 0], reward[:, 0] - reward[:, 1:].mean(1), atol=1e-5)
    judged = sampled["rewarded"] == 1
    assert not judged.all() and judged.any() and not reward[~judged].any() and reward[judged].any()
    again = built.before_step(batch)
    np.testing.assert_array_equal(again["sampled_ids"], ids)
    other = built.before_step({**batch, "match_noise": batch["match_noise"] + 1})
    assert (other["sampled_ids"] != ids).any()
    blank = built.before_step({**batch, "presence": batch["presence"] * np.int32([1, 0, 1])})
    assert not blank["rewarded"].any() and not blank["reward"].any(), "a sample without its image is not judged"


def test_samples_follow_the_distribution(built: SelfCriticalObjectives, batch: dict[str, np.ndarray]) -> None:
    """The first tokens of many samples, against the probabilities of the decoder as it is trained."""
    model, inputs, samples = built.model, 500, 8  # of one image
    tokenizer = built.before_step.tokenizer
    places = model.cross_encoder.single_modality_positions(IMAGE)
    with run_mode("pynative"):
        cached = CachedDecoder(model.text_decoder, inputs, places, samples)
        tokens = model.image_encoder(Tensor(batch["image"][:1]))
        fused, mask = model.cross_encoder.fuse_single_modality(tokens, ms.ops.ones(tokens.shape[:2], ms.int32), IMAGE)
        cached.read(ms.ops.tile(fused, (inputs, 1, 1)), ms.ops.tile(mask, (inputs, 1)))
        first = TextSampler(cached, tokenizer).sample(inputs, np.random.default_rng(0).random)[:, :, 1]
        read = model.text_decoder.read(fused, Tensor(places))
        bias = Tensor(np.zeros((1, 1, 1, 1), np.float32))
        logits = model.text_decoder.score(Tensor([[CLS]], ms.int32), read, bias).asnumpy()[0]
    logits = logits.astype(np.float64) + never_generated(tokenizer)
    chances = np.exp(logits - np.logaddexp.reduce(logits))
    found = np.bincount(first.reshape(-1), minlength=len(chances)) / first.size
    assert not found[chances == 0].any()
    np.testing.assert_allclose(found, chances, atol=5 * np.sqrt(0.25 / first.size))


def test_loss_is_the_policy_gradient(built: SelfCriticalObjectives, sampled: dict[str, np.ndarray]) -> None:
    """−Σ A log p / tokens by the decoder as it is trained; ends of texts count, images without a caption do not."""
    model, total = built.model, 0.0
    with run_mode("pynative"):
        loss, _, reward = built({name: Tensor(sampled[name]) for name in built.fields})
        tokens = model.image_encoder(Tensor(sampled["image"]))
        fused, mask = model.cross_encoder.fuse_single_modality(tokens, ms.ops.ones(tokens.shape[:2], ms.int32), IMAGE)
        read = model.text_decoder.read(fused, built.places)
        bias = Tensor(np.zeros((1, 1, 1, 1), np.float32))
        count = 0
        for number in range(SAMPLES):
            ids = sampled["sampled_ids"][:, number]
            logits = model.text_decoder.score(Tensor(ids[:, :-1]), read, bias).asnumpy().astype(np.float64)
            logits = logits.reshape(BATCH, ids.shape[1] - 1, -1) + never_generated(built.before_step.tokenizer)
            logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
            chosen = np.take_along_axis(logs, ids[:, 1:, None], 2)[:, :, 0]
            weights = (ids[:, 1:] != PAD) * sampled["rewarded"][:, None]
            total += (chosen * weights * sampled["advantage"][:, number, None]).sum()
            count += weights.sum()
    assert float(loss.asnumpy()) == pytest.approx(-total / count, rel=1e-3, abs=1e-5)
    judged = sampled["rewarded"] == 1
    assert float(reward.asnumpy()) == pytest.approx(sampled["reward"][judged].mean(), rel=1e-5)


def test_rewards_rise(config: Config, tmp_path: Path) -> None:
    """A captioner that has begun to learn gets better at what it is rewarded for, on the same images."""
    taught = replace(
        config,
        task="caption",
        optimizer=OptimizerConfig(lr=5e-3, warmup_steps=5),
        train=TrainConfig(output=str(tmp_path / "taught"), steps=200, save_every=200),
    )
    Trainer(taught).run()
    critical = replace(
        config,
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=5),
        train=TrainConfig(
            output=str(tmp_path / "critical"), init_from=taught.train.output, steps=300, log_every=1, save_every=300
        ),
    )
    Trainer(critical).run()
    lines = (tmp_path / "critical" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = np.array([json.loads(line)["batch/reward"] for line in lines])
    before, after = rewards[:30].mean(), rewards[-30:].mean()  # ten epochs each
    assert after > 1.3 * before, (before, after)


def test_configuration_is_checked(config: Config, tmp_path: Path) -> None:
    listening = replace(config.objectives, denoise_text=DenoiseTextConfig(given=("audio",)))
    for change, message in (
        ({"objectives": listening}, "objectives.denoise_text.given: task=self_critical reads nothing but image"),
        ({"model": tiny_model(dropout=0.1)}, "model.image.dropout: task=self_critical needs 0"),
        (
            {"runtime": RuntimeConfig(device="GPU", precision="fp16")},
            "runtime.precision: task=self_critical needs fp32",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)
        replace(config, task="caption", **change)
    with pytest.raises(ConfigError, match="samples: must be 2 or more"):
        SelfCriticalConfig(1)
    with pytest.raises(DataError, match="no image of the training split has a caption"):
        References.read(Sources(config, "train"), "region")
    objectives = load_config("config/self_critical/demo.yaml").objectives
    assert objectives.self_critical.samples == 5 and objectives.denoise_text.label_smoothing == 0

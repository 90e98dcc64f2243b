"""Evaluation against plain computation: scores of pairs, what is encoded, metrics, whole runs."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import (
    CaptionConfig,
    Config,
    ConfigError,
    EvalConfig,
    ObjectivesConfig,
    RerankConfig,
    RetrievalConfig,
    TranscriptConfig,
    WeightsConfig,
)
from src.data.errors import DataError
from src.data.order import evenly_apart
from src.data.pipeline import Loader
from src.data.record import Record
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.data.store import Dataset
from src.data.writer import DatasetWriter
from src.demo.facts import FactMetric
from src.evaluation.evaluator import Needs, Split
from src.evaluation.retrieval import RetrievalEvaluator
from src.evaluation.run import Evaluation
from src.evaluation.text_generation import (
    CaptionEvaluator,
    TranscriptEvaluator,
    beside_chance,
    caption_metrics,
    misplaced,
    transcript_metrics,
)
from src.inference import scorers
from src.inference.encode import Items, encode_split, first_images, first_samples, number_images
from src.inference.engine import Engine
from src.inference.scorers import Matching, TextLikelihood
from src.metrics import captions
from src.metrics.errors import edit_distance, error_rates, spoken_words
from src.models.build import build_model
from src.models.opt import OPT
from src.report.coco import coco_ids, keys_of_files, save_captions
from src.tasks import registry
from tests.conftest import CHARACTERS, png, tiny_dataset
from tests.oracles import random, randomise, run_mode, tiny_model

COUPLES = [(TEXT, IMAGE), (TEXT, AUDIO), (IMAGE, AUDIO)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A tiny model on a tiny dataset: 12 dev records, some without text, image or audio, some with two captions."""
    folder = tmp_path_factory.mktemp("evaluate")
    small = Config(
        model=tiny_model(),
        eval=EvalConfig(split="dev", batch_size=4, rerank=RerankConfig(top_k=3, matching=0.5, likelihood=1.0)),
    )
    return tiny_dataset(folder, config=small)


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    ms.set_seed(1)
    model = build_model(config)
    randomise(model, seed=1)
    model.set_train(False)
    return model


@pytest.fixture(scope="module")
def evaluation(config: Config, model: OPT) -> Evaluation:
    return evaluation_of(Engine(config, model), config)


def evaluation_of(engine: Engine, config: Config) -> Evaluation:
    """Of the configuration's task, by an engine whose graphs may be compiled already."""
    other = copy.copy(engine)
    other.config = config
    return Evaluation(other, registry.get(config.task).evaluators)


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


def made_up(model: OPT, count: int = 6) -> dict[int, Items]:
    """Items of three modalities at random; texts and audio clips of several lengths."""
    rng = np.random.default_rng(5)
    shapes = {
        TEXT: (model.text_len, model.text_encoder.tokens.shape[1]),
        IMAGE: model.image_encoder.positions.shape[1:],
        AUDIO: model.audio_encoder.positions.shape[1:],
    }
    lengths = {TEXT: rng.integers(3, model.text_len, count), AUDIO: rng.integers(1, shapes[AUDIO][0] + 1, count)}
    items = {}
    for modality, (length, width) in shapes.items():
        mask = (np.arange(length) < lengths.get(modality, np.full(count, length))[:, None]).astype(np.int32)
        embeddings = random(count, 12, seed=modality)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        ids = None
        if modality == TEXT:
            ids = np.where(mask, rng.integers(5, model.vocab_size, mask.shape), 0).astype(np.int32)
        numbers, tokens = np.arange(count), random(count, length, width, seed=modality)
        same = {"texts": numbers + 60, "inputs": numbers}
        items[modality] = Items(tokens, mask, embeddings, numbers, numbers, ids, **same)
    return items


def fuse(model: OPT, items: dict[int, Items], rows: dict[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """One fused row [1, L, D] of some items, its mask, and the presence; what is absent is garbage."""
    chosen = {modality: group.take(np.array([rows.get(modality, 0)])) for modality, group in items.items()}
    presence = np.array([[int(modality in rows) for modality in (TEXT, IMAGE, AUDIO)]], np.int32)
    tokens = [Tensor(chosen[modality].tokens) for modality in (TEXT, IMAGE, AUDIO)]
    masks = [Tensor(chosen[modality].mask) for modality in (TEXT, IMAGE, AUDIO)]
    return *model.cross_encoder(*tokens, *masks, Tensor(presence)), Tensor(presence)


@pytest.mark.parametrize(("given", "at_once"), [(IMAGE, 4), (AUDIO, 256)])
def test_likelihood_of_pairs(model: OPT, monkeypatch: pytest.MonkeyPatch, given: int, at_once: int) -> None:
    """Σ log p over the tokens behind [CLS], whatever the order of the pairs and however they are cut into chunks."""
    monkeypatch.setattr(scorers, "PAIRS_AT_ONCE", at_once)
    monkeypatch.setattr(scorers, "ITEM_STEP", 2)
    items = made_up(model)
    pairs = np.random.default_rng(1).permutation([(text, item) for text in range(6) for item in (0, 2, 5)][:11])
    scorer = TextLikelihood(model, pad_id=0)
    found = scorer.score(given, items[given], items[TEXT].ids, pairs)
    with run_mode("pynative"):
        for score, (text, item) in zip(found, pairs, strict=True):
            fused, mask, _ = fuse(model, items, {given: item})
            ids = items[TEXT].ids[[text]]
            logits = model.text_decoder(Tensor(ids[:, :-1]), fused, mask).asnumpy().astype(np.float64)
            logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            expected = sum(logs[at, token] for at, token in enumerate(ids[0, 1:]) if token)
            assert score == pytest.approx(expected, abs=1e-3)
    assert scorer.fused >= 3 and (at_once == 4 or scorer.fused == 3), "an item is fused once a chunk"


@pytest.fixture(scope="module")
def matching(model: OPT) -> Matching:
    return Matching(model)


@pytest.mark.parametrize("couple", COUPLES)
def test_matching_of_pairs(
    model: OPT, matching: Matching, monkeypatch: pytest.MonkeyPatch, couple: tuple[int, int]
) -> None:
    monkeypatch.setattr(scorers, "PAIRS_AT_ONCE", 4)
    items = made_up(model)
    pairs = np.array([(0, 0), (0, 3), (4, 1), (5, 5), (2, 3)])
    found = matching.score({modality: items[modality] for modality in couple}, pairs)
    own = {(TEXT, IMAGE): "text+image", (TEXT, AUDIO): "text+audio", (IMAGE, AUDIO): "image+audio"}[couple]
    with run_mode("pynative"):
        for score, pair in zip(found, pairs.tolist(), strict=True):
            fused, _, presence = fuse(model, items, dict(zip(couple, pair, strict=True)))
            rows = dict(zip(couple, pair, strict=True))
            vectors = [Tensor(items[m].embeddings[[rows.get(m, 0)]]) for m in (TEXT, IMAGE, AUDIO)]
            logits = model.matching_head(fused[:, 0], *vectors, presence).asnumpy()[0]
            chances = np.exp(logits) / np.exp(logits).sum()
            expected = np.log(chances[MATCH_CASES.index(own)] + chances[MATCH_CASES.index("all")])
            assert score == pytest.approx(expected, abs=1e-3)


class KnownMatching:
    """A scorer that knows the answer."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def score(self, items: dict[int, Items], pairs: np.ndarray, label: str) -> np.ndarray:
        self.asked.append(pairs)
        return np.where(pairs[:, 0] == pairs[:, 1], 0.0, -5.0)


def test_second_ranking_follows_the_second_score(config: Config, model: OPT) -> None:
    items = {modality: group for modality, group in made_up(model).items() if modality != AUDIO}
    weights = RerankConfig(embedding=0.0, matching=2.0, likelihood=0.0)
    engine = Engine(replace(config, eval=replace(config.eval, rerank=weights)), model)
    engine.reranker.matching = known = KnownMatching()
    first, second, rankings = RetrievalEvaluator(engine).evaluate(items, depth=4)
    assert first.keys() == second.keys() == {"text_to_image", "image_to_text"}
    similarity = items[TEXT].embeddings @ items[IMAGE].embeddings.T
    for direction, table in (("text_to_image", similarity), ("image_to_text", similarity.T)):
        ranks = (table > np.diag(table)[:, None]).sum(1)
        assert first[direction]["R@1"] == pytest.approx((ranks < 1).mean())
        assert second[direction]["R@1"] == pytest.approx((ranks < 4).mean()), "what is among the best four comes first"
        share = rankings[direction].shares[ranks < 4][0]
        np.testing.assert_allclose(share, np.array([1, *[np.exp(-10)] * 3]) / (1 + 3 * np.exp(-10)))
    (pairs,) = known.asked
    assert len(np.unique(pairs, axis=0)) == len(pairs), "a pair that both directions propose is scored once"
    weights = replace(weights, matching=0.0)
    engine = Engine(replace(config, eval=replace(config.eval, rerank=weights)), model)
    assert RetrievalEvaluator(engine).evaluate(items, depth=4)[1] == {}, "nothing to re-rank by"


def test_images_are_numbered_as_they_appear() -> None:
    assert number_images(np.array([7, 7, 2, 9, 2, 1])).tolist() == [0, 0, 1, 2, 1, 3]


@pytest.mark.parametrize(
    ("having", "images", "samples"),
    [((), 1, 4), ((), 2, 6), ((), 3, 9), ((), 4, 10), ((), 0, 10), ((), 9, 10)]
    + [((TEXT, IMAGE), 1, 6), ((TEXT, AUDIO), 2, 9), ((TEXT, IMAGE, AUDIO), 1, 9), ((TEXT,), 2, 3), ((TEXT,), 3, 4)],
)
def test_what_has_nothing_to_compare_is_no_image_of_the_first(
    having: tuple[int, ...], images: int, samples: int
) -> None:
    """Rows of text alone, or an image without a text, stand before and between what is measured."""
    rows = (  # image, and text, image, audio
        *((0, (1, 0, 0)), (1, (1, 0, 0)), (2, (0, 1, 0)), (3, (1, 0, 1)), (4, (1, 1, 0)), (5, (1, 0, 0))),
        *((6, (1, 1, 0)), (6, (1, 0, 1)), (7, (0, 1, 0)), (8, (1, 1, 1))),
    )
    numbers, presence = np.array([image for image, _ in rows]), np.array([has for _, has in rows], bool)
    dataset = MagicMock(samples=np.stack([numbers] * 3, 1))
    dataset.__len__.return_value, dataset.presence.return_value = len(rows), presence
    loader = SimpleNamespace(dataset=dataset, config=SimpleNamespace(model=tiny_model()))
    assert first_samples(loader, images, having) == samples
    nothing, none = np.zeros((len(rows), 0, 0), np.float32), np.zeros((len(rows), 0), np.int32)
    whole = Items(nothing, none, none, images=numbers)
    kept = first_images({which: whole.take(presence[:, which]) for which in (TEXT, IMAGE, AUDIO)}, images, having)
    assert max(group.images.max() for group in kept.values()) == numbers[samples - 1]


def test_every_item_is_encoded_once(config: Config, model: OPT, evaluation: Evaluation) -> None:
    loader = Loader(config, "dev")
    items = encode_split(evaluation.engine.encoder, loader)
    samples = loader.dataset.samples
    records = list(loader.dataset.read(samples[:, 0]))
    present = np.array([record.presence(caption) for record, caption in zip(records, samples[:, 1], strict=True)])
    assert len(items[TEXT]) == present[:, TEXT].sum() and len(items[AUDIO]) == present[:, AUDIO].sum()
    assert len(items[IMAGE]) == len(np.unique(samples[present[:, IMAGE] == 1, 2])) < present[:, IMAGE].sum()
    batch, _, _ = next(loader.evaluation(len(samples)))
    with run_mode("pynative"):
        embedded = model.embed_image(*model.encode_image((Tensor(batch["image"][items[IMAGE].samples]),)))
        np.testing.assert_allclose(items[IMAGE].embeddings, embedded.asnumpy(), atol=1e-5)
        ids, mask = (Tensor(batch[name][items[TEXT].samples]) for name in ("text_ids", "text_mask"))
        vectors = model.embed_text(model.text_encoder(ids, mask), mask).asnumpy()
        np.testing.assert_allclose(items[TEXT].embeddings, vectors, atol=1e-5)
    few = first_images(items, 3)
    assert max(group.images.max() for group in few.values()) == 2
    again = encode_split(evaluation.engine.encoder, loader, 3, keep_tokens=[TEXT])
    assert again[TEXT].tokens.size and not again[IMAGE].tokens.size and again[IMAGE].embeddings.size
    assert {m: group.samples.tolist() for m, group in few.items()} == {m: g.samples.tolist() for m, g in again.items()}


def test_english_words_stand_between_spaces() -> None:
    """As in LibriSpeech's references; a Chinese sentence is cut by jieba."""
    assert spoken_words("DON\u2019T go -- \u201cwell-known\u201d, O'NEIL's ' café.") == [
        *("don't", "go", "wellknown", "o'neil's", "café")
    ]
    assert (
        spoken_words("红色背景上，左边有一只猫") == captions.words("红色背景上，左边有一只猫")
        and spoken_words(" ") == []
    )
    found = error_rates(["I DONT KNOW", "yes"], ["i don't know", "yes yes"])
    assert found["word_error_rate"] == 2 / 5 and found["character_error_rate"] == 3 / 15


def test_edit_distance() -> None:
    assert [edit_distance(*pair) for pair in (("", ""), ("abc", ""), ("", "ab"), ("kitten", "sitting"))] == [0, 3, 2, 3]
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = ("".join(rng.choice(list("ab"), rng.integers(0, 7))) for _ in range(2))
        assert edit_distance(first, second) == _slow_distance(first, second)


def _slow_distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    same = _slow_distance(first[1:], second[1:]) + (first[0] != second[0])
    return min(same, 1 + _slow_distance(first[1:], second), 1 + _slow_distance(first, second[1:]))


def test_training_logs_what_of_transcripts_is_right() -> None:
    evaluator = TranscriptEvaluator(SimpleNamespace())
    chance = {"character_error_rate": 0.75, "word_error_rate": 1.5}
    metrics = {"transcription": {"character_error_rate": 0.25, "word_error_rate": 0.5, "chance": chance}}
    right = {"transcription_characters_right": 0.75, "transcription_words_right": 0.5}
    assert evaluator.logged(metrics) == right and evaluator.logged({}) == {}
    found = evaluator.beside(metrics)
    assert found == {f"chance/{name}": value for name, value in zip(right, (0.25, -0.5), strict=True)}


def test_metrics_of_captions_and_transcripts() -> None:
    references = [["红底，左边一只大猫，右边两个苹果"], ["红底，左边一只大猫，右边两个苹果"]]
    generated = ["左边一只大猫，右边两个苹果，红底", "红底，左边一只小猫，右边两个苹果"]
    metrics = caption_metrics(generated, references, FactMetric("demo"))
    assert metrics["facts_right"] == 0.5 and metrics["facts"]["sizes"] == 0.5 and metrics["facts"]["objects"] == 1.0
    assert {"bleu4", "cider_d", "characters"} <= metrics.keys()
    assert "facts_right" not in caption_metrics(generated, references, None)
    assert FactMetric("demo").compare("红", references[0]) == dict.fromkeys(metrics["facts"], False)
    among_others = FactMetric("demo").score(["红", *generated], [["一只猫在睡觉"], *references])
    assert among_others == FactMetric("demo").score(generated, references), "what is no caption of the world is no item"
    assert FactMetric("demo").score(generated, [["一只猫在睡觉"], []]) == {}
    transcribed = transcript_metrics(generated, [references[0][0]] * 2, FactMetric("demo"))
    assert transcribed["facts_right"] == 0.5 and transcribed["sentences_right"] == 0.0
    assert transcript_metrics(["一二三"], ["一，二四"], None)["character_error_rate"] == pytest.approx(1 / 3)
    # by jieba: 左边 有 两个 苹果
    assert transcript_metrics(["左边有一个苹果"], ["左边有两个苹果"], None)["word_error_rate"] == pytest.approx(1 / 4)


def test_a_sentence_in_other_words_but_the_same_characters_is_right() -> None:
    found = transcript_metrics(["苹 果", "一只猫"], ["苹果", "一只狗"], None)
    assert found["sentences_right"] == 0.5 and found["character_error_rate"] == pytest.approx(1 / 5)
    assert found["word_error_rate"] == pytest.approx((2 + 1) / (1 + 2)), "two words for one; 一只 猫"


def test_two_texts_have_a_chance_and_one_has_none() -> None:
    texts, said = ["一只猫", "一只狗"], ["一只狗", "一只猫"]
    found = beside_chance(transcript_metrics, texts, said, None)
    assert found["sentences_right"] == 0 and found["chance"]["sentences_right"] == 1
    assert "chance" not in beside_chance(transcript_metrics, texts[:1], said[:1], None)


def test_misplaced_texts_stand_beside_another_half() -> None:
    assert misplaced(list("abcde")) == list("cdeab") and misplaced(list("ab")) == list("ba")


def test_what_is_shown_is_spread_over_a_split() -> None:
    assert evenly_apart(101, 6).tolist() == [0, 20, 40, 60, 80, 100]
    assert evenly_apart(8, 4).tolist() == [0, 2, 5, 7], "the nearest"
    assert evenly_apart(3, 6).tolist() == [0, 1, 2] and evenly_apart(0, 6).tolist() == []


def test_examples_are_from_all_over_a_split(
    config: Config, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = Evaluation(evaluation.engine, (CaptionEvaluator,))
    whole = captions.run("dev")["examples"]
    assert len(whole) == 8
    monkeypatch.setattr("src.evaluation.text_generation.EXAMPLES", 4)
    assert captions.run("dev")["examples"] == [whole[row] for row in (0, 2, 5, 7)]


def test_files_of_coco_have_its_ids(tmp_path: Path) -> None:
    """As a user's captions of its images are handed in."""
    files = ["val2014/COCO_val2014_000000391895.jpg", "photos/391895.jpg", "COCO_val2014_000000000042.png"]
    assert coco_ids(keys_of_files(files)) == [391895, "photos/391895.jpg", 42]
    twice = ["a/COCO_val2014_000000000042.jpg", "b/COCO_val2014_000000000042.jpg"]
    assert coco_ids(keys_of_files(twice)) == twice


def test_saved_captions_have_the_ids_of_coco(tmp_path: Path) -> None:
    """COCO's images have numbers, behind the split in the keys of their records."""
    names = {"train/139": 139, "42": 42, "a/b.png": "a/b.png", "007": "007", "COCO_val2014_000000391895": 391895}
    # numbers that are not one record's alone, and names that only look like COCO's
    names |= {name: name for name in ("train/5", "dev/5", "dogs/6", "COCO_val2014_000000391895.jpg")}
    save_captions(tmp_path / "x.json", list(names), list("一二三四五六七八九"))
    entries = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [entry["image_id"] for entry in entries] == list(names.values())


def limited(settings: EvalConfig, gallery_size: int = 1000, max_items: int = 1000, top_k: int = 0) -> EvalConfig:
    """Other sizes; captions and transcripts have one limit."""
    return replace(
        settings,
        retrieval=RetrievalConfig(gallery_size=gallery_size),
        caption=CaptionConfig(max_items=max_items),
        transcript=TranscriptConfig(max_items=max_items),
        rerank=replace(settings.rerank, top_k=top_k),
    )


def test_whole_run(config: Config, evaluation: Evaluation, tmp_path: Path) -> None:
    for left in ("figures/reconstruction.png", "transcripts_with_image.json", "captions.json", "figures/mine.png"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_text("of an earlier evaluation")
    metrics = evaluation.run("dev", tmp_path, checkpoint=Path("runs/mine"))
    assert metrics["checkpoint"] == "runs/mine" and metrics["weights"] == "model.safetensors"
    assert metrics["data"] == {"path": config.data.path, "sha256": Dataset(config.data.path, "dev").digest()}
    assert not (tmp_path / "transcripts_with_image.json").exists()
    (tmp_path / "figures" / "mine.png").unlink()  # what is not an evaluation's own stays
    couples = (("text", "image"), ("text", "audio"), ("image", "audio"), ("text+audio", "image"))
    directions = {f"{query}_to_{gallery}" for couple in couples for query, gallery in (couple, couple[::-1])}
    assert metrics["retrieval"].keys() == metrics["reranked"].keys() == directions
    assert metrics["fused_passes"] > 0 and metrics["parameters"]["total"] > 0
    assert metrics["caption"]["images"] > 0 and metrics["transcription"]["clips"] > 0
    assert json.loads((tmp_path / "metrics.json").read_text())["gallery"] == metrics["gallery"]
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {
        "retrieval_by_text.png",
        "retrieval_by_speech.png",
        "retrieval_by_image.png",
        "texts_by_speech.png",
        "captions.png",
    }
    sheets = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))["sheets"]
    shown = {sheet["title"]: sheet["rows"] for sheet in sheets}
    assert list(shown) == [
        *("Images found by text", "Images found by speech", "Texts found by image", "Texts found by speech"),
        *("Captions generated from the image only", "Transcripts of speech"),
    ]
    for query, *hits in shown["Images found by speech"]:
        assert query["audio"].startswith("data:audio/mpeg;base64,") and query["head"] == "query"
        assert all(hit["images"][0].startswith("data:image/webp;base64,") and "right" in hit for hit in hits)
    assert all(card["audio"] and card["text"] for card in shown["Transcripts of speech"][0])
    transcripts = json.loads((tmp_path / "transcripts.json").read_text(encoding="utf-8"))
    assert len(transcripts) == metrics["transcription"]["clips"]
    spoken = {(entry["id"], entry["caption"]) for entry in transcripts}
    # of every eight tiny records 0 has no audio, 1 no text, and of the two captions of 7 only the first is spoken
    assert len(spoken) == len(transcripts) and {("tiny-3", 0), ("tiny-3", 1), ("tiny-7", 0)} <= spoken
    assert not {("tiny-0", 0), ("tiny-1", 0), ("tiny-7", 1)} & spoken
    results = json.loads((tmp_path / "captions.json").read_text())
    assert len(results) == metrics["caption"]["images"] and results[0].keys() == {"image_id", "caption"}
    for section in ("caption", "transcription"):  # the same metrics of the same texts at others' places
        measured = dict(metrics[section])
        assert measured.pop("chance").keys() == measured.keys()

    quick = evaluation.run("dev", settings=limited(config.eval, max_items=2))
    assert quick["retrieval"] == metrics["retrieval"] and quick["reranked"] == {}
    assert quick["caption"]["images"] <= 2 and quick["fused_passes"] == 0


def test_training_mode_is_left_as_it_was(config: Config, evaluation: Evaluation, model: OPT) -> None:
    for training in (True, False):
        model.set_train(training)
        evaluation.run("dev", settings=limited(config.eval, gallery_size=4, max_items=0))
        assert model.training == model.text_encoder.training == training


def test_task_decides_what_runs(config: Config, evaluation: Evaluation) -> None:
    objectives = ObjectivesConfig(weights=WeightsConfig(denoise_text=1.0))
    other = evaluation_of(evaluation.engine, replace(config, task="caption", objectives=objectives))
    metrics = other.run("dev", settings=limited(config.eval, max_items=3, top_k=3))
    assert "retrieval" not in metrics and metrics["caption"]["images"] <= 3
    with pytest.raises(ConfigError, match="task=caption: eval leaves nothing of caption, transcription to measure"):
        other.run("dev", settings=limited(config.eval, max_items=0, top_k=3))
    other = evaluation_of(evaluation.engine, replace(config, task="retrieval"))
    metrics = other.run("dev", settings=limited(config.eval, gallery_size=3))
    assert "caption" not in metrics and metrics["retrieval"]


def test_a_split_with_nothing_to_measure_is_an_error(config: Config, evaluation: Evaluation, tmp_path: Path) -> None:
    """Images without texts are neither captioned nor compared."""
    with DatasetWriter(tmp_path, config.model.audio, {"name": "images"}, shard_records=10) as writer:
        for number in range(3):
            writer.add("dev", Record(f"image-{number}", png(np.full((8, 8, 3), number, np.uint8)), (), ()))
    images = replace(config, data=replace(config.data, path=str(tmp_path)))
    for task, message in (
        ("caption", "split 'dev' has nothing of caption, transcription to measure"),
        ("retrieval", "split 'dev' has nothing of retrieval to measure"),
    ):
        objectives = ObjectivesConfig(weights=WeightsConfig(denoise_text=1.0))
        other = evaluation_of(evaluation.engine, replace(images, task=task, objectives=objectives))
        with pytest.raises(DataError, match=message):
            other.run("dev", tmp_path / "results")
        assert not (tmp_path / "results" / "metrics.json").exists()


def test_rows_of_text_alone_leave_the_measured_ones_their_places(
    config: Config, evaluation: Evaluation, tmp_path: Path
) -> None:
    """They stand first; two images, with two captions of which one is spoken, are asked for behind them."""
    audio, rng = config.model.audio, np.random.default_rng(0)
    with DatasetWriter(tmp_path, audio, {"name": "mixed"}) as writer:
        for number in range(6):
            writer.add("dev", Record(f"text-{number}", None, (CHARACTERS[number],), ()))
        for number in range(3):
            image = png(np.full((8, 8, 3), 60 * number, np.uint8))
            clip = rng.integers(0, 256, (20, audio.mels), np.uint8)
            writer.add("dev", Record(f"image-{number}", image, (CHARACTERS[number], "一二"), (clip, None)))
    mixed = replace(config, data=replace(config.data, path=str(tmp_path)))
    metrics = evaluation_of(evaluation.engine, mixed).run("dev", settings=limited(config.eval, 2, 2))
    assert metrics["gallery"] == metrics["caption"]["images"] == metrics["transcription"]["clips"] == 2


@pytest.mark.parametrize(("asked", "read"), [((3, 5), 5), ((3, 0), 0), ((2,), 2)])
def test_what_one_evaluator_reads_whole_is_encoded_whole(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[int, ...], read: int
) -> None:
    """0: all images of the split. Who reads no encoded items does not count."""
    monkeypatch.setattr("src.evaluation.run.encode_split", lambda *found: found[2:])
    monkeypatch.setattr("src.evaluation.run.first_samples", lambda _, images, having: images or 50)
    needs = [Needs(count, frozenset(), frozenset({IMAGE, count}), frozenset({count})) for count in asked]
    evaluation = SimpleNamespace(engine=SimpleNamespace(encoder=None))
    *_, wanted, tokens, samples = Evaluation._encode(evaluation, Split("dev", EvalConfig()), [*needs, Needs(99)])
    assert (wanted, tokens) == (frozenset({IMAGE, *asked}), frozenset(asked))
    assert samples.tolist() == list(range(read or 50))

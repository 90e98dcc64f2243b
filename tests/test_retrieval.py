"""Retrieval between all modalities: what must not change it, and what a text with its audio is."""

import copy
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from src.config import CaptionConfig, Config, EvalConfig, RerankConfig, RetrievalConfig, TranscriptConfig
from src.data.pipeline import Loader
from src.data.record import Record
from src.data.schema import AUDIO, COUPLES, IMAGE, JOINT, MATCH_CASES, TEXT
from src.data.writer import DatasetWriter
from src.evaluation.retrieval import RetrievalEvaluator
from src.evaluation.run import Evaluation
from src.evaluation.sheets import Sheets
from src.inference.encode import Items, encode_split, first_images
from src.inference.engine import Engine
from src.inference.rerank import Proposal
from src.models.build import build_model
from src.models.opt import OPT
from src.tasks import registry
from tests.conftest import tiny_dataset, tiny_record
from tests.oracles import random, randomise, run_mode, tiny_model

RECORDS = 90  # more than the encoder takes at once


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    settings = EvalConfig(
        split="dev",
        batch_size=16,
        retrieval=RetrievalConfig(gallery_size=0),
        caption=CaptionConfig(max_items=0),
        transcript=TranscriptConfig(max_items=0),
        rerank=RerankConfig(top_k=4, likelihood=1.0),
    )
    folder = tmp_path_factory.mktemp("retrieval")
    config = tiny_dataset(folder, 8, Config(model=tiny_model(), eval=settings))
    return write(config, folder / "records", range(RECORDS))


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    ms.set_seed(2)
    model = build_model(config)
    randomise(model, seed=2)
    model.set_train(False)
    return model


@pytest.fixture(scope="module")
def engine(config: Config, model: OPT) -> Engine:
    return Engine(config, model)


@pytest.fixture(scope="module")
def evaluation(config: Config, engine: Engine) -> Evaluation:
    return Evaluation(engine, registry.get(config.task).evaluators)


@pytest.fixture(scope="module")
def retrieval(engine: Engine) -> RetrievalEvaluator:
    return RetrievalEvaluator(engine)


@pytest.fixture(scope="module")
def items(engine: Engine, config: Config) -> dict[int, Items]:
    with run_mode("graph"):
        return encode_split(engine.encoder, Loader(config, "dev"))


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


def saved_otherwise(image: bytes) -> bytes:
    """The same pixels in another file."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def write(config: Config, folder: Path, order: Iterable[int]) -> Config:
    """A dev split of the same records in any order; the last ten show what the first do, but are other images."""
    rng = np.random.default_rng(0)
    audio, size = config.model.audio, config.model.image.size
    records = [tiny_record(rng, index, audio, size) for index in range(RECORDS - 10)]
    for record in records[:10]:
        twin = None if record.image is None else saved_otherwise(record.image)
        records.append(replace(record, key=f"copy-{record.key}", image=twin))
    with DatasetWriter(folder, audio, {"name": "tiny"}, shard_records=30) as writer:
        for index in order:
            writer.add("dev", records[index])
    return replace(config, data=replace(config.data, path=str(folder)))


def with_config(evaluation: Evaluation, config: Config) -> Evaluation:
    """The same with another configuration: its graphs are compiled already."""
    other = copy.copy(evaluation)
    other.config, other._loaders = config, {}
    return other


def found(evaluation: Evaluation) -> dict[str, Any]:
    metrics = evaluation.run("dev")
    return {name: metrics[name] for name in ("gallery", "retrieval", "reranked", "fused_passes")}


def test_neither_batch_size_nor_order_changes_anything(
    config: Config, evaluation: Evaluation, items: dict[int, Items], tmp_path: Path
) -> None:
    """To the last digit: embeddings and metrics, re-ranked ones included."""
    expected = found(evaluation)
    other = write(config, tmp_path / "data", np.random.default_rng(1).permutation(RECORDS))
    again = with_config(evaluation, replace(other, eval=replace(other.eval, batch_size=7)))
    moved = encode_split(again.engine.encoder, Loader(again.config, "dev"))
    for modality, group in items.items():
        np.testing.assert_array_equal(moved[modality].embeddings, group.embeddings)
        assert (moved[modality].samples != group.samples).any()
    assert found(again) == expected


def test_every_direction_is_measured(retrieval: RetrievalEvaluator, items: dict[int, Items]) -> None:
    metrics = retrieval.evaluate(items, 0)[0]
    couples = (("text", "image"), ("text", "audio"), ("image", "audio"), ("text+audio", "image"))
    assert metrics.keys() == {f"{query}_to_{gallery}" for pair in couples for query, gallery in (pair, pair[::-1])}
    sizes = {name: found["gallery"] for name, found in metrics.items()}
    assert sizes["text_to_image"] == sizes["text+audio_to_image"] == len(items[IMAGE]) and sizes[
        "image_to_text"
    ] == len(items[TEXT])
    assert (
        sizes["image_to_text+audio"]
        == len(np.intersect1d(items[TEXT].samples, items[AUDIO].samples))
        < sizes["image_to_text"]
    )
    for found in metrics.values():
        assert found.keys() == {"R@1", "R@5", "R@10", "median_rank", "gallery", "different", "best_R@1", "chance_R@1"}


def test_what_the_copies_of_records_say_is_right(
    config: Config, retrieval: RetrievalEvaluator, items: dict[int, Items], tmp_path: Path, monkeypatch: Any
) -> None:
    """Ten records are there twice, as other images: with equal texts (or, without text, audio) a copy is right too."""
    metrics, _, rankings = retrieval.evaluate(items, 0)
    for name, gallery, copies in (
        ("text_to_image", IMAGE, 9),
        ("image_to_text", TEXT, 10),
        ("text_to_audio", AUDIO, 9),
    ):
        assert metrics[name]["different"] == metrics[name]["gallery"] - copies == len(items[gallery]) - copies
    assert all(found["best_R@1"] == 1.0 for found in metrics.values()), "nobody can tell the copies apart"
    sheets: list[Any] = []
    monkeypatch.setattr("src.evaluation.sheets.ROWS", 1000)
    monkeypatch.setattr("src.evaluation.sheets.retrieval_sheet", lambda _file, _title, rows: sheets.append(rows))
    Sheets(Loader(config, "dev"), tmp_path).retrieval(items, rankings)
    marked = []
    for query, hits in (row for sheet in sheets for row in sheet):
        text = query[-1] if isinstance(query, tuple) else query
        marked += [hit[3] for hit in hits if text and hit[0] == text]
    assert marked and all(marked), "a hit of the query's own text is framed as right"


def test_an_example_is_shown_with_its_own_clip(config: Config, tmp_path: Path) -> None:
    clips = tuple(np.full((4, 8), number, np.uint8) for number in range(2))
    dataset = SimpleNamespace(
        samples=np.array([[0, 0, 5], [0, 1, 5], [1, -1, 6]]),
        read=lambda numbers: (Record("a", None, () if number else ("一", "二"), clips) for number in numbers),
    )
    sheets = Sheets(SimpleNamespace(config=config, dataset=dataset), tmp_path)
    shown = [sheets.media(sample) for sample in range(3)]
    assert [found.caption for found in shown] == ["一", "二", ""]
    assert [int(found.clip[0, 0]) for found in shown] == [0, 1, 0]


def test_several_captions_count_as_in_coco(retrieval: RetrievalEvaluator, items: dict[int, Items]) -> None:
    """Every caption asks; of an image's captions the best counts."""
    distinct = first_images(items, RECORDS - 10)
    texts, images = distinct[TEXT], distinct[IMAGE]
    scores = texts.embeddings.astype(np.float64) @ images.embeddings.T.astype(np.float64)
    same = texts.images[:, None] == images.images
    metrics = retrieval.evaluate({TEXT: texts, IMAGE: images}, 0)[0]
    for name, table, relevant in (("text_to_image", scores, same), ("image_to_text", scores.T, same.T)):
        asked = relevant.any(1)
        best = np.where(relevant, table, -np.inf).max(1, keepdims=True)
        ranks = (table > best).sum(1)[asked]
        assert metrics[name]["R@5"] == pytest.approx((ranks < 5).mean(), abs=1e-12)
        assert metrics[name]["median_rank"] == np.median(ranks) + 1
    assert same.sum(0).max() == 2, "some image has two captions"


def test_joint_items_are_texts_with_their_own_audio(engine: Engine, items: dict[int, Items]) -> None:
    joint = engine.encoder.joint(items[TEXT], items[AUDIO])
    texts, clips = (items[which].take(joint.parts[:, at]) for at, which in enumerate((TEXT, AUDIO)))
    for part in (texts, clips):
        np.testing.assert_array_equal(joint.samples, part.samples)
    both = texts.embeddings + clips.embeddings
    np.testing.assert_allclose(joint.embeddings, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-6)
    unlike = items[AUDIO].take(np.zeros(0, np.int64))
    assert engine.encoder.joint(items[TEXT], unlike) is None


def test_second_score_of_a_text_with_its_audio(model: OPT, engine: Engine, items: dict[int, Items]) -> None:
    """All three match; the likelihood is that of the text, given the image."""
    some = items | {JOINT: engine.encoder.joint(items[TEXT], items[AUDIO])}
    pairs, cosines = np.array([[3, 0], [0, 5], [3, 5]]), np.zeros(3)
    (terms,) = engine.reranker.terms([Proposal(some, pairs, cosines)])
    parts = some[JOINT].parts[pairs[:, 1]]
    texts = Proposal({which: items[which] for which in (TEXT, IMAGE)}, np.stack([parts[:, 0], pairs[:, 0]], 1), cosines)
    (of_text,) = engine.reranker.terms([texts], ["likelihood"])
    np.testing.assert_allclose(terms["likelihood"], of_text["likelihood"], atol=1e-4)
    rows = {TEXT: parts[:, 0], IMAGE: pairs[:, 0], AUDIO: parts[:, 1]}
    chosen = {which: items[which].take(places) for which, places in rows.items()}
    with run_mode("pynative"):
        presence = Tensor(np.ones((3, 3), np.int32))
        masks = [Tensor(chosen[which].mask) for which in rows]
        fused, _ = model.cross_encoder(*(Tensor(chosen[which].tokens) for which in rows), *masks, presence)
        vectors = [Tensor(chosen[which].embeddings) for which in rows]
        logits = model.matching_head(fused[:, 0], *vectors, presence).asnumpy().astype(np.float64)
    expected = logits[:, MATCH_CASES.index("all")] - np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(terms["matching"], expected, atol=1e-4)


def test_a_text_and_an_image_are_scored_once_with_and_without_the_speech(
    engine: Engine, retrieval: RetrievalEvaluator, items: dict[int, Items], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    def score(given: int, _items: Items, ids: np.ndarray, pairs: np.ndarray, _label: str) -> np.ndarray:
        if given == IMAGE and ids is items[TEXT].ids:
            asked.append(pairs)
        return pairs[:, 0] * 100.0 + pairs[:, 1]

    monkeypatch.setattr(engine.reranker.likelihood, "score", score)
    scored = retrieval.second_stage(retrieval.first_stage(items, 4), ["likelihood"])
    (pairs,) = asked
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    directions = {"text_to_image", "image_to_text", "text+audio_to_image", "image_to_text+audio"}
    assert {one.direction.name for one in scored} >= directions
    for one in scored:
        direction = one.direction
        if {direction.query, direction.gallery} == {IMAGE, JOINT}:
            images, joint = direction.pairs().T
            texts = one.items[JOINT].parts[joint, 0]
        elif {direction.query, direction.gallery} == {TEXT, IMAGE}:
            texts, images = direction.pairs().T
        else:
            continue
        np.testing.assert_array_equal(one.terms["likelihood"].reshape(-1), texts * 100.0 + images)


def made_up(count: int, captions: int) -> dict[int, Items]:
    """Images, and that many captions of each."""
    rng = np.random.default_rng(4)
    images = np.arange(count)
    numbers = {IMAGE: images, TEXT: np.repeat(images, captions)}
    groups = {}
    for which, own in numbers.items():
        noise = 0.7 * rng.standard_normal((len(own), 12))
        vectors = (random(count, 12)[own] + noise).astype(np.float32)
        empty = np.zeros((len(own), 0), np.int32)
        texts = np.arange(len(own)) + 900
        tokens, inputs = empty[..., None].astype(np.float32), texts.astype(np.uint64)
        groups[which] = Items(tokens, empty, vectors, own, np.arange(len(own)), texts=texts, inputs=inputs)
    return groups


def folds(config: Config, count: int) -> EvalConfig:
    """So many galleries, nothing re-ranked."""
    settings = config.eval
    return replace(
        settings, retrieval=replace(settings.retrieval, folds=count), rerank=replace(settings.rerank, top_k=0)
    )


def test_folds_are_the_mean_over_consecutive_galleries(config: Config, retrieval: RetrievalEvaluator) -> None:
    whole = made_up(50, 5)
    found = retrieval.folds(whole, folds(config, 5))
    first = found["retrieval"]
    parts = []
    for start in range(0, 50, 10):
        own = range(start, start + 10)
        part = {which: group.take(np.isin(group.images, own)) for which, group in whole.items()}
        parts.append(retrieval.evaluate(part, 0)[0])
    assert found["reranked"] == {} and first.keys() == {"text_to_image", "image_to_text"}
    assert first["text_to_image"]["gallery"] == 10 and first["image_to_text"]["gallery"] == 50
    for direction in first:
        assert first[direction]["R@1"] == pytest.approx(np.mean([part[direction]["R@1"] for part in parts]))
    at_once = retrieval.evaluate(whole, 0)[0]
    assert first["text_to_image"]["R@1"] > at_once["text_to_image"]["R@1"], "a small gallery is easier"


def test_folds_are_reported(config: Config, evaluation: Evaluation) -> None:
    metrics = evaluation.run("dev", settings=folds(config, 3))["folds"]
    assert metrics["count"] == 3 and metrics["gallery"] == 26 and len(metrics["retrieval"]) == 2 * len(COUPLES)


def test_joint_items_are_alike_where_both_of_their_parts_are(engine: Engine, items: dict[int, Items]) -> None:
    """By their inputs: of one text with two clips, or two texts with one clip, the model can tell them apart."""
    texts, clips = items[TEXT], items[AUDIO]
    places = [clips.samples.tolist().index(sample) for sample in texts.samples.tolist() if sample in clips.samples][:3]
    heard = clips.take(np.array(places))
    said = texts.take(np.flatnonzero(np.isin(texts.samples, heard.samples))[:3])
    for of_text, of_clip, groups in (
        ((1, 1, 2), (5, 6, 6), (0, 1, 2)),
        ((1, 1, 1), (5, 6, 5), (0, 1, 0)),
        ((5, 6, 5), (6, 5, 6), (0, 1, 0)),
    ):
        joint = engine.encoder.joint(
            replace(said, inputs=np.array(of_text, np.uint64)), replace(heard, inputs=np.array(of_clip, np.uint64))
        )
        found = joint.inputs.tolist()
        assert [found.index(one) for one in found] == list(groups)

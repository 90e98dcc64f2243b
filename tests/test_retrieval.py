"""Retrieval between all modalities: what must not change it, and what a text with its audio is."""

import copy
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from src.config import CaptionConfig, Config, EvalConfig, RerankConfig, RetrievalConfig, TranscriptConfig
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, JOINT, MATCH_CASES, TEXT
from src.data.writer import DatasetWriter
from src.evaluation.retrieval import COUPLES, Proposal
from src.evaluation.run import Evaluator
from src.inference.encode import Items, encode_split, first_images
from src.models.build import build_model
from src.models.opt import OPT
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
def evaluator(config: Config, model: OPT) -> Evaluator:
    return Evaluator(config, model)


@pytest.fixture(scope="module")
def items(evaluator: Evaluator, config: Config) -> dict[int, Items]:
    with run_mode("graph"):
        return encode_split(evaluator.encoder, Loader(config, "dev"))


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


def with_config(evaluator: Evaluator, config: Config) -> Evaluator:
    """The same with another configuration: its graphs are compiled already."""
    other = copy.copy(evaluator)
    other.config, other._loaders = config, {}
    return other


def found(evaluator: Evaluator) -> dict[str, Any]:
    metrics = evaluator.run("dev")
    return {name: metrics[name] for name in ("gallery", "retrieval", "reranked", "fused_passes")}


def test_neither_batch_size_nor_order_changes_anything(
    config: Config, evaluator: Evaluator, items: dict[int, Items], tmp_path: Path
) -> None:
    """To the last digit: embeddings and figures, re-ranked ones included."""
    expected = found(evaluator)
    other = write(config, tmp_path / "data", np.random.default_rng(1).permutation(RECORDS))
    again = with_config(evaluator, replace(other, eval=replace(other.eval, batch_size=7)))
    moved = encode_split(again.encoder, Loader(again.config, "dev"))
    for modality, group in items.items():
        np.testing.assert_array_equal(moved[modality].embeddings, group.embeddings)
        assert (moved[modality].samples != group.samples).any()
    assert found(again) == expected


def test_every_direction_has_its_figures(evaluator: Evaluator, items: dict[int, Items]) -> None:
    figures = evaluator.retriever.evaluate(items, 0)[0]
    assert figures.keys() == {"t2i", "i2t", "t2a", "a2t", "i2a", "a2i", "ta2i", "i2ta"}
    sizes = {name: figure["gallery"] for name, figure in figures.items()}
    assert sizes["t2i"] == sizes["ta2i"] == len(items[IMAGE]) and sizes["i2t"] == len(items[TEXT])
    assert sizes["i2ta"] == len(np.intersect1d(items[TEXT].samples, items[AUDIO].samples)) < sizes["i2t"]
    for figure in figures.values():
        assert figure.keys() == {"r1", "r5", "r10", "median_rank", "gallery"}


def test_several_captions_count_as_in_coco(evaluator: Evaluator, items: dict[int, Items]) -> None:
    """Every caption asks; of an image's captions the best counts."""
    distinct = first_images(items, RECORDS - 10)
    texts, images = distinct[TEXT], distinct[IMAGE]
    scores = texts.embeddings.astype(np.float64) @ images.embeddings.T.astype(np.float64)
    same = texts.images[:, None] == images.images
    figures = evaluator.retriever.evaluate({TEXT: texts, IMAGE: images}, 0)[0]
    for name, table, relevant in (("t2i", scores, same), ("i2t", scores.T, same.T)):
        asked = relevant.any(1)
        best = np.where(relevant, table, -np.inf).max(1, keepdims=True)
        ranks = (table > best).sum(1)[asked]
        assert figures[name]["r5"] == pytest.approx((ranks < 5).mean(), abs=1e-12)
        assert figures[name]["median_rank"] == np.median(ranks) + 1
    assert same.sum(0).max() == 2, "some image has two captions"


def test_joint_items_are_texts_with_their_own_audio(model: OPT, evaluator: Evaluator, items: dict[int, Items]) -> None:
    joint = evaluator.encoder.joint(items[TEXT], items[AUDIO])
    texts, clips = (items[which].take(joint.parts[:, at]) for at, which in enumerate((TEXT, AUDIO)))
    for part in (texts, clips):
        np.testing.assert_array_equal(joint.samples, part.samples)
    both = texts.embeddings + clips.embeddings
    np.testing.assert_allclose(joint.embeddings, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-6)
    unlike = items[AUDIO].take(np.zeros(0, np.int64))
    assert evaluator.encoder.joint(items[TEXT], unlike) is None


def test_second_score_of_a_text_with_its_audio(model: OPT, evaluator: Evaluator, items: dict[int, Items]) -> None:
    """All three match; the likelihood is that of the text, given the image."""
    some = items | {JOINT: evaluator.encoder.joint(items[TEXT], items[AUDIO])}
    pairs, cosines = np.array([[3, 0], [0, 5], [3, 5]]), np.zeros(3)
    (terms,) = evaluator.retriever.terms([Proposal(some, pairs, cosines)])
    parts = some[JOINT].parts[pairs[:, 1]]
    texts = Proposal({which: items[which] for which in (TEXT, IMAGE)}, np.stack([parts[:, 0], pairs[:, 0]], 1), cosines)
    (of_text,) = evaluator.retriever.terms([texts], ["likelihood"])
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


def test_a_text_and_a_image_are_scored_once_with_and_without_the_speech(
    evaluator: Evaluator, items: dict[int, Items], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    def score(given: int, _items: Items, ids: np.ndarray, pairs: np.ndarray, _label: str) -> np.ndarray:
        if given == IMAGE and ids is items[TEXT].ids:
            asked.append(pairs)
        return pairs[:, 0] * 100.0 + pairs[:, 1]

    monkeypatch.setattr(evaluator.retriever.likelihood, "score", score)
    proposed = evaluator.retriever.first_stage(items, 4)
    scored = evaluator.retriever.scored(proposed, ["likelihood"])
    (pairs,) = asked
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert {direction.name for direction, _, _ in scored} >= {"t2i", "i2t", "ta2i", "i2ta"}
    for direction, chosen, terms in scored:
        if {direction.query, direction.gallery} == {IMAGE, JOINT}:
            images, joint = direction.pairs().T
            texts = chosen[JOINT].parts[joint, 0]
        elif {direction.query, direction.gallery} == {TEXT, IMAGE}:
            texts, images = direction.pairs().T
        else:
            continue
        np.testing.assert_array_equal(terms["likelihood"].reshape(-1), texts * 100.0 + images)


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
        groups[which] = Items(empty[..., None].astype(np.float32), empty, vectors, own, np.arange(len(own)))
    return groups


def test_folds_are_the_mean_over_consecutive_galleries(evaluator: Evaluator) -> None:
    whole = made_up(50, 5)
    first, second = evaluator.retriever.evaluate_folds(whole, 0, 5)
    parts = []
    for start in range(0, 50, 10):
        own = range(start, start + 10)
        part = {which: group.take(np.isin(group.images, own)) for which, group in whole.items()}
        parts.append(evaluator.retriever.evaluate(part, 0)[0])
    assert second == {} and first.keys() == {"t2i", "i2t"}
    assert first["t2i"]["gallery"] == 10 and first["i2t"]["gallery"] == 50
    for direction in first:
        assert first[direction]["r1"] == pytest.approx(np.mean([part[direction]["r1"] for part in parts]))
    assert first["t2i"]["r1"] > evaluator.retriever.evaluate(whole, 0)[0]["t2i"]["r1"], "a small gallery is easier"
    with pytest.raises(DataError, match="eval.folds=60: the gallery has only 50 images"):
        evaluator.retriever.evaluate_folds(whole, 0, 60)


def test_folds_are_reported(config: Config, evaluator: Evaluator) -> None:
    other = with_config(evaluator, replace(config, eval=replace(config.eval, folds=3)))
    figures = other.run("dev", rerank=0)["folds"]
    assert figures["count"] == 3 and figures["gallery"] == 26 and len(figures["retrieval"]) == 2 * len(COUPLES)

"""Images generated and measured: each belongs to its text, the best sample is kept, and a sheet shows them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from src.config import Config, ConfigError, DataConfig, EvalConfig, ImageGenerationConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.image_generation import ImageGenerationEvaluator
from src.inference.encode import Encoder, Items
from src.inference.engine import Engine
from src.inference.images import ImageGenerator
from src.inference.scorers import Matching
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT
from src.report.sheets import generation_sheet
from tests.oracles import VOCAB, random, randomise, run_mode, tiny_model

N = 5


@pytest.fixture(autouse=True)
def graph_mode() -> Iterator[None]:
    with run_mode("graph"):
        yield


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(
        model=tiny_model(),
        data=DataConfig(codes="x"),
        eval=EvalConfig(batch_size=4, image_generation=ImageGenerationConfig(max_items=N)),
    )


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    ms.set_seed(1)
    model = OPT(config.model, VOCAB)
    randomise(model, spread=0.3)
    return model.set_train(False)


@pytest.fixture(scope="module")
def tokenizer(config: Config) -> ImageTokenizer:
    tokenizer = ImageTokenizer(config.model.image_tokenizer)
    randomise(tokenizer, spread=0.3)
    return tokenizer.set_train(False)


def changed(config: Config, **settings: Any) -> Config:
    """The configuration with other settings of the sampling."""
    generation = replace(config.eval.image_generation, **settings)
    return replace(config, eval=replace(config.eval, image_generation=generation))


def image_generator(config: Config, model: OPT, tokenizer: ImageTokenizer, **settings: Any) -> ImageGenerator:
    return ImageGenerator(changed(config, **settings), model, tokenizer, Encoder(model))


def made_up(length: int, width: int, seed: int) -> Items:
    embeddings = random(N, 12, seed=seed)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    mask = np.ones((N, length), np.int32)
    tokens, numbers = random(N, length, width, seed=seed), np.arange(N)
    return Items(tokens, mask, embeddings, numbers, numbers + 7, texts=numbers + 90)


@pytest.fixture(scope="module")
def items(model: OPT) -> dict[int, Items]:
    return {TEXT: made_up(7, 16, 1), AUDIO: made_up(6, 8, 2)}


def test_an_image_depends_on_its_own_text_only(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    generator = image_generator(config, model, tokenizer)
    images = generator.generate(TEXT, items[TEXT])
    assert images.shape == (N, 8, 8, 3) and images.dtype == np.uint8
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(generator.generate(TEXT, items[TEXT].take(order)), images[order])


def test_the_image_that_suits_its_text_best_is_kept(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    encode = Encoder(model)

    def agreement(images: np.ndarray) -> np.ndarray:
        return (encode.image(images).embeddings * items[TEXT].embeddings).sum(1)

    one = image_generator(config, model, tokenizer, temperature=2.0).generate(TEXT, items[TEXT])
    best = image_generator(config, model, tokenizer, temperature=2.0, samples=4).generate(TEXT, items[TEXT])
    assert (agreement(best) >= agreement(one) - 1e-5).all()
    assert (agreement(best) > agreement(one) + 1e-5).any()


def test_a_model_of_regions_generates_images_without_ranking_them(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    """Its image encoder does not read what is generated."""
    model_of_regions = replace(config.model, image=replace(config.model.image, input="region"))
    of_regions = replace(changed(config, max_items=0), model=model_of_regions)
    generator = image_generator(of_regions, model, tokenizer, samples=2)
    generator.encode = None
    images, scores = generator.generate_all(TEXT, items[TEXT])
    assert images.shape == (N, 2, 8, 8, 3) and np.isnan(scores).all()
    np.testing.assert_array_equal(generator.generate(TEXT, items[TEXT]), images[:, 0])
    judged = image_generator(config, model, tokenizer, samples=2).generate_all(TEXT, items[TEXT])
    assert np.array_equal(judged[0], images) and np.isfinite(judged[1]).all()


def test_the_matching_head_ranks_where_it_is_asked_to(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    """Each image with nothing but its text, or its audio clip, is what is scored."""
    generator = image_generator(config, model, tokenizer, temperature=2.0, samples=2, rank_by="matching")
    for modality in (TEXT, AUDIO):
        given = items[modality]
        images, scores = generator.generate_all(modality, given)
        assert images.shape == (N, 2, 8, 8, 3) and scores.shape == (N, 2)
        np.testing.assert_array_equal(generator.generate(modality, given), images[np.arange(N), scores.argmax(1)])
        generated = Encoder(model).image(images[3, 1:])
        one = {modality: given.take(np.array([3])), IMAGE: generated}
        assert Matching(model).score(one, np.array([[0, 0]]))[0] == pytest.approx(scores[3, 1], abs=1e-4)


def test_metrics_of_text_and_of_speech(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items], tmp_path: Path
) -> None:
    """With the embeddings of the generated images as those of the texts every image finds its text."""
    engine = Engine(changed(config, temperature=3.0), model)
    engine.image_tokenizer = tokenizer
    evaluator = ImageGenerationEvaluator(engine)
    generated = engine.image_generator.generate(TEXT, items[TEXT])
    assert len(np.unique(generated.reshape(N, -1), axis=0)) == N
    known = replace(items[TEXT], embeddings=Encoder(model).image(generated).embeddings)
    metrics, images = evaluator.measure({TEXT: known, AUDIO: items[AUDIO]})
    assert metrics.keys() == {"text", "speech"} and metrics["text"]["R@1"] == 1.0
    np.testing.assert_array_equal(images[TEXT], generated)
    generation_sheet(tmp_path / "sheet.png", "title", ("original", "from text"), [("一只猫", [generated[0], None])])
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_an_image_finds_the_texts_of_the_image_that_its_own_clip_describes() -> None:
    """Clips in another order than the texts, one of them of an image that no text describes."""

    def group(images: list[int], said: list[int], vectors: np.ndarray) -> Items:
        nothing = np.zeros((len(images), 1, 1), np.float32)
        order = np.arange(len(images))
        numbers = np.array(images), order, None
        return Items(nothing, nothing[:, :, 0], vectors, *numbers, texts=np.array(said), inputs=order.astype(np.uint64))

    corners = np.eye(4, dtype=np.float32)
    texts = group([0, 1, 2, 3], [1, 2, 3, 4], corners)
    clips = group([7, 2, 0], [9, 3, 1], corners[[0, 2, 0]])
    generator = SimpleNamespace(
        generate=lambda _, given: given.embeddings, encode=lambda made: SimpleNamespace(embeddings=made)
    )
    evaluator = object.__new__(ImageGenerationEvaluator)
    evaluator.engine = SimpleNamespace(image_generator=generator)
    metrics, _ = evaluator.measure({TEXT: texts, AUDIO: clips})
    assert metrics["text"]["R@1"] == metrics["speech"]["R@1"] == 1.0
    assert metrics["text"]["chance_R@1"] == metrics["speech"]["chance_R@1"] == 0.25


def test_generation_needs_a_decoder_and_an_image_tokenizer() -> None:
    asked = EvalConfig(image_generation=ImageGenerationConfig(max_items=3))
    with pytest.raises(ConfigError, match="eval.image_generation.max_items: needs model.image_codes=true"):
        Config(eval=asked)
    with pytest.raises(ConfigError, match="eval.image_generation.max_items: needs data.codes"):
        Config(model=tiny_model(), eval=asked)

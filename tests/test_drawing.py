"""Images drawn and measured: each belongs to its text, the best of several is kept, and a sheet shows them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.config import Config, ConfigError, DataConfig, EvalConfig, ImageGenerationConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.inference.encode import Encoder, Items
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
    tokenizer = ImageTokenizer(config.model.tokenizer)
    randomise(tokenizer, spread=0.3)
    return tokenizer.set_train(False)


def image_generator(config: Config, model: OPT, tokenizer: ImageTokenizer, **settings: float) -> ImageGenerator:
    other = replace(config, eval=replace(config.eval, **settings))
    return ImageGenerator(other, model, tokenizer, Encoder(model))


def made_up(length: int, width: int, seed: int) -> Items:
    embeddings = random(N, 12, seed=seed)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    mask = np.ones((N, length), np.int32)
    return Items(random(N, length, width, seed=seed), mask, embeddings, np.arange(N), np.arange(N) + 7)


@pytest.fixture(scope="module")
def items(model: OPT) -> dict[int, Items]:
    return {TEXT: made_up(7, 16, 1), AUDIO: made_up(6, 8, 2)}


def test_a_image_depends_on_its_own_text_alone(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    image_tokenizer = image_generator(config, model, tokenizer)
    images = image_tokenizer.draw(TEXT, items[TEXT])
    assert images.shape == (N, 8, 8, 3) and images.dtype == np.uint8
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(image_tokenizer.draw(TEXT, items[TEXT].take(order)), images[order])


def test_the_image_that_suits_its_text_best_is_kept(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    encode = Encoder(model)

    def agreement(images: np.ndarray) -> np.ndarray:
        return (encode.image(images).embeddings * items[TEXT].embeddings).sum(1)

    one = image_generator(config, model, tokenizer, draw_temperature=2.0).draw(TEXT, items[TEXT])
    best = image_generator(config, model, tokenizer, draw_temperature=2.0, draw_samples=4).draw(TEXT, items[TEXT])
    assert (agreement(best) >= agreement(one) - 1e-5).all()
    assert (agreement(best) > agreement(one) + 1e-5).any()


def test_the_matching_head_ranks_where_it_is_asked_to(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items]
) -> None:
    """Each image alone with its text, or its audio, is what is scored."""
    image_tokenizer = image_generator(
        config, model, tokenizer, draw_temperature=2.0, draw_samples=2, draw_rank="matching"
    )
    for which in (TEXT, AUDIO):
        images, scores = image_tokenizer.draw_all(which, items[which])
        assert images.shape == (N, 2, 8, 8, 3) and scores.shape == (N, 2)
        np.testing.assert_array_equal(image_tokenizer.draw(which, items[which]), images[np.arange(N), scores.argmax(1)])
        drawn = Encoder(model).image(images[3, 1:])
        one = {which: items[which].take(np.array([3])), IMAGE: drawn}
        assert Matching(model).score(one, np.array([[0, 0]]))[0] == pytest.approx(scores[3, 1], abs=1e-4)


def test_figures_of_text_and_of_speech(
    config: Config, model: OPT, tokenizer: ImageTokenizer, items: dict[int, Items], tmp_path: Path
) -> None:
    """With the embeddings of the drawings themselves as those of the texts every drawing finds its text."""
    image_tokenizer = image_generator(config, model, tokenizer, draw_temperature=1.0)
    drawn = image_tokenizer.draw(TEXT, items[TEXT])
    assert len(np.unique(drawn.reshape(N, -1), axis=0)) == N
    known = replace(items[TEXT], embeddings=Encoder(model).image(drawn).embeddings)
    figures, images = image_tokenizer.measure({TEXT: known, AUDIO: items[AUDIO]})
    assert figures.keys() == {"text", "speech"} and figures["text"]["r1"] == 1.0
    np.testing.assert_array_equal(images[TEXT], drawn)
    generation_sheet(tmp_path / "sheet.png", "title", ("original", "from text"), [("一只猫", [drawn[0], None])])
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_drawing_needs_a_decoder_and_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="eval.draw: needs model.image_codes=true"):
        Config(eval=EvalConfig(image_generation=ImageGenerationConfig(max_items=3)))
    with pytest.raises(ConfigError, match="eval.draw: needs data.codes"):
        Config(model=tiny_model(), eval=EvalConfig(image_generation=ImageGenerationConfig(max_items=3)))

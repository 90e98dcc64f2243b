"""Maps of words: against the network called by hand, and on the demo's scenes, where it is known what stands where."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.config import Config
from src.data.errors import DataError
from src.data.regions import Regions
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.demo.captions import write_caption
from src.demo.render import render
from src.demo.world import sample_scenes
from src.files import ROOT
from src.inference import load
from src.inference.engine import Engine
from src.inference.library import Model
from src.inference.media import Medium
from src.inference.results import MatchMap
from src.models.layers import Attention
from src.models.opt import OPT
from tests.oracles import feature_model, randomise, run_mode

GALLERY = ROOT / "assets" / "gallery"
CAPTION = "红色背景上，左边有一只猫，右边有两个苹果"  # of 01.png
SPOKEN = "红底，左边一只猫，右边两个苹果"  # in speech.wav
SCENES = 12
HALVES = {"左": np.s_[:, :4], "右": np.s_[:, 4:], "上": np.s_[:4], "下": np.s_[4:]}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with run_mode("pynative"):
        yield load("opt_demo", ["runtime.mode=pynative"])


def by_hand(model: Model, given: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of a text's tokens ln p and the last attention to the item's tokens: what stands before each is read anew."""
    network, engine = model.engine.model, model.engine
    (batch,) = model.embed_each(("text", "image", "audio")[given], [path])
    item = engine.encode(batch.media)
    ids, shown = engine.tokenizer.encode(CAPTION if given == IMAGE else SPOKEN, model.config.model.text.max_len)
    # at the full length, where what is absent stands as well
    tokens, masks = [], []
    for modality, shape in ((TEXT, (32, 128)), (IMAGE, (64, 128)), (AUDIO, (52, 128))):
        here = modality == given
        tokens.append(Tensor(item.tokens[:1] if here else np.zeros((1, *shape), np.float32)))
        masks.append(Tensor(item.mask[:1] if here else np.zeros((1, shape[0]), np.int32)))
    presence = Tensor(np.array([[modality == given for modality in (TEXT, IMAGE, AUDIO)]], np.int32))
    fused, mask = network.cross_encoder(*tokens, *masks, presence)
    first, length = (network.first_image, 64) if given == IMAGE else (network.first_audio, 52)
    weights, plain = [], Attention.mix_values

    def mix(self, queries, keys, values, bias):
        scores = self.scores(queries, keys).asnumpy().astype(np.float64) + bias.asnumpy()
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        weights.append((odds / odds.sum(-1, keepdims=True)).mean(1)[0, -1])
        return plain(self, queries, keys, values, bias)

    logs, looks = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "mix_values", mix)
        for count in range(1, int(shown.sum()) - 1):
            logits = network.text_decoder(Tensor(ids[None, :count]), fused, mask).asnumpy()[-1].astype(np.float64)
            logs.append(logits[ids[count]] - np.logaddexp.reduce(logits))
            looks.append(weights[-1][first : first + length])
    return np.array(logs), np.array(looks)


def test_a_map_is_the_decoders_last_attention(model: Model) -> None:
    for given, path in ((IMAGE, GALLERY / "01.png"), (AUDIO, GALLERY / "speech.wav")):
        asked = {"text": CAPTION, "image": path} if given == IMAGE else {"text": SPOKEN, "audio": path}
        found = model.match_map(**asked)
        logs, looks = by_hand(model, given, path)
        count = found.weights[0].size
        np.testing.assert_allclose(found.logs, logs, atol=1e-4)
        np.testing.assert_allclose(found.weights.reshape(len(logs), -1), looks[:, :count], atol=1e-5)
        assert looks[:, count:].max(initial=0) < 1e-6 and found.weights.shape[1:] == (
            (8, 8) if given == IMAGE else (22,)
        )


def test_graphs_and_python_agree(model: Model) -> None:
    found = model.match_map(CAPTION, image=GALLERY / "01.png")
    with run_mode("graph"):
        compiled = load("opt_demo").match_map(CAPTION, image=GALLERY / "01.png")
    np.testing.assert_allclose(compiled.weights, found.weights, atol=1e-5)


def test_words_point_at_their_objects(model: Model) -> None:
    """In the half of the image where an object stands, of which chance finds one in two. And always the same."""
    scenes = [scene for scene in sample_scenes("demo_full", "test", 3 * SCENES, 5) if len(scene.facts.items) == 2]
    right = []
    for scene in scenes[:SCENES]:
        found = model.match_map(write_caption(scene), image=render(scene))
        for item in scene.facts.items:
            half = np.zeros((8, 8), bool)
            half[HALVES[item.place]] = True
            right.append(half.reshape(-1)[found.of(item.name).argmax()])
    assert len(right) == 2 * SCENES and np.mean(right) > 0.95
    again = model.match_map(write_caption(scene), image=render(scene))
    assert (again.weights == found.weights).all()


def test_words_are_heard_in_their_order(model: Model) -> None:
    found = model.match_map(SPOKEN, audio=GALLERY / "speech.wav")
    peaks = [found.of(word).argmax() for word in ("红", "一只", "猫", "两个", "苹果")]
    assert peaks == sorted(peaks) and len(set(peaks)) == len(peaks)


def test_a_word_that_is_not_there_is_unlikely(model: Model) -> None:
    likely = [
        {word: share for word, share, _ in model.match_map(text, image=GALLERY / "01.png").words()}
        for text in (CAPTION, CAPTION.replace("猫", "狗"))
    ]
    assert list(likely[0])[:3] == ["红色", "背景", "上"]
    assert likely[0]["猫"] > 0.9 and likely[1]["狗"] < 0.1 and likely[1]["苹果"] > 0.9


def test_words_and_their_parts() -> None:
    """Token by token: a word of several, a part of one, one that occurs twice, pieces of a foreign word."""
    looks = np.arange(14.0).reshape(7, 2) ** 2
    owners = np.array([0, 0, 1, 2, 2, 3, 3], np.int32)
    found = MatchMap(["苹", "果", "猫", "苹", "果", "wi", "##fi"], owners, np.log(np.full(7, 0.5)), looks)
    np.testing.assert_array_equal(found.of("猫"), looks[2])
    np.testing.assert_array_equal(found.of("果"), (looks[1] + looks[4]) / 2)
    np.testing.assert_array_equal(found.of("苹果"), looks[[0, 1, 3, 4]].mean(0))
    for word in ("WiFi", "wífi", "wi fi"):  # case, accents and spaces make no difference to a model
        np.testing.assert_array_equal(found.of(word), (looks[5] + looks[6]) / 2)
    words = found.words()
    assert [word for word, _, _ in words] == ["苹果", "猫", "苹果", "wifi"]
    assert [likely for _, likely, _ in words] == pytest.approx([0.25, 0.5, 0.25, 0.25])
    np.testing.assert_array_equal(words[0][2], (looks[0] + looks[1]) / 2)
    for word in ("狗", " "):
        with pytest.raises(DataError, match="not in what the model reads of the text, '苹果猫苹果wifi': name a"):
            found.of(word)


def test_an_image_of_regions_has_a_place_for_each() -> None:
    """Those that it lacks are no places; a network of other widths and of a single layer."""
    config = replace(Config(), model=feature_model())
    network = OPT(config.model, Tokenizer(config.model.text.vocab).size)
    randomise(network, spread=0.1)
    model = Model(Engine(config, network), "", 1)
    boxes = np.array([[0, 0, 5, 5], [2, 2, 9, 9], [1, 1, 3, 3]], np.float32)
    features = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float16)
    regions = Regions(features, boxes, np.zeros(3, np.int32), np.zeros(3, np.float32), 10, 10)
    found = model.match_map("一只猫", image=Medium("regions", IMAGE, regions))
    assert found.weights.shape == (3, 3) and (found.weights > 0).all() and (found.weights.sum(1) < 1).all()


def test_what_is_asked_must_be_one_thing(model: Model) -> None:
    for given in ({}, {"image": GALLERY / "01.png", "audio": GALLERY / "speech.wav"}):
        with pytest.raises(DataError, match="match_map: give either an image or an audio clip"):
            model.match_map(CAPTION, **given)
    with pytest.raises(DataError, match="text: the text is empty"):
        model.match_map(" ", image=GALLERY / "01.png")
    with pytest.raises(DataError, match=r"match_map: '\\u200b' holds nothing that the model reads"):
        model.match_map("\u200b", image=GALLERY / "01.png")


def test_a_long_text_is_cut(model: Model) -> None:
    found = model.match_map("猫" * 40, image=GALLERY / "01.png")
    assert len(found.tokens) == len(found.logs) == model.config.model.text.max_len - 1
    found = model.match_map("猫" * 40 + "狗", image=GALLERY / "01.png")
    with pytest.raises(DataError, match=f"'狗' is not in what the model reads of the text, '{'猫' * 31}': name a word"):
        found.of("狗")

"""Maps of words: against the network called by hand, and on the demo's scenes, where it is known what stands where."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE
from src.demo.captions import write_caption
from src.demo.render import render
from src.demo.world import sample_scenes
from src.files import ROOT
from src.inference import load
from src.inference.library import Model
from src.inference.match_map import surroundings
from src.inference.results import MatchMap
from src.models.layers import padding_bias
from tests.oracles import feature_model, run_mode

GALLERY = ROOT / "assets" / "gallery"
CAPTION = "红色背景上，左边有一只猫，右边有两个苹果"  # of 01.png
SPOKEN = "红底，左边一只猫，右边两个苹果"  # in speech.wav
SCENES = 12
HALVES = {"左": np.s_[:, :4], "右": np.s_[:, 4:], "上": np.s_[:4], "下": np.s_[4:]}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with run_mode("pynative"):
        yield load("opt_demo", ["runtime.mode=pynative"])


def by_hand(model: Model, given: int, path: Path, hidden: list[int]) -> np.ndarray:
    """ln p of a text's tokens, one after the other: the decoder reads what stands before each."""
    network, engine = model.engine.model, model.engine
    (batch,) = model.embed_each(("text", "image", "audio")[given], [path])
    item = engine.encode(batch.media)
    mask = item.mask[:1].copy()
    mask[0, hidden] = 0
    ids, shown = engine.tokenizer.encode(CAPTION if given == IMAGE else SPOKEN, model.config.model.text.max_len)
    fused, fused_mask = network.cross_encoder.fuse_single_modality(Tensor(item.tokens[:1]), Tensor(mask), given)
    places = Tensor(network.cross_encoder.single_modality_positions(given))
    memory = network.text_decoder.read(fused, places)
    found = []
    for count in range(1, int(shown.sum()) - 1):
        logits = network.text_decoder.score(Tensor(ids[None, :count]), memory, padding_bias(fused_mask)).asnumpy()[-1]
        logits = logits.astype(np.float64)
        found.append(logits[ids[count]] - np.logaddexp.reduce(logits))
    return np.array(found)


def test_a_drop_is_what_the_decoder_loses(model: Model) -> None:
    """Of an image the place in the middle and one in a corner, of a clip one inside and the first."""
    image, clip = GALLERY / "01.png", GALLERY / "speech.wav"
    found = model.match_map(CAPTION, image=image)
    whole = by_hand(model, IMAGE, image, [])
    np.testing.assert_allclose(found.logs, whole, atol=1e-4)
    for (row, column), hidden in (
        ((4, 2), [25, 26, 27, 33, 34, 35, 41, 42, 43]),
        ((0, 7), [6, 7, 14, 15]),
    ):
        drop = whole - by_hand(model, IMAGE, image, hidden)
        np.testing.assert_allclose(found.drops[:, row, column], drop, atol=1e-3)
    heard = model.match_map(SPOKEN, audio=clip)
    whole = by_hand(model, AUDIO, clip, [])
    np.testing.assert_allclose(heard.logs, whole, atol=1e-4)
    for place, hidden in ((0, [0, 1]), (9, [8, 9, 10])):
        np.testing.assert_allclose(heard.drops[:, place], whole - by_hand(model, AUDIO, clip, hidden), atol=1e-3)


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
    assert len(right) == 2 * SCENES and np.mean(right) > 0.9
    again = model.match_map(write_caption(scene), image=render(scene))
    assert (again.drops == found.drops).all()


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
    drops = np.arange(14.0).reshape(7, 2) ** 2
    owners = np.array([0, 0, 1, 2, 2, 3, 3], np.int32)
    found = MatchMap(["苹", "果", "猫", "苹", "果", "wi", "##fi"], owners, np.log(np.full(7, 0.5)), drops)
    np.testing.assert_array_equal(found.of("猫"), drops[2])
    np.testing.assert_array_equal(found.of("果"), drops[1] + drops[4])
    np.testing.assert_array_equal(found.of("苹果"), drops[[0, 1, 3, 4]].sum(0))
    np.testing.assert_array_equal(found.of("WiFi"), drops[5] + drops[6])
    words = found.words()
    assert [word for word, _, _ in words] == ["苹果", "猫", "苹果", "wifi"]
    assert [likely for _, likely, _ in words] == pytest.approx([0.25, 0.5, 0.25, 0.25])
    np.testing.assert_array_equal(words[0][2], drops[0] + drops[1])
    for word in ("狗", " "):
        with pytest.raises(DataError, match="is not in the text '苹果猫苹果wifi': name a word of it"):
            found.of(word)


def test_surroundings_end_at_the_border() -> None:
    near = surroundings((3, 4))
    assert near.shape == (12, 12) and (near == near.T).all()
    assert np.flatnonzero(near[0]).tolist() == [0, 1, 4, 5]
    assert near[5].sum() == 9 and np.flatnonzero(surroundings((5,))[4]).tolist() == [3, 4]


def test_regions_are_hidden_one_by_one() -> None:
    """They have no neighbours; those that an image does not have are no places."""
    mask = np.array([1, 1, 1, 0, 0], np.int32)
    config = feature_model()
    model = Model(type("Engine", (), {"config": type("Config", (), {"model": config})})(), "", 1)
    shape, hidden = model._places(IMAGE, mask)
    assert shape == (3,) and (hidden == np.eye(3, 5, dtype=bool)).all()
    assert model._places(AUDIO, mask)[1].sum() == 2 + 3 + 2


def test_what_is_asked_must_be_one_thing(model: Model) -> None:
    for given in ({}, {"image": GALLERY / "01.png", "audio": GALLERY / "speech.wav"}):
        with pytest.raises(DataError, match="match_map: give either an image or an audio clip"):
            model.match_map(CAPTION, **given)
    with pytest.raises(DataError, match="text: the text is empty"):
        model.match_map(" ", image=GALLERY / "01.png")


def test_a_long_text_is_cut(model: Model) -> None:
    found = model.match_map("猫" * 40, image=GALLERY / "01.png")
    assert len(found.tokens) == len(found.logs) == model.config.model.text.max_len - 1

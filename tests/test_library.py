"""The library: its answers against the network called by hand, what must not change them, what it says of mistakes."""

import doctest
import gc
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mindspore import Tensor
from PIL import Image

import src.inference
from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import REPORT, CheckpointError
from src.config import Config, ConfigError
from src.data.audio import read_audio
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.files import ROOT
from src.inference import answers, inputs, library, load
from src.inference.engine import Engine
from src.inference.inputs import modality_of, read_item
from src.inference.library import Model
from src.inference.media import Medium
from src.inference.rerank import Proposal
from src.models.build import build_model
from tests.conftest import tiny_dataset
from tests.oracles import run_mode, tiny_model

GALLERY = ROOT / "assets" / "gallery"
EVERY_IMAGE = sorted(GALLERY.glob("*.png"))
IMAGES = EVERY_IMAGE[:12]  # a dozen says as much in less time
SPEECH = GALLERY / "speech.wav"
TEXTS = ["红色背景上，左边有一只猫", "蓝色背景上，中间有两个苹果", "绿底，一条鱼", "一只小狗", "三朵花"]
ROUNDING = 5e-7  # a kernel rounds a row differently in another batch


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with run_mode("pynative"):
        yield load("opt_demo", ["runtime.mode=pynative"])


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Images of the size that the model reads, so that nothing is resized."""
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in IMAGES])


def with_batches(model: Model, size: int) -> Model:
    """The same network, so many items at once."""
    return Model(Engine(model.config, model.engine.model, rows=size), model.name, size)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def encoded_alone(model: Model, modality: int, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Embedding, tokens and mask of one item, by the parts of the network."""
    network = model.engine.model
    inputs = [Tensor(array[None]) for array in arrays]
    if modality == TEXT:
        tokens, mask = network.text_encoder(*inputs), inputs[1]
        embedding = network.embed_text(tokens, mask)
    elif modality == IMAGE:
        tokens, mask = network.encode_image(inputs)
        embedding = network.embed_image(tokens, mask)
    else:
        tokens, mask = network.audio_encoder(*inputs)
        embedding = network.embed_audio(tokens, mask)
    return tuple(part.asnumpy() for part in (embedding, tokens, mask))


def heard(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """What the audio encoder reads of the spoken query."""
    config = model.config.model.audio
    clip = read_audio(SPEECH, config)
    room = np.zeros((config.length, config.mels), np.uint8)
    room[: len(clip)] = clip
    return room, np.int32(len(clip))


# answers


def test_vectors_are_those_of_the_network(model: Model, pixels: np.ndarray) -> None:
    rows = [model.engine.tokenizer.encode(text, model.config.model.text.max_len) for text in TEXTS]
    for found, expected in (
        (model.embed_text(TEXTS), [encoded_alone(model, TEXT, *row)[0][0] for row in rows]),
        (model.embed_image(pixels), [encoded_alone(model, IMAGE, image)[0][0] for image in pixels]),
        (model.embed_audio([SPEECH]), [encoded_alone(model, AUDIO, *heard(model))[0][0]]),
    ):
        assert found.dtype == np.float32 and found.shape == (len(expected), model.dim)
        np.testing.assert_allclose(found, expected, atol=ROUNDING)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_an_item_is_the_same_in_every_form(model: Model, tmp_path: Path) -> None:
    path = IMAGES[0]
    array = np.asarray(Image.open(path).convert("RGB"))
    clear = np.concatenate([array, np.full((*array.shape[:2], 1), 255, np.uint8)], 2)
    forms = [str(path), path, Image.open(path), array, clear, array[:, ::1]]
    images = model.embed_image(forms)
    assert (images == images[0]).all()
    grey = np.asarray(Image.open(path).convert("L"))
    assert (model.embed_image([grey]) == model.embed_image([np.stack([grey] * 3, 2)])).all()
    turned = Image.fromarray(array)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    by_path, opened = model.embed_image([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    assert (by_path == opened).all() and np.abs(by_path - images[0]).max() > 0.01

    wave, rate = soundfile.read(SPEECH, dtype="float32")
    whole, _ = soundfile.read(SPEECH, dtype="int16")
    clips = [SPEECH, (wave, rate), (whole, rate), (wave.astype(np.float64), np.int64(rate)), (wave[:, None], rate)]
    spoken = model.embed_audio(clips)
    assert (spoken == spoken[0]).all()

    twice = np.repeat(wave, 2)  # at twice the rate it lasts as long, and all of it is heard
    later = np.concatenate([twice[: len(wave)], np.zeros(len(wave), np.float32)])
    double, half = model.embed_audio([(twice, 2 * rate), (later, 2 * rate)])
    assert double @ spoken[0] > 0.99 > half @ spoken[0]

    (tmp_path / "a.txt").write_text(f"\ufeff{TEXTS[0]}\n", encoding="utf-8")
    texts = model.embed_text([TEXTS[0], tmp_path / "a.txt"])
    assert (texts[0] == texts[1]).all()


def test_neither_batch_nor_order_nor_number_changes_an_answer(model: Model) -> None:
    """Vectors up to rounding, generated texts not at all; a generator is as good as a list."""
    spoken = [SPEECH] * 3
    for call, items in (
        (lambda one: one.embed_text, TEXTS),
        (lambda one: one.embed_image, IMAGES),
        (lambda one: one.embed_audio, spoken),
    ):
        whole = call(model)(items)
        alone = np.concatenate([call(model)([item]) for item in items])
        np.testing.assert_allclose(alone, whole, atol=ROUNDING)
        np.testing.assert_allclose(call(model)(item for item in items[::-1])[::-1], whole, atol=ROUNDING)
        for size in (1, 3):
            np.testing.assert_allclose(call(with_batches(model, size))(items), whole, atol=ROUNDING)
    captions = model.caption(IMAGES)
    assert len(set(captions)) == len(IMAGES)
    assert with_batches(model, 5).caption(iter(IMAGES[::-1]))[::-1] == captions
    assert model.caption(IMAGES[2:3]) == captions[2:3]


def test_similarity_and_nearest(model: Model) -> None:
    texts, images = model.embed_text(TEXTS), model.embed_image(IMAGES)
    expected = texts.astype(np.float64) @ images.astype(np.float64).T
    np.testing.assert_allclose(model.similarity(texts, images), expected, atol=1e-6)
    assert model.similarity(texts[0], images).shape == (1, len(IMAGES))
    places, cosines = model.nearest(texts, images, 3)
    np.testing.assert_array_equal(places, np.argsort(-expected, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(cosines, np.sort(expected, axis=1)[:, ::-1][:, :3], atol=1e-6)
    assert model.nearest(texts[0], images[:2], 9)[0].shape == (1, 2)
    with pytest.raises(ValueError, match="gallery embeddings have shape"):
        model.similarity(texts, images[:, :5])


def test_a_ranking_by_vectors_is_that_of_the_cosines(model: Model) -> None:
    """Of the query's own modality; what one gives as vectors is not encoded again."""
    cosines = (model.embed_image(IMAGES) @ model.embed_image(IMAGES[3:4])[0]).astype(np.float64)
    hits = model.rank(IMAGES[3], IMAGES, top=4)
    assert [hit.index for hit in hits] == np.argsort(-cosines, kind="stable")[:4].tolist()
    np.testing.assert_allclose([hit.cosine for hit in hits], np.sort(cosines)[::-1][:4], atol=1e-6)
    odds = np.exp(model.engine.model.scale().asnumpy() * (cosines - cosines.max()))
    np.testing.assert_allclose([hit.share for hit in hits], np.sort(odds / odds.sum())[::-1][:4], atol=1e-4)
    upside_down = -model.embed_image(IMAGES)
    assert model.rank(IMAGES[3], IMAGES, 1, upside_down)[0].index == cosines.argmin()


def test_a_ranking_is_re_ranked_by_the_second_score(model: Model) -> None:
    """All of a small gallery are candidates: the scores of all pairs by the reranker alone say the order."""
    text = TEXTS[0]
    engine = model.engine
    items = {TEXT: engine.encode([inputs.read_item(text, TEXT, "t", model.config.model)])}
    items[IMAGE] = engine.encode([inputs.read_item(path, IMAGE, "i", model.config.model) for path in IMAGES])
    pairs = np.stack([np.zeros(len(IMAGES), np.int64), np.arange(len(IMAGES))], 1)
    cosines = model.similarity(items[TEXT].embeddings, items[IMAGE].embeddings)[0]
    scores = engine.reranker.scores(Proposal(items, pairs, cosines))
    hits = model.rank(text, IMAGES, top=12)
    assert [hit.index for hit in hits] == np.argsort(-scores, kind="stable").tolist()
    odds = np.exp(scores - scores.max())
    np.testing.assert_allclose([hit.share for hit in hits], np.sort(odds / odds.sum())[::-1], atol=1e-4)
    assert [hit.index for hit in model.rank(text, IMAGES, 12, model.embed_image(IMAGES))] == [h.index for h in hits]
    # one alone is the best of all candidates by the second score, not the nearest by vectors that say the opposite
    scores = engine.reranker.scores(Proposal(items, pairs, -cosines))
    (hit,) = model.rank(text, IMAGES, 1, -model.embed_image(IMAGES))
    assert hit.index == scores.argmax() != cosines.argmin()


def test_candidates_are_as_many_as_the_configuration_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hits are shown; those behind the candidates follow by their cosines."""
    rerank = replace(model.config.eval.rerank, top_k=3)
    config = replace(model.config, eval=replace(model.config.eval, rerank=rerank))
    monkeypatch.setattr(model.engine, "config", config)
    few, all_hits = (model.rank(TEXTS[0], IMAGES, top) for top in (3, len(IMAGES)))
    assert [hit.index for hit in all_hits[:3]] == [hit.index for hit in few]
    cosines = [hit.cosine for hit in all_hits]
    assert min(cosines[:3]) >= cosines[3] and cosines[3:] == sorted(cosines[3:], reverse=True)
    shares = [hit.share for hit in all_hits]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1.0)


def test_what_says_no_modality_is_passed_over_where_errors_are(model: Model) -> None:
    """Also as the first one, which says of what modality the others are."""
    odd = [Path("nope.xyz"), None, IMAGES[0]]
    assert len(model.classify(odd, ["猫", "狗"], on_error="skip").best) == 1
    (hit,) = model.rank("猫", odd, on_error="skip")
    assert hit.index == 2
    for ask in (lambda: model.classify(odd, ["猫", "狗"]), lambda: model.rank("猫", odd)):
        with pytest.raises(DataError, match=r"nope\.xyz: expected a file that ends in"):
            ask()
    with pytest.raises(DataError, match="None"):
        model.rank("猫", odd[:2], on_error="skip")


def test_a_candidate_that_is_gone_takes_no_other_ones_cosine(model: Model, tmp_path: Path) -> None:
    """Where vectors were made before, the nearest file may have been deleted since."""
    others, gone = IMAGES[:5], IMAGES[5]
    gallery = [*others[:2], tmp_path / "gone.png", *others[2:]]
    vectors = model.embed_image([*others[:2], gone, *others[2:]])
    cosines = model.similarity(model.embed_image([gone]), vectors)[0]
    failed: dict[int, DataError] = {}
    hits = model.rank(gone, gallery, 9, vectors, on_error=failed.__setitem__)
    assert list(failed) == [2] and cosines.argmax() == 2
    assert [hit.index for hit in hits] == [at for at in np.argsort(-cosines, kind="stable") if at != 2]
    np.testing.assert_allclose([hit.cosine for hit in hits], np.sort(np.delete(cosines, 2))[::-1], atol=1e-6)


def test_a_match_is_what_the_matching_head_says(model: Model, pixels: np.ndarray) -> None:
    """By hand: fused pair by pair, and the probability of the cases in which the given ones belong together."""
    network = model.engine.model
    row = model.engine.tokenizer.encode(TEXTS[0], model.config.model.text.max_len)
    text, image = encoded_alone(model, TEXT, *row), encoded_alone(model, IMAGE, pixels[0])
    audio = encoded_alone(model, AUDIO, *heard(model))
    for given, cases in (
        ((1, 1, 0), ("text+image", "all")),
        ((1, 0, 1), ("text+audio", "all")),
        ((1, 1, 1), ("all",)),
    ):
        parts = [
            [array * np.array(here, array.dtype) for array in part]
            for here, part in zip(given, (text, image, audio), strict=True)
        ]
        embeddings, tokens, masks = zip(*parts, strict=True)
        presence = Tensor(np.array([given], np.int32))
        fused, _ = network.cross_encoder(*map(Tensor, tokens), *map(Tensor, masks), presence)
        logits = network.matching_head(fused[:, 0], *map(Tensor, embeddings), presence).asnumpy()[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        expected = sum(odds[MATCH_CASES.index(case)] for case in cases) / odds.sum()
        columns = {"text": TEXTS[:1], "image": pixels[:1], "audio": [SPEECH]}
        chosen = {name: column for (name, column), here in zip(columns.items(), given, strict=True) if here}
        found = model.match(**chosen)
        assert found.shape == (1,) and found[0] == pytest.approx(expected, abs=1e-4)


def test_classes_are_the_normalised_means_of_their_prompts(model: Model) -> None:
    labels, templates = ["猫", "苹果", "狗"], ["一只{}", "红色背景上，左边有一只{}", "{}"]
    prompts = [[template.format(label) for template in templates] for label in labels]
    classes = unit(np.stack([model.embed_text(texts).astype(np.float64).mean(0) for texts in prompts]))
    np.testing.assert_allclose(model.embed_labels(labels, templates), classes, atol=1e-6)
    found = model.classify(IMAGES, labels, templates)
    cosines = model.embed_image(IMAGES).astype(np.float64) @ classes.T
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)
    odds = np.exp(float(model.engine.model.scale().asnumpy()) * cosines)
    np.testing.assert_allclose(found.shares, odds / odds.sum(1, keepdims=True), atol=1e-4)
    assert found.best == [labels[at] for at in cosines.argmax(1)]
    spoken = model.classify([str(SPEECH)], labels)
    np.testing.assert_allclose(spoken.cosines, model.similarity(model.embed_audio([SPEECH]), model.embed_text(labels)))


def test_a_batch_of_which_some_are_encoded_has_all_its_rows(model: Model) -> None:
    media = [medium for batch in model.embed_each("image", IMAGES[:2]) for medium in batch.media]
    known = model.encoded(media[:1])
    assert known[0].encoding is not None
    mixed = model.engine.encode([*known, media[1]])
    np.testing.assert_allclose(mixed.embeddings, model.embed_image(IMAGES[:2]), atol=1e-5)


def test_generated_images_depend_on_prompt_and_seed_alone(model: Model) -> None:
    made = model.generate_image([TEXTS[0], SPEECH, TEXTS[1]], seed=5)
    alone = model.generate_image([TEXTS[1]], seed=5)
    assert (made[2].image == alone[0].image).all() and np.isnan(made[2].scores).all()
    assert (model.generate_image([TEXTS[1]], seed=6)[0].image != alone[0].image).any()
    assert (model.generate_image([TEXTS[1]], seed=5, guidance=2.0)[0].image != alone[0].image).any()
    (several,) = model.generate_image([TEXTS[1]], seed=5, samples=2)
    assert several.images.shape == (2, 64, 64, 3) and (np.diff(several.scores) <= 0).all()
    expected = model.similarity(model.embed_image(several.images), model.embed_text(TEXTS[1:2]))[:, 0]
    np.testing.assert_allclose(several.scores, expected, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2])
def test_an_image_that_nothing_scored_is_given_no_score(
    model: Model, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets: list[list[str]] = []
    monkeypatch.setattr(answers, "album_sheet", lambda path, title, items: sheets.append([text for _, text in items]))
    generator = model.engine.image_generator
    monkeypatch.setattr(generator, "sampling", replace(generator.sampling, samples=samples))
    subject = Medium(TEXTS[0], TEXT, TEXTS[0])
    (made,) = model.generate_image([subject])
    expected = made.scores.tolist() if samples > 1 else [None]
    shown = ["–" if score is None else f"{score:.3f}" for score in expected]
    assert answers.generate(model, subject, tmp_path) == pytest.approx(expected)
    rows = capsys.readouterr().out.splitlines()[-samples:]
    assert [row.split()[-1] for row in rows] == shown
    assert sheets == [["1"] if samples == 1 else [f"{at}  {score}" for at, score in enumerate(shown, 1)]]
    told = json.loads((tmp_path / "generated.json").read_text(encoding="utf-8"))["images"]
    assert [image["score"] for image in told] == pytest.approx(expected, abs=1e-5)


def test_a_transcript_beside_its_image(model: Model) -> None:
    alone, beside = model.transcribe([SPEECH]), model.transcribe([SPEECH, SPEECH], images=IMAGES[:2])
    assert "猫" in alone[0] and beside[0] == alone[0] and len(beside) == 2


def test_the_example_gallery_has_right_answers(model: Model) -> None:
    """The README's first query finds a red scene with a cat at its left, each clip the image that it is of."""
    vectors = model.embed_image(EVERY_IMAGE)
    lines = (GALLERY / "captions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    captions = dict(line.split("\t") for line in lines)
    (hit,) = model.rank("红底，左边一只猫", EVERY_IMAGE, 1, vectors)
    assert captions[EVERY_IMAGE[hit.index].name].startswith("红底，左边一只猫")
    clips = {path.with_suffix(".png").name: path for path in GALLERY.glob("*.ogg")} | {"01.png": SPEECH}
    assert model.transcribe(list(clips.values())) == [captions[name] for name in clips]
    for name, clip in clips.items():
        (hit,) = model.rank(clip, EVERY_IMAGE, 1, vectors)
        assert EVERY_IMAGE[hit.index].name == name


# items


def test_memory_is_flat(model: Model, pixels: np.ndarray) -> None:
    """A generator is read a batch at a time, and what was answered is let go."""
    pulled: list[weakref.ref] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            image = pixels[0].copy()
            pulled.append(weakref.ref(image))
            yield image

    some = with_batches(model, 4)
    batches = some.embed_each("image", endless())
    for number in range(3):
        assert next(batches).numbers == list(range(4 * number, 4 * number + 4))
        gc.collect()
        assert len(pulled) == 4 * number + 4 and sum(ref() is not None for ref in pulled) <= 4


def test_bad_items_are_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    items = [IMAGES[0], tmp_path / "bad.png", IMAGES[1], np.zeros((4, 4), np.float32), IMAGES[2]]
    with pytest.raises(DataError, match=r"bad\.png: not a readable image"):
        model.embed_image(items)
    kept = model.embed_image([IMAGES[0], IMAGES[1], IMAGES[2]])
    with pytest.warns(UserWarning) as warned:
        assert (model.embed_image(items, on_error="skip") == kept).all()
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2 and "bad.png" in said[0] and said[1].startswith("skipped: images[3]: an array float32[4, 4]")
    failed: dict[int, DataError] = {}
    captions = model.caption(items, on_error=failed.__setitem__)
    assert list(failed) == [1, 3] and len(captions) == 3
    hits = model.rank(TEXTS[0], items, top=9, on_error=failed.__setitem__)
    assert {hit.index for hit in hits} == {0, 2, 4}
    failed.clear()
    assert model.embed_image(items[1:2], on_error=failed.__setitem__).shape == (0, model.dim) and list(failed) == [0]
    assert len(model.match(text=[*TEXTS[:4], " "], image=items, on_error=failed.__setitem__)) == 2
    with pytest.raises(ValueError, match="on_error='ignore'"):
        model.embed_text(TEXTS, on_error="ignore")


def test_nothing_is_an_answer_about_nothing(model: Model) -> None:
    for vectors in (model.embed_text([]), model.embed_image(iter(())), model.embed_audio([])):
        assert vectors.shape == (0, model.dim) and vectors.dtype == np.float32
    assert model.caption([]) == model.transcribe([]) == model.generate_image([]) == []
    assert model.match(text=[], image=[]).shape == (0,) and model.classify([], ["猫"]).cosines.shape == (0, 1)


GONE = [Path("gone.png"), Path("lost.png")]


def left_out(number: int, error: DataError) -> None:
    """As ``on_error``."""


MISTAKES = [
    (lambda m: m.embed_text("一只猫"), "texts: expected a list of them, not str"),
    (lambda m: m.embed_text(["猫", " "]), r"texts\[1\]: the text is empty"),
    (lambda m: m.embed_text([3]), r"texts\[0\]: expected a text, not int"),
    (lambda m: m.embed_image(np.zeros((8, 8, 3), np.uint8)), "images: expected a list of them, not ndarray"),
    (lambda m: m.embed_image(["none.png"]), "none.png: no such file"),
    (lambda m: m.classify(np.zeros((8, 8, 3), np.uint8), ["猫"]), "items: expected a list of them, not ndarray"),
    (lambda m: m.classify(Image.new("RGB", (8, 8)), ["猫"]), "items: expected a list of them, not Image"),
    (lambda m: m.classify(str(IMAGES[0]), ["猫"]), "items: expected a list of them, not str"),
    (lambda m: m.rank("猫", IMAGES[0]), "gallery: expected a list of them, not PosixPath"),
    (lambda m: m.embed_image([GALLERY]), "gallery is a folder: expected a file of image"),
    (lambda m: m.embed_image([SPEECH]), r"speech\.wav: expected a file that ends in \.png"),
    (lambda m: m.embed_image([None]), r"images\[0\]: expected a path, a Pillow image or an array, not NoneType"),
    (lambda m: m.embed_image([np.zeros((8, 8, 2), np.uint8)]), r"images\[0\]: an array uint8\[8, 8, 2\]"),
    (lambda m: m.embed_image([np.zeros((0, 8, 3), np.uint8)]), r"images\[0\]: an array uint8\[0, 8, 3\]"),
    (lambda m: m.embed_audio([np.zeros(8)]), r"clips\[0\]: expected a path or \(array of samples, rate\)"),
    (lambda m: m.embed_audio([(np.zeros(0), 8000)]), r"clips\[0\]: the audio is empty"),
    (lambda m: m.embed_audio([(np.zeros(9), 8000.5)]), r"clips\[0\]: a sample rate of 8000\.5"),
    (lambda m: m.embed_audio([(np.zeros((2, 900)), 8000)]), r"clips\[0\]: samples float64\[2, 900\]"),
    (
        lambda m: m.embed_audio([(np.full(9, np.nan), 8000)]),
        r"clips\[0\]: the audio contains values that are not finite",
    ),
    (lambda m: m.match(text=TEXTS), "match: give two or three of text, image, audio"),
    (lambda m: m.match(text=TEXTS[:1], image=IMAGES[:2]), "texts and images differ in number"),
    (lambda m: m.classify(IMAGES, []), "labels: give at least one, and each once"),
    (lambda m: m.classify(IMAGES, ["猫", "猫"]), "labels: give at least one, and each once"),
    (lambda m: m.classify(IMAGES, ["猫"], ["一只"]), "templates: each must hold {}"),
    (lambda m: m.rank("猫", []), "gallery: there is nothing to rank"),
    (lambda m: m.rank("猫", IMAGES, 5, np.zeros((3, 128), np.float32)), "vectors: 3 of them for a gallery of 12 items"),
    (lambda m: m.rank(Path("a.pdf"), IMAGES), r"query: a\.pdf: expected a file that ends in"),
    (lambda m: m.generate_image([IMAGES[0]]), r"prompts\[0\]: an image: expected a text or an audio clip"),
    (lambda m: m.embed_image([Medium("猫", TEXT, "猫")]), r"images\[0\]: text, expected image"),
    (lambda m: m.classify(["none/a.txt"], ["猫"]), r"none/a\.txt: a text: expected images or audio clips"),
    (lambda m: m.classify([3], ["猫"]), r"items\[0\]: int: expected a text, an image or audio"),
    (lambda m: m.rank("猫", GONE, 1, on_error=left_out), "gallery: nothing of it can be read"),
    (
        lambda m: m.rank("猫", GONE * 20, 1, np.zeros((40, m.dim), np.float32), on_error=left_out),
        "gallery: none of the best 16 can be read",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes_are_one_line(model: Model, call, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_what_another_network_makes_is_read_from_files(tmp_path: Path) -> None:
    """Not from memory, where it would be pixels and samples."""
    model = tiny_model()
    regions = replace(model, image=replace(model.image, input="region"))
    features = replace(model, audio=replace(model.audio, input="feature"))
    image, clip = np.zeros((8, 8, 3), np.uint8), (np.zeros(800, np.float32), 8000)
    with pytest.raises(DataError, match=r"^images\[0\]: model.image.input=region reads paths of regions \(.npz\)$"):
        read_item(image, IMAGE, "images[0]", regions)
    with pytest.raises(
        DataError, match=r"^clips\[0\]: model.audio.input=feature reads paths of features \(.npy, .npz\)$"
    ):
        read_item(clip, AUDIO, "clips[0]", features)
    assert read_item(image, IMAGE, "images[0]", features).content.shape == (model.image.size, model.image.size, 3)
    assert [modality_of(item, "") for item in (image, clip, "a.png", Path("a.PNG"))] == [IMAGE, AUDIO, TEXT, IMAGE]
    frames = np.ones((3, features.audio.feature_dim), np.float16)
    np.savez(tmp_path / "a.npz", features=frames)
    assert np.array_equal(read_item(tmp_path / "a.npz", AUDIO, "clips[0]", features).content, frames)
    with pytest.raises(DataError, match=r"a\.npz: model.audio.input=fbank needs an audio file$"):
        read_item(tmp_path / "a.npz", AUDIO, "clips[0]", model)
    assert modality_of(tmp_path / "a.npz", "") == IMAGE, "what its ending says where any kind is asked for"


def test_a_text_that_means_nothing_is_told(model: Model) -> None:
    with pytest.warns(UserWarning, match="no token of 'ΩΨ' is in the vocabulary"):
        model.embed_text(["ΩΨ"])


# loading


def test_importing_loads_nothing() -> None:
    code = "from src.inference import load; import sys; print({'mindspore', 'numpy', 'PIL'} & set(sys.modules))"
    commands = "import infer, tools.embed; import sys; print({'mindspore', 'matplotlib'} & set(sys.modules))"
    for text in (code, commands):
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "set()\n", done.stderr


def test_a_caller_may_have_computed_before() -> None:
    """MindSpore then takes no device any more, but it is the one that is asked for."""
    code = (
        "import mindspore as ms; ms.ops.ones((2,), ms.float32).asnumpy()\n"
        "from src.inference import load; model = load('opt_demo', ['runtime.mode=pynative'])\n"
        "print(model.embed_text(['一只猫']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(1, 128)\n", done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    config = tiny_dataset(folder / "made", 8, Config(model=tiny_model()))
    save_checkpoint(folder / "run" / "checkpoints", 3, config, build_model(config))
    return folder / "run"


def test_a_run_folder_is_its_checkpoint(run: Path) -> None:
    """And the caller's random numbers are the caller's."""
    np.random.seed(7)
    expected = np.random.default_rng(7), np.random.RandomState(7).standard_normal(3)
    loaded = load(run, ["runtime.mode=pynative"])
    np.testing.assert_array_equal(np.random.standard_normal(3), expected[1])
    checkpoint = load(run / "checkpoints" / "step-00000003", ["runtime.mode=pynative"], batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(loaded.embed_image(images), checkpoint.embed_image(images), atol=ROUNDING)
    assert loaded.dim == 12 and not loaded.engine.model.training


def test_a_bundled_checkpoint_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("opt_demo", "pretrained/opt_demo"):
        assert src.inference.load(name, ["runtime.mode=pynative"]).dim == 128
    (tmp_path / "opt_demo").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in opt_demo"):
        load("opt_demo")  # the user's own folder goes first


def test_what_cannot_answer_says_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(CheckpointError, match="holds exported graphs: name the run or checkpoint folder"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint in nowhere"):
        load("nowhere")
    with pytest.raises(ConfigError, match="an image tokenizer answers no questions"):
        load(ROOT / "pretrained" / "opt_demo" / "tokenizer")
    with pytest.raises(ConfigError, match="batch_size=0 must be positive"):
        load(run, batch_size=0)
    with pytest.raises(ConfigError, match="data.codes is empty"):
        load(run, ["runtime.mode=pynative"]).generate_image(["猫"])


def blocks(page: str) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_pages_examples(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(src.inference, "load", lambda path: model)
    rng = np.random.default_rng(0)
    assert blocks("README.md") == blocks("README_CN.md") != []
    (tmp_path / "bad.png").write_bytes(b"no image")
    np.save(tmp_path / "vectors.npy", np.repeat(np.eye(3, dtype=np.float32), 6, 0) + rng.normal(0, 0.1, (18, 3)))
    lines = [json.dumps({"kind": "image", "name": f"{'abc'[n // 6]}/{n}.png"}) for n in range(18)]
    (tmp_path / "vectors.jsonl").write_text("\n".join(lines))
    known = {"paths": [IMAGES[0], tmp_path / "bad.png"], "folder": tmp_path}
    for text in [*blocks("README.md"), *blocks("docs/library.md")]:
        exec(text, known)
    assert known["kept"] == IMAGES[:1] and list(known["failed"]) == [1]
    first, *_, caption, accuracy = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"(0\.9\d|1\.00) 01\.png 红色背景上，左边有一只猫，右边有两个苹果", first)
    assert "红色背景上" in caption and float(accuracy) == 1.0


def test_the_documented_examples(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    known = {"model": model, "np": np, "texts": model.embed_text(TEXTS[:2])}
    for module, fewest in ((library, 20), (src.inference, 3)):  # the latter loads a model of its own, in graph mode
        found = doctest.testmod(module, extraglobs=dict(known))
        assert found.attempted >= fewest and not found.failed

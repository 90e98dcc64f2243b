"""Random views: inside the image, within their limits, and mirrored only where nothing says left or right."""

import io
from dataclasses import replace

import numpy as np
import pytest
from conftest import png
from PIL import Image, ImageEnhance

from src.config import COLOURS, AugmentConfig, Resize
from src.data.augment import augment_audio, augment_image, colour, crop_box
from src.data.errors import DataError
from src.data.image import BAR, decode_image
from src.data.record import Question, Record

# red grows to the right, green downwards: a view tells where it was taken
SIDE = 200
RAMP = np.stack(np.broadcast_arrays(np.arange(SIDE), np.arange(SIDE)[:, None], 90), 2).astype(np.uint8)
CROP = AugmentConfig(crop_scale=(0.25, 0.5))


def record(*captions: str, image: np.ndarray = RAMP, clips: tuple = ()) -> Record:
    return Record("r", png(image), captions, clips)


def vary(
    config: AugmentConfig, seed: int = 0, which: Record | None = None, size: int = 64, resize: Resize = "crop"
) -> np.ndarray:
    return augment_image(which or record(), size, resize, "p", config, np.random.default_rng(seed))


def test_a_crop_is_a_part_of_the_stated_size_stretched_to_the_square() -> None:
    shares, aspects = [], []
    for seed in range(200):
        view = vary(CROP, seed).astype(float)
        assert view.shape == (64, 64, 3) and np.abs(view[..., 2] - 90).max() <= 1
        wide, high = ((view[-1, -1] - view[0, 0])[:2] * 64 / 63 / SIDE).tolist()
        shares.append(wide * high)
        aspects.append(wide / high)
    assert 0.23 < min(shares) < 0.28 and 0.47 < max(shares) < 0.52 and abs(np.mean(shares) - 0.375) < 0.02
    assert 0.72 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.38 and abs(np.mean(np.log(aspects))) < 0.05
    assert len({vary(CROP, seed).tobytes() for seed in range(20)}) == 20


def test_a_crop_of_an_image_of_the_networks_size_is_a_part_of_it() -> None:
    """It need not be made smaller before."""
    for seed in range(5):
        view = vary(CROP, seed, size=SIDE).astype(float)
        assert (view[-1, -1] - view[0, 0])[0] < 0.8 * SIDE


@pytest.mark.parametrize("name", ["flip", *COLOURS])
def test_each_change_alone_counts_as_one(name: str) -> None:
    """As does a crop: with image codes all are refused."""
    assert AugmentConfig(**{name: 0.4}).augments_images and AugmentConfig(crop_scale=(0.5, 1.0)).augments_images
    config = AugmentConfig(**{name: 1.0})
    assert any(not np.array_equal(vary(config, seed), vary(AugmentConfig())) for seed in range(3))


@pytest.mark.parametrize("width,height", [(200, 200), (640, 80), (3, 500), (1, 1)])
def test_a_crop_stays_within_any_image(width: int, height: int) -> None:
    for numbers in (*np.random.default_rng(0).random((200, 4)), (0, 0, 0, 0), (1, 1, 1, 1)):
        share, aspect, left, top = map(float, numbers)
        x0, y0, x1, y1 = crop_box(width, height, 0.01 + 0.99 * share, 2 ** (2 * aspect - 1), left, top)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert crop_box(width, width, 1.0, 1.0, 0.5, 0.5) == (0, 0, width, width)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_nothing_switched_on_is_the_plain_image(resize: Resize) -> None:
    assert not AugmentConfig().augments_images and not AugmentConfig().augments_audio
    wide = record(image=np.concatenate((RAMP, RAMP), 1))
    for size in (64, SIDE):
        found = vary(AugmentConfig(), which=wide, size=size, resize=resize)
        assert np.array_equal(found, decode_image(wide.image, size, resize, "p"))


def test_a_crop_of_a_whole_image_looks_like_the_whole() -> None:
    """Of an image twice as wide as high: padded, no crop is stretched; squashed, all are as the image is."""
    wide = record(image=np.stack(np.broadcast_arrays(np.arange(200), np.arange(100)[:, None], 60), 2).astype(np.uint8))
    shares = []
    for seed in range(100):
        view = vary(CROP, seed, wide, resize="pad")
        inside = np.abs(view[..., 2].astype(int) - 60) <= 1  # bars are 128
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        content = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        high, wide_pixels = content.shape[:2]
        assert (view[~inside] == BAR).all() and inside.sum() == high * wide_pixels
        assert max(high, wide_pixels) == 64 and rows[0] == (64 - high) // 2
        across, down = (content[-1, -1] - content[0, 0])[:2] / (wide_pixels - 1, high - 1)  # image pixels in one
        assert abs(across / down - 1) < 0.12, "its own shape"
        assert 1.4 < wide_pixels / high < 2.8, "the image's shape, up to crop_aspect"
        shares.append(across * wide_pixels * down * high / 20000)
        squashed = vary(CROP, seed, wide, resize="squash").astype(float)
        across, down = (squashed[-1, -1] - squashed[0, 0])[:2] / 63
        assert np.abs(squashed[..., 2] - 60).max() <= 1 and 1.4 < across / down < 2.8, seed
    assert 0.22 < min(shares) < 0.3 and 0.45 < max(shares) < 0.55


def test_bars_are_neither_coloured_nor_moved() -> None:
    tall = record(image=np.concatenate((RAMP, RAMP), 0)[:, :101])
    plain = decode_image(tall.image, 64, "pad", "p")
    bars = (plain == BAR).all(2)
    assert bars.all(0).sum() == 48
    for config in (AugmentConfig(brightness=0.9), AugmentConfig(contrast=0.9), AugmentConfig(saturation=0.9)):
        view = vary(config, 3, tall, resize="pad")
        assert (view[bars] == BAR).all() and not np.array_equal(view[~bars], plain[~bars])
    mirrored = vary(AugmentConfig(flip=1.0), 3, tall, resize="pad")
    assert np.array_equal(mirrored[:, 24:40], plain[:, 24:40][:, ::-1]) and (mirrored[bars] == BAR).all()


def test_a_small_crop_of_a_jpeg_is_not_decoded_too_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    config = AugmentConfig(crop_scale=(0.04, 0.04), crop_aspect=1.0)
    for seed in range(3):
        found = vary(config, seed, Record("r", buffer.getvalue(), (), ()), size=160)
        left, top = np.random.default_rng(seed).random(8)[2:4]
        x, y = 640 * left, 640 * top
        whole = Image.open(io.BytesIO(buffer.getvalue()))
        expected = whole.resize((160, 160), Image.Resampling.BICUBIC, box=(x, y, x + 160, y + 160))
        assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize(
    ("captions", "mirrored"),
    [
        (("一只猫",), True),
        (("一只猫", "左边一只狗"), False),
        (("一只猫", "狗在右侧"), False),
        (("a cat", "bright, upright and cleft"), True),
        (("a cat on the Left",), False),
        (("the rightmost cat",), False),
        (("猫（LEFT）",), False),
        ((), True),
    ],
)
def test_left_and_right_forbid_the_mirror(captions: tuple[str, ...], mirrored: bool) -> None:
    """In any caption of the image, the sample's own or not."""
    asked = record(*captions)
    assert asked.tells_sides() != mirrored
    found = vary(AugmentConfig(flip=1.0), which=asked, size=SIDE)
    assert np.array_equal(found, RAMP[:, ::-1] if mirrored else RAMP)


def test_an_answer_forbids_the_mirror_too() -> None:
    """Any answer of any question, also where no question says left or right."""
    asked = record("猫是什么颜色？", "猫在哪？")
    for answers, mirrored in ((("红", "上面"), True), (("红", "左边"), False), (("on the right", "上面"), False)):
        questions = (Question("colour", ("红",)), Question("place", answers))
        assert replace(asked, questions=questions).tells_sides() != mirrored, answers


def test_what_is_only_spoken_may_tell_left_from_right() -> None:
    clip = np.ones((9, 4), np.uint8)
    assert record(clips=(clip,)).tells_sides() and not record(clips=(None,)).tells_sides()
    assert not record("一只猫", clips=(clip,)).tells_sides()


def test_half_are_mirrored() -> None:
    half = AugmentConfig(flip=0.5)
    share = np.mean([vary(half, seed, size=SIDE)[0, 0, 0] > 100 for seed in range(200)])
    assert 0.4 < share < 0.6


def test_colours_vary_within_their_strength() -> None:
    grey = record(image=np.full((8, 8, 3), (60, 100, 140), np.uint8))
    for name in COLOURS:
        config = AugmentConfig(**{name: 0.5})
        views = np.stack([vary(config, seed, grey, 8)[0, 0] for seed in range(100)]).astype(int)
        assert len(np.unique(views[:, 0])) > 20 or name == "contrast"
    bright = np.stack([vary(AugmentConfig(brightness=0.5), s, grey, 8)[0, 0] for s in range(100)])
    assert (bright[:, 1] >= 50).all() and (bright[:, 1] <= 150).all() and abs(bright[:, 1].mean() - 100) < 8
    grade = np.stack([vary(AugmentConfig(saturation=1.0), s, grey, 8)[0, 0] for s in range(100)]).astype(int)
    spread = grade[:, 2] - grade[:, 0]
    assert spread.min() < 8 and spread.max() > 150, "from grey to twice as colourful"
    flat = vary(replace(AugmentConfig(), contrast=0.5), 1, record(), SIDE).astype(int)
    assert abs(flat.std() / RAMP.std() - 1) > 0.02


@pytest.mark.parametrize(
    ("factors", "kind"),
    [
        ((0.6, 1.0, 1.0), ImageEnhance.Brightness),
        ((1.0, 0.5, 1.0), ImageEnhance.Contrast),
        ((1.0, 1.7, 1.0), ImageEnhance.Contrast),
        ((1.0, 1.0, 0.0), ImageEnhance.Color),
        ((1.0, 1.0, 1.8), ImageEnhance.Color),
    ],
)
def test_each_colour_is_what_pillow_makes_of_it(factors: tuple[float, ...], kind: type) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    (factor,) = [factor for factor in factors if factor != 1] or [1.0]
    expected = np.asarray(kind(image).enhance(factor)).astype(int)
    assert np.abs(np.asarray(colour(image, *factors)) - expected).max() <= 2  # Pillow rounds the grey to a byte


def test_colours_follow_one_another() -> None:
    """Where nothing is clipped: Pillow cuts to whole bytes three times."""
    image = Image.fromarray(np.random.default_rng(1).integers(90, 150, (32, 32, 3), np.uint8))
    expected = image
    for kind, factor in ((ImageEnhance.Brightness, 1.2), (ImageEnhance.Contrast, 0.7), (ImageEnhance.Color, 1.4)):
        expected = kind(expected).enhance(factor)
    more = np.asarray(colour(image, 1.2, 0.7, 1.4)).astype(int) - np.asarray(expected)
    assert more.min() >= 0 and more.max() <= 3
    assert np.array_equal(np.asarray(colour(image, 1.0, 1.0, 1.0)), np.asarray(image))


def test_one_variation_leaves_the_others_as_they_are() -> None:
    for seed in range(8):
        both = vary(replace(CROP, flip=1.0), seed)
        assert np.array_equal(both, vary(CROP, seed)[:, ::-1])
        assert np.array_equal(vary(CROP, seed), vary(CROP, seed))


def test_a_broken_image_is_named() -> None:
    with pytest.raises(DataError, match="p: not a readable image"):
        vary(CROP, which=Record("r", b"no image", (), ()))


def test_spectrograms_lose_stretches_to_their_mean() -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (100, 40), np.uint8)
    before, mean = clip.copy(), round(float(clip.mean()))
    config = AugmentConfig(time_masks=2, time_share=0.1, frequency_masks=1, frequency_share=0.25)
    frames, bands = [], []
    for _ in range(300):
        varied = augment_audio(clip, config, rng)
        hidden = varied != clip
        lost_frames, lost_bands = hidden.mean(1) > 0.9, hidden.mean(0) > 0.9
        assert (varied[lost_frames] == mean).all() and (varied[:, lost_bands] == mean).all()
        kept = varied[~lost_frames][:, ~lost_bands]
        assert np.array_equal(kept, clip[~lost_frames][:, ~lost_bands])
        assert np.count_nonzero(np.diff(lost_bands.astype(int))) <= 2, "one run of bands"
        frames.append(lost_frames.sum())
        bands.append(lost_bands.sum())
    assert np.array_equal(clip, before)
    assert max(frames) <= 20 and max(bands) == 10 and min(bands) == 0 and abs(np.mean(bands) - 5) < 0.6
    assert abs(np.mean(frames) - 10) < 1.5


def test_a_short_audio_is_never_hidden_whole() -> None:
    clip = np.arange(4, dtype=np.uint8)[:, None] + np.zeros(4, np.uint8)
    config = AugmentConfig(time_masks=1, time_share=0.2)
    assert all(np.array_equal(augment_audio(clip, config, np.random.default_rng(s)), clip) for s in range(20))

"""Random augmentation of images and audio clips, for training only.

Random numbers depend on (seed, epoch, sample), and always equally many are taken: switching one augmentation on or off
leaves the others unchanged.
"""

import math

import numpy as np
from PIL import Image

from src.config import COLOURS, AugmentConfig, Resize
from src.data.image import Box, open_rgb, place, read_part
from src.data.record import Record

GREY = np.array([0.299, 0.587, 0.114])  # red, green, blue in the luma of ITU-R BT.601, which Pillow takes for grey


def augment_image(
    record: Record,
    side: int,
    resize: Resize,
    name: str,
    config: AugmentConfig,
    rng: np.random.Generator,
    sided: bool = False,
) -> np.ndarray:
    """A record's image, cropped, mirrored and coloured at random: uint8 [S, S, 3].

    A random crop is brought into the square as a whole image is. Where whole images are read (pad, squash) it has
    their shape, up to crop_aspect, so that it looks as they do. Bars keep their colour.

    Args:
        record: one with an image.
        side: S.
        resize: model.image.resize.
        name: of the image in error messages.
        sided: another record of the image tells left from right; the image is not mirrored, nor if its own does.
    """
    share, aspect, left, top, mirror, *factors = rng.random(5 + len(COLOURS))
    least, most = config.crop_scale or (1.0, 1.0)
    share = least + (most - least) * share
    image = open_rgb(record.image, name, math.ceil(side / math.sqrt(share)))
    part = read_part(*image.size, resize)
    if config.crop_scale:
        shape = (part[2] - part[0]) / (part[3] - part[1])
        part = crop_box(*image.size, share, shape * config.crop_aspect ** (2 * aspect - 1), left, top)
    placed = place(part, side, resize)
    image = placed.cut(image)
    if mirror < config.flip and not sided and not record.tells_sides():
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    strengths = [getattr(config, colour) for colour in COLOURS]
    if any(strengths):
        image = colour(image, *(1 + x * (2 * factor - 1) for x, factor in zip(strengths, factors, strict=True)))
    return placed.frame(image)


def crop_box(width: int, height: int, share: float, aspect: float, left: float, top: float) -> Box:
    """A box that lies within the image.

    Args:
        share: of the image's area; smaller where a side would not fit.
        aspect: width over height.
        left, top: in [0, 1): its place within the remaining room.
    """
    side = math.sqrt(share * width * height)
    wide, high = min(width, side * math.sqrt(aspect)), min(height, side / math.sqrt(aspect))
    x, y = left * (width - wide), top * (height - high)
    return x, y, min(width, x + wide), min(height, y + high)


def colour(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Times brightness; then away from the mean grey by contrast; then away from each pixel's grey by saturation.

    The three are linear, hence one pass: p ↦ b·c·(s·p + (1 − s)·grey(p)) + (1 − c)·b·mean grey. Pillow's
    ``ImageEnhance`` applies them one by one, in twice the time, and rounds to bytes in between.
    """
    mean = (1 - contrast) * brightness * float(np.asarray(image.convert("L")).mean())
    mixed = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * GREY)
    return image.convert("RGB", tuple(np.column_stack((mixed, np.full(3, mean))).reshape(-1).tolist()))


def augment_audio(clip: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """SpecAugment (Park et al. 2019) without time warping: spans of frames and of mel bands are masked.

    They are set to the clip's mean, as in the paper, whose log-mels have mean 0. A byte of 0 would be silence eight
    decades below the peak, which carries meaning.

    Args:
        clip: uint8 [M, N] log-mel.
    """
    spans = rng.random((config.time_masks + config.frequency_masks, 2))
    masked, mean = clip.copy(), round(float(clip.mean()))
    for start, stop in _spans(len(clip), config.time_share, spans[: config.time_masks]):
        masked[start:stop] = mean
    for start, stop in _spans(clip.shape[1], config.frequency_share, spans[config.time_masks :]):
        masked[:, start:stop] = mean
    return masked


def _spans(length: int, share: float, spans: np.ndarray) -> list[tuple[int, int]]:
    """Spans of 0 … share · length places, anywhere, from pairs of numbers in [0, 1)."""
    widths = (spans[:, 0] * (math.floor(share * length) + 1)).astype(int)
    starts = (spans[:, 1] * (length - widths + 1)).astype(int)
    return list(zip(starts.tolist(), (starts + widths).tolist(), strict=True))

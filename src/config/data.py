"""Where samples come from, how they are mixed, and how they are varied."""

import os
from dataclasses import dataclass, field, replace

from src.config.checks import require
from src.config.paths import PathText

COLOURS = ("brightness", "contrast", "saturation")  # strengths of AugmentConfig, in the order in which they apply


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of images and audio clips in training, never in evaluation; everything is off by default."""

    crop_scale: tuple[float, ...] = ()  # [least, most] share of an image that a random crop keeps; empty: no crop
    crop_aspect: float = 1.3333  # a crop's longer side over its shorter one, at most
    flip: float = 0.0  # chance of a mirrored image, only where no caption says left or right
    brightness: float = 0.0  # x: the factor is sampled from [1 − x, 1 + x]
    contrast: float = 0.0  # ... likewise
    saturation: float = 0.0  # ... likewise; there is no hue, as captions name colours
    time_masks: int = 0  # stretches of a log-mel's frames that are masked (SpecAugment)
    time_share: float = 0.1  # each of them, at most, as a share of the audio's frames
    frequency_masks: int = 0  # groups of neighbouring mel bands that are masked
    frequency_share: float = 0.25  # each of them, at most, as a share of the bands

    def __post_init__(self) -> None:
        scale = self.crop_scale
        in_range = not scale or (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1)
        require(in_range, "crop_scale", "must be empty or [least, most] with 0 < least ≤ most ≤ 1")
        require(self.crop_aspect >= 1, "crop_aspect", "must be at least 1")
        require(0 <= self.flip <= 1, "flip", "must be in [0, 1]")
        for name in COLOURS:
            require(0 <= getattr(self, name) <= 1, name, "must be in [0, 1]")
        for name in ("time_masks", "frequency_masks"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        for name in ("time_share", "frequency_share"):
            require(0 < getattr(self, name) <= 1, name, "must be in (0, 1]")

    @property
    def augments_images(self) -> bool:
        """Whether images are changed."""
        return bool(self.crop_scale) or self.flip > 0 or any(getattr(self, name) > 0 for name in COLOURS)

    @property
    def augments_audio(self) -> bool:
        """Whether audio clips are changed."""
        return self.time_masks > 0 or self.frequency_masks > 0


@dataclass(frozen=True)
class SourceConfig:
    """One of several corpora that are mixed."""

    path: PathText = ""  # folder of shards with dataset.json
    weight: float = 1.0  # its part of an epoch's samples, relative to the other sources' weights

    def __post_init__(self) -> None:
        require(bool(self.path), "path", "every source must name a dataset folder")
        require(self.weight > 0, "weight", "must be positive")


@dataclass(frozen=True)
class DataConfig:
    path: PathText = ""  # folder of shards with dataset.json
    sources: tuple[SourceConfig, ...] = ()  # in its place several of them, mixed: [{path: …, weight: …}, …]
    eval_path: PathText = ""  # folder whose splits are evaluated; empty: path, or the first source
    codes: PathText = ""  # run or checkpoint folder of the image tokenizer whose codes are read; empty: none
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 128  # B: samples a step and rank
    unique_images: bool = False  # no step holds two samples of one image, whatever its captions
    workers: int = 1  # threads that decode samples
    prefetch: int = 4  # batches made ahead of the step
    max_bad: int = 100  # records that training may fail to read and replace; one more ends the run
    max_unknown: float = 0.2  # training starts only if at most this share of the texts' tokens is [UNK]
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "prefetch"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.max_bad >= 0, "max_bad", "must not be negative")
        require(0 <= self.max_unknown <= 1, "max_unknown", "must be in [0, 1]")
        require(not (self.path and self.sources), "sources", "data.path is given too: leave one of the two empty")
        folders = [os.path.realpath(source.path) for source in self.sources]
        require(len(set(folders)) == len(folders), "sources", "a folder is listed twice: give it one weight")

    @property
    def held_out(self) -> str:
        """The folder whose splits are evaluated."""
        return self.eval_path or self.mixture[0][0]

    def alone(self, folder: str) -> "DataConfig":
        """With one dataset in place of all."""
        return replace(self, path=folder, sources=(), eval_path="")

    def name_beside(self, own: "DataConfig") -> str:
        """``-NAME`` of that folder, for a name of results, where it is another than ``own`` has; otherwise nothing."""
        ours, theirs = (os.path.abspath(each.held_out) for each in (self, own))
        return "" if ours == theirs else f"-{os.path.basename(ours)}"

    @property
    def mixture(self) -> tuple[tuple[str, float], ...]:
        """The folders that training reads, and their weights."""
        return tuple((source.path, source.weight) for source in self.sources) or ((self.path, 1.0),)

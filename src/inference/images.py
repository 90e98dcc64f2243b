"""Generates images from texts and from speech: samples codes, decodes them, and keeps those that suit best."""

import numpy as np
from mindspore import nn
from PIL import Image

from src.config import Config, ConfigError
from src.data.image import to_square
from src.data.image_codes import GRID
from src.data.schema import AUDIO, IMAGE, TEXT
from src.generation.sampling import CodeSampler, Sampling
from src.inference.encode import Encoder, Items
from src.inference.loading import load_model
from src.inference.scorers import Matching
from src.models.batches import fitting_size, run_batched
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT

ARGUMENTS = {TEXT: "text", AUDIO: "audio"}  # of CodeSampler.sample


def load_image_tokenizer(config: Config) -> ImageTokenizer:
    """The image tokenizer that data.codes names.

    Raises:
        CheckpointError: there is none, or it does not fit its configuration.
        ConfigError: it is another network, or its codes are not those of model.image_tokenizer.
    """
    own, tokenizer = load_model(config.data.codes, [f"runtime.precision={config.runtime.precision}"])
    if not isinstance(tokenizer, ImageTokenizer):
        raise ConfigError(f"data.codes={config.data.codes} is a checkpoint of task={own.task}: name an image tokenizer")
    for key in GRID:
        theirs, ours = getattr(own.model.image_tokenizer, key), getattr(config.model.image_tokenizer, key)
        if theirs != ours:
            where = f"data.codes={config.data.codes}"
            raise ConfigError(f"{where} has {key}={theirs}, model.image_tokenizer.{key} is {ours}: change the latter")
    return tokenizer


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Squares uint8 [n, S, S, 3] → uint8 [n, size, size, 3], as files are resized."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([to_square(Image.fromarray(image), size, "squash") for image in images])


def check_generates(config: Config) -> None:
    """Raises ConfigError where the model generates no images, or nothing says whose codes it generates."""
    if not config.model.image_codes:
        raise ConfigError("model.image_codes=false: this model was trained without an image decoder")
    if not config.data.codes:
        raise ConfigError("data.codes is empty: name the run folder of the image tokenizer")


class _DecodeCodes(nn.Cell):
    """codes (B, C) int32 → images (B, S, S, 3) uint8."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.tokenizer = tokenizer

    def construct(self, codes):
        return (self.tokenizer.decode(codes),)


class ImageGenerator:
    """Generates images and ranks the samples of each.

    Args:
        config: eval.image_generation says how codes are sampled.
        model: the network, with an image decoder.
        tokenizer: decodes the codes.
        encoder: embeds what was generated.
    """

    def __init__(self, config: Config, model: OPT, tokenizer: ImageTokenizer, encoder: Encoder) -> None:
        settings = config.eval.image_generation
        self.sampling = Sampling(settings.samples, settings.temperature, settings.top_k, settings.guidance, config.seed)
        self.batch_size, self.encoder, self.rank_by = config.eval.batch_size, encoder, settings.rank_by
        self.matching, self.image_size = Matching(model), config.model.image.size
        self.judges = config.model.image.input == "patch"  # its image encoder reads what is generated
        self.sampler = CodeSampler(model.cross_encoder, model.image_decoder, config.eval.batch_size)
        self.decode = _DecodeCodes(tokenizer)

    def generate(self, modality: int, given: Items) -> np.ndarray:
        """The best of the sampled images for each text or audio clip, or the first where they are not scored.

        Args:
            modality: TEXT or AUDIO.
            given: what is to be shown, with its tokens.

        Returns:
            uint8 [n, S, S, 3].
        """
        images, scores = self.generate_all(modality, given)
        return images[np.arange(len(scores)), scores.argmax(1)]

    def generate_all(
        self, modality: int, given: Items, sampling: Sampling | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """All N images for each text or audio clip, uint8 [n, N, S, S, 3], and how well each suits it, float64 [n, N].

        By ``eval.image_generation.rank_by`` that is the cosine of the embeddings, or the matching head's log p. A
        single sample is not scored, nor is any where the model reads regions of images: NaN. ``sampling`` stands in
        for the configuration's. An item that stands in no split gets the same images whatever stands beside it.
        """
        rows = given.samples.tolist() if len(given.samples) else [0] * len(given)
        sampling = sampling or self.sampling
        codes = self.sampler.sample(sampling, **{ARGUMENTS[modality]: (given.tokens, given.mask)}, rows=rows)
        flat = codes.reshape(-1, codes.shape[-1])
        size = fitting_size(len(flat), self.batch_size)
        images = run_batched(self.decode, size, (flat,), "decoding")[0]
        shape = codes.shape[:2]
        if shape[1] == 1 or not self.judges:
            scores = np.full(shape, np.nan)
        else:
            generated = self.encode(images)
            owners = np.repeat(np.arange(shape[0]), shape[1])
            scores = RANKINGS[self.rank_by](self, modality, given, generated, owners).reshape(shape)
        return images.reshape(*shape, *images.shape[1:]), scores

    def encode(self, images: np.ndarray) -> Items:
        """Generated images, uint8 [n, S, S, 3], as the image encoder sees them, at its own size."""
        return self.encoder.image(resize_images(images, self.image_size))

    def cosines(self, modality: int, given: Items, generated: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N] of generated images and what they were generated from."""
        return np.einsum("pe,pe->p", generated.embeddings.astype(np.float64), given.embeddings[owners])

    def matches(self, modality: int, given: Items, generated: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N]: log p that they belong together."""
        pairs = np.stack([owners, np.arange(len(owners))], 1)  # text, image
        pairs = pairs if modality < IMAGE else pairs[:, ::-1]
        return self.matching.score({modality: given, IMAGE: generated}, pairs, "matching")


RANKINGS = {"embedding": ImageGenerator.cosines, "matching": ImageGenerator.matches}

"""Images drawn from words and from speech: does the model recognise in them what it was told to draw?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import nn

from src.checkpoints.checkpoint import read_config
from src.checkpoints.files import MODEL, locate, read_tensors, set_parameters
from src.config import Config, ConfigError
from src.data.image_codes import GRID
from src.data.schema import AUDIO, IMAGE, TEXT
from src.generation.sampling import CodeSampler, Sampling
from src.inference.encode import Encoder, Items
from src.inference.scorers import Matching
from src.metrics.recall import ranks, recall
from src.models.batches import fitting_size, run_batched
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT

SOURCES = {TEXT: "text", AUDIO: "speech"}
ARGUMENTS = {TEXT: "text", AUDIO: "audio"}  # of CodeSampler.draw


def load_tokenizer(config: Config) -> ImageTokenizer:
    """The image tokenizer that data.codes names.

    Raises:
        CheckpointError: there is none, or it does not fit its configuration.
        ConfigError: its codes are not those of model.image_tokenizer.
    """
    folder = locate(config.data.codes)
    settings = read_config(folder).model.image_tokenizer
    for key in GRID:
        theirs, ours = getattr(settings, key), getattr(config.model.image_tokenizer, key)
        if theirs != ours:
            raise ConfigError(f"data.codes={folder} has {key}={theirs}, model.image_tokenizer.{key} is {ours}")
    tokenizer = ImageTokenizer(settings)
    set_parameters(dict(tokenizer.parameters_and_names()), read_tensors(folder / MODEL), folder / MODEL)
    return tokenizer


class _DecodeCodes(nn.Cell):
    """codes (B, P') int32 → images (B, S, S, 3) uint8."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.tokenizer = tokenizer

    def construct(self, codes):
        return (self.tokenizer.decode(codes),)


class ImageGenerator:
    """Draws images and measures them.

    Args:
        config: eval.image_generation says how codes are drawn.
        model: the network, with an image decoder.
        tokenizer: whose codes it draws.
        encoder: embeds what was drawn.
    """

    def __init__(self, config: Config, model: OPT, tokenizer: ImageTokenizer, encoder: Encoder) -> None:
        settings = config.eval.image_generation
        self.sampling = Sampling(
            settings.samples, settings.temperature, settings.top_k, settings.guidance, config.seed
        )
        self.batch_size, self.encoder, self.rank = config.eval.batch_size, encoder, settings.rank_by
        self.matching = Matching(model)
        self.sampler = CodeSampler(model.cross_encoder, model.image_decoder, self.batch_size)
        self.paint = _DecodeCodes(tokenizer)

    def draw(self, which: int, given: Items) -> np.ndarray:
        """The best of ``draw_samples`` images for each text or audio.

        Args:
            which: TEXT or AUDIO.
            given: what is to be drawn, with its tokens.

        Returns:
            uint8 [n, S, S, 3].
        """
        images, scores = self.draw_all(which, given)
        return images[np.arange(len(scores)), scores.argmax(1)]

    def draw_all(self, which: int, given: Items) -> tuple[np.ndarray, np.ndarray]:
        """All N images for each text or audio, uint8 [n, N, S, S, 3], and how well each suits it, float64 [n, N].

        By ``eval.image_generation.rank_by`` that is the cosine of the embeddings, or the matching head's log p; of a lone one nothing.
        """
        rows = given.samples.tolist() if len(given.samples) else None
        codes = self.sampler.draw(self.sampling, **{ARGUMENTS[which]: (given.tokens, given.mask)}, rows=rows)
        flat = codes.reshape(-1, codes.shape[-1])
        size = fitting_size(len(flat), self.batch_size)
        images = run_batched(self.paint, size, (flat,), "painting")[0]
        shape = codes.shape[:2]
        if shape[1] == 1:
            scores = np.zeros(shape)
        else:
            drawn = self.encoder.image(images)
            owners = np.repeat(np.arange(shape[0]), shape[1])
            scores = RANKINGS[self.rank](self, which, given, drawn, owners).reshape(shape)
        return images.reshape(*shape, *images.shape[1:]), scores

    def cosines(self, which: int, given: Items, drawn: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N] of drawn images and what they were drawn from."""
        return np.einsum("pe,pe->p", drawn.embeddings.astype(np.float64), given.embeddings[owners])

    def matches(self, which: int, given: Items, drawn: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N]: log p that they belong together."""
        pairs = np.stack([owners, np.arange(len(owners))], 1)  # text, image
        pairs = pairs if which < IMAGE else pairs[:, ::-1]
        return self.matching.score({which: given, IMAGE: drawn}, pairs, "matching")

    def measure(self, items: Mapping[int, Items]) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
        """Draws every text and every audio, and looks for each one's text by what was drawn of it.

        Args:
            items: with the tokens of texts and audio clips.

        Returns:
            by source, "text" and "speech": r1, r5, r10 and median_rank of the text among all texts; the images.
            Without texts nothing is drawn; an audio clip without one is drawn and does not count.
        """
        figures, drawn = {}, {}
        texts = items.get(TEXT)
        for which, name in SOURCES.items():
            if texts is None or which not in items:
                continue
            drawn[which] = self.draw(which, items[which])
            told = np.isin(items[which].images, texts.images)
            if told.any():
                embeddings, images = self.encoder.image(drawn[which]).embeddings[told], items[which].images[told]
                figures[name] = recall(ranks(embeddings, texts.embeddings, images, texts.images))
        return figures, drawn


RANKINGS = {"embedding": ImageGenerator.cosines, "matching": ImageGenerator.matches}

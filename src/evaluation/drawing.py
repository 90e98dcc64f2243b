"""Pictures drawn from words and from speech: does the model recognise in them what it was told to draw?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import nn

from src.config import Config, ConfigError, load_config
from src.data.image_codes import GRID
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.encode import Encoder, Items
from src.evaluation.recall import ranks, recall
from src.evaluation.rerank import Matching
from src.generation.batches import fitting_size, run_batched
from src.generation.sampling import CodeSampler, Sampling
from src.models import precision
from src.models.image_tokenizer import ImageTokenizer
from src.models.opt import OPT
from src.weights import CONFIG, MODEL, locate, read_tensors, set_parameters

SOURCES = {TEXT: "text", AUDIO: "speech"}
ARGUMENTS = {TEXT: "text", AUDIO: "audio"}  # of CodeSampler.draw


def load_tokenizer(config: Config) -> ImageTokenizer:
    """The image tokenizer that data.codes names.

    Raises:
        CheckpointError: there is none, or it does not fit its configuration.
        ConfigError: its codes are not those of model.tokenizer.
    """
    folder = locate(config.data.codes)
    settings = load_config(folder / CONFIG).model.tokenizer
    for key in GRID:
        theirs, ours = getattr(settings, key), getattr(config.model.tokenizer, key)
        if theirs != ours:
            raise ConfigError(f"data.codes={folder} has {key}={theirs}, model.tokenizer.{key} is {ours}")
    with precision.building(config.runtime.precision):
        tokenizer = ImageTokenizer(settings)
    set_parameters(dict(tokenizer.parameters_and_names()), read_tensors(folder / MODEL), folder / MODEL)
    return tokenizer


class _Paint(nn.Cell):
    """codes (B, P') int32 → pictures (B, S, S, 3) uint8."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__(auto_prefix=False)
        self.tokenizer = tokenizer

    def construct(self, codes):
        return (self.tokenizer.decode(codes),)


class Artist:
    """Draws pictures and measures them.

    Args:
        config: eval.draw_* say how codes are drawn.
        model: the network, with an image decoder.
        tokenizer: whose codes it draws.
        encoder: embeds what was drawn.
    """

    def __init__(self, config: Config, model: OPT, tokenizer: ImageTokenizer, encoder: Encoder) -> None:
        settings = config.eval
        self.sampling = Sampling(
            settings.draw_samples, settings.draw_temperature, settings.draw_top_k, settings.draw_guidance, config.seed
        )
        self.batch_size, self.encoder, self.rank = settings.batch_size, encoder, settings.draw_rank
        self.matching = Matching(model)
        self.sampler = CodeSampler(model.cross_encoder, model.image_decoder, settings.batch_size)
        self.paint = _Paint(tokenizer)

    def draw(self, which: int, given: Items) -> np.ndarray:
        """The best of ``draw_samples`` pictures for each text or sound.

        Args:
            which: TEXT or AUDIO.
            given: what is to be drawn, with its tokens.

        Returns:
            uint8 [n, S, S, 3].
        """
        pictures, scores = self.draw_all(which, given)
        return pictures[np.arange(len(scores)), scores.argmax(1)]

    def draw_all(self, which: int, given: Items) -> tuple[np.ndarray, np.ndarray]:
        """All N pictures for each text or sound, uint8 [n, N, S, S, 3], and how well each suits it, float64 [n, N].

        By ``eval.draw_rank`` that is the cosine of the embeddings, or the matching head's log p; of a lone one nothing.
        """
        rows = given.samples.tolist() if len(given.samples) else None
        codes = self.sampler.draw(self.sampling, **{ARGUMENTS[which]: (given.tokens, given.mask)}, rows=rows)
        flat = codes.reshape(-1, codes.shape[-1])
        size = fitting_size(len(flat), self.batch_size)
        pictures = run_batched(self.paint, size, (flat,), "painting")[0]
        shape = codes.shape[:2]
        if shape[1] == 1:
            scores = np.zeros(shape)
        else:
            drawn = self.encoder.image(pictures)
            owners = np.repeat(np.arange(shape[0]), shape[1])
            scores = RANKINGS[self.rank](self, which, given, drawn, owners).reshape(shape)
        return pictures.reshape(*shape, *pictures.shape[1:]), scores

    def cosines(self, which: int, given: Items, drawn: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N] of drawn pictures and what they were drawn from."""
        return np.einsum("pe,pe->p", drawn.embeddings.astype(np.float64), given.embeddings[owners])

    def matches(self, which: int, given: Items, drawn: Items, owners: np.ndarray) -> np.ndarray:
        """float64 [n·N]: log p that they belong together."""
        pairs = np.stack([owners, np.arange(len(owners))], 1)  # text, picture
        pairs = pairs if which < IMAGE else pairs[:, ::-1]
        return self.matching.score({which: given, IMAGE: drawn}, pairs, "matching")

    def measure(self, items: Mapping[int, Items]) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
        """Draws every text and every sound, and looks for each one's text by what was drawn of it.

        Args:
            items: with the tokens of texts and sounds.

        Returns:
            by source, "text" and "speech": r1, r5, r10 and median_rank of the text among all texts; the pictures.
            Without texts nothing is drawn; a sound without one is drawn and does not count.
        """
        figures, drawn = {}, {}
        texts = items.get(TEXT)
        for which, name in SOURCES.items():
            if texts is None or which not in items:
                continue
            drawn[which] = self.draw(which, items[which])
            told = np.isin(items[which].pictures, texts.pictures)
            if told.any():
                embeddings, pictures = self.encoder.image(drawn[which]).embeddings[told], items[which].pictures[told]
                figures[name] = recall(ranks(embeddings, texts.embeddings, pictures, texts.pictures))
        return figures, drawn


RANKINGS = {"embedding": Artist.cosines, "matching": Artist.matches}

"""Pictures drawn from words and from speech: does the model recognise in them what it was told to draw?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import nn

from src.config import Config, ConfigError, load_config
from src.data.image_codes import GRID
from src.data.schema import AUDIO, TEXT
from src.evaluation.encode import Encoder, Items
from src.evaluation.recall import ranks, recall
from src.generation.batches import fitting_size, run_batched
from src.generation.sampling import CodeSampler, Sampling
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
        self.batch_size, self.encoder = settings.batch_size, encoder
        self.sampler = CodeSampler(model.cross_encoder, model.image_decoder, settings.batch_size)
        self.paint = _Paint(tokenizer)

    def draw(self, which: int, given: Items) -> np.ndarray:
        """The best of ``draw_samples`` pictures for each text or sound: the one whose embedding is nearest to it.

        Args:
            which: TEXT or AUDIO.
            given: what is to be drawn, with its tokens.

        Returns:
            uint8 [n, S, S, 3].
        """
        rows = given.samples.tolist() if len(given.samples) else None
        codes = self.sampler.draw(self.sampling, **{ARGUMENTS[which]: (given.tokens, given.mask)}, rows=rows)
        flat = codes.reshape(-1, codes.shape[-1])
        size = fitting_size(len(flat), self.batch_size)
        pictures = run_batched(self.paint, size, (flat,), "painting")[0]
        if codes.shape[1] == 1:
            return pictures
        embeddings = self.encoder.image(pictures).embeddings.reshape(*codes.shape[:2], -1)  # [n, N, E]
        best = np.einsum("nke,ne->nk", embeddings, given.embeddings).argmax(1)
        return pictures.reshape(*codes.shape[:2], *pictures.shape[1:])[np.arange(len(best)), best]

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

"""What a trained model can do: embed, rank, caption, transcribe, answer, generate images.

Evaluators and commands call it.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from mindspore import nn

from src.config import Config
from src.data.regions import fill_regions
from src.data.schema import AUDIO, IMAGE, IMAGE_FIELDS, audio_layout, image_fields
from src.data.tokenizer import Tokenizer
from src.generation.beam import BeamSearch, BeamSettings
from src.inference.encode import ROWS, Encoder, Items
from src.inference.fusion import Fusion
from src.inference.images import ImageGenerator, load_image_tokenizer
from src.inference.match_map import Reader
from src.inference.media import Medium
from src.inference.outliers import Outliers
from src.inference.questions import Answerer
from src.inference.rerank import Reranker
from src.models.image_tokenizer import ImageTokenizer


class Engine:
    """A network with everything that answers by it; each part is built, and its graphs compiled, at first use.

    Args:
        config: eval says how texts are decoded, candidates re-ranked and images sampled.
        model: the network of the configuration's task, shared with whoever trains it.
        outliers: tells inputs that are far from all that the model was trained on; None: nothing was measured.
        rows: as :class:`src.inference.encode.Encoder` has it.
        ema: whether its weights are a checkpoint's averages.
    """

    def __init__(
        self, config: Config, model: nn.Cell, outliers: Outliers | None = None, rows: int = 0, ema: bool = False
    ) -> None:
        self.config, self.model, self.outliers, self.rows, self.ema = config, model, outliers, rows, ema

    @property
    def is_image_tokenizer(self) -> bool:
        """Whether the network is an image tokenizer, which does nothing but encode and decode images."""
        return isinstance(self.model, ImageTokenizer)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.config.model.text.vocab)

    @functools.cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.model, self.rows)

    @functools.cached_property
    def text_generator(self) -> BeamSearch:
        settings = self.config.eval
        return BeamSearch(self.model, self.tokenizer, settings.batch_size, BeamSettings.of(settings.decoding))

    @functools.cached_property
    def reranker(self) -> Reranker:
        return Reranker(self.model, self.tokenizer, self.config.eval.rerank, self.text_generator)

    @functools.cached_property
    def fusion(self) -> Fusion:
        return Fusion(self.model, self.rows or ROWS)

    @functools.cached_property
    def reader(self) -> Reader:
        return Reader(self.model)

    @functools.cached_property
    def answerer(self) -> Answerer:
        return Answerer(self.model, self.config, self.text_generator)

    @functools.cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """The network itself where it is one, otherwise the one that data.codes names."""
        return self.model if self.is_image_tokenizer else load_image_tokenizer(self.config)

    @functools.cached_property
    def image_generator(self) -> ImageGenerator:
        return ImageGenerator(self.config, self.model, self.image_tokenizer, self.encoder)

    def encode(self, media: Sequence[Medium]) -> Items:
        """Items of media that are all of one modality; those that this engine has encoded are not encoded again."""
        made = [medium.encoding[1] for medium in media if medium.encoding and medium.encoding[0] is self]
        if len(made) == len(media):
            return Items.join(made)
        model, modality = self.config.model, media[0].modality
        contents = [medium.content for medium in media]
        if modality == IMAGE:
            return self.encoder.image(*self._image_inputs(media))
        if modality == AUDIO:
            dtype, frame = audio_layout(model.audio.input, model.audio.mels, model.audio.feature_dim)
            clips = np.zeros((len(media), model.audio.length, *frame), dtype)
            for row, clip in zip(clips, contents, strict=True):
                row[: len(clip)] = clip
            return self.encoder.audio(clips, np.array([len(clip) for clip in contents], np.int32))
        rows = [self.tokenizer.encode(text, model.text.max_len) for text in contents]
        return self.encoder.text(np.stack([ids for ids, _ in rows]), np.stack([mask for _, mask in rows]))

    def with_encodings(self, media: Sequence[Medium], size: int) -> list[Medium]:
        """The media with their items, made ``size`` at a time, for several answers about the same."""
        found = []
        for start in range(0, len(media), size):
            batch = media[start : start + size]
            items = self.encode(batch)
            found += [replace(medium, encoding=(self, items.take([row]))) for row, medium in enumerate(batch)]
        return found

    def _image_inputs(self, media: Sequence[Medium]) -> list[np.ndarray]:
        """What the image encoder reads of images, or of their regions."""
        model = self.config.model
        if model.image.input == "patch":
            return [np.stack([medium.content for medium in media])]
        batch = {name: np.zeros((len(media), *spec.shape), spec.dtype) for name, spec in image_fields(model).items()}
        for row, medium in enumerate(media):
            fill_regions(batch, row, medium.content, model.image, medium.name)
        return [batch[name] for name in IMAGE_FIELDS["region"]]

    def caption(self, images: Items) -> list[str]:
        """A caption of each image."""
        generator = self.text_generator
        return generator.decode(generator.generate({IMAGE: (images.tokens, images.mask)}, "captions"))

    def transcribe(self, clips: Items) -> Items:
        """The audio clips with their transcripts as ``ids``; transcripts that are there are kept."""
        if clips.ids is not None:
            return clips
        return clips.with_ids(self.text_generator.generate({AUDIO: (clips.tokens, clips.mask)}, "transcripts"))

    def transcribe_with_images(self, clips: Items, images: Items) -> np.ndarray:
        """Transcripts of audio clips, each heard beside the image of its row: int32 [n, T]."""
        given = {IMAGE: (images.tokens, images.mask), AUDIO: (clips.tokens, clips.mask)}
        return self.text_generator.generate(given, "transcripts with images")

"""The face of the engine: what a trained model does with texts, images and audio clips in whatever form they come.

Items may be any number, and a generator: they are read and answered ``batch_size`` at a time, and only the answers are
kept. Answers stand in the order of the items.

Letters: ``N`` items, ``E`` embedding width, ``S`` image side.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from src.config import Config, ConfigError
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.inference import outliers
from src.inference.encode import Items
from src.inference.engine import Engine
from src.inference.images import check_generates
from src.inference.inputs import (
    PROMPT,
    AudioLike,
    ImageLike,
    Item,
    Media,
    OnError,
    TextLike,
    first_modality,
    gallery_modality,
    modality_of,
    read_batches,
    read_each,
    read_item,
)
from src.inference.loading import check_network, load_model
from src.inference.media import Medium, losses, meaningless
from src.inference.questions import check_answers, check_reads
from src.inference.rerank import Proposal, softmax
from src.inference.results import Batch, Classes, Generated, Hit, MatchMap
from src.metrics.nearest import blocks, grid_tables, top_k
from src.runtime import setup

SIMILARITY_ROWS = 256  # that are on the grid at once


class Model:
    """A trained model. Build it with :func:`src.inference.load`.

    Errors about items: ``on_error="raise"`` raises a DataError that names the item, ``"skip"`` names it in a warning
    and leaves it out of the answer, and a callable gets its place and the error instead of the warning::

        failed = {}
        vectors = model.embed_image(paths, on_error=failed.__setitem__)
        kept = [path for number, path in enumerate(paths) if number not in failed]

    Args:
        engine: the model and its settings.
        name: shown by ``repr``.
        batch_size: items at once.
    """

    def __init__(self, engine: Engine, name: str, batch_size: int) -> None:
        self.engine, self.name, self.batch_size = engine, name, batch_size

    def __repr__(self) -> str:
        return f"Model({self.name}, task={self.config.task}, {self.dim} numbers an embedding)"

    @property
    def config(self) -> Config:
        return self.engine.config

    @property
    def dim(self) -> int:
        """E."""
        return self.config.model.embed_dim

    def embed_text(self, texts: Iterable[TextLike], on_error: OnError = "raise") -> np.ndarray:
        """Unit vectors of texts, float32 [N, E].

        >>> texts = model.embed_text(["红色背景上，左边有一只猫", "蓝色背景上，中间有两个苹果"])
        >>> texts.shape, texts.dtype
        ((2, 128), dtype('float32'))

        Args:
            texts: a ``str`` is a text, a ``Path`` is a .txt file.

        Raises:
            DataError: a text is empty or cannot be read.
        """
        return self._embed(TEXT, texts, on_error)

    def embed_image(self, images: Iterable[ImageLike], on_error: OnError = "raise") -> np.ndarray:
        """Unit vectors of images, float32 [N, E].

        >>> images = model.embed_image(["assets/gallery/01.png", np.zeros((80, 60, 3), np.uint8)])
        >>> images.shape
        (2, 128)

        Args:
            images: paths, Pillow images, or arrays uint8 [H, W], [H, W, 3] or [H, W, 4]. Of a large JPEG Pillow
                decodes a path at a smaller scale, so that its vector differs a little from that of the decoded image.

        Raises:
            DataError: an image cannot be read.
        """
        return self._embed(IMAGE, images, on_error)

    def embed_audio(self, clips: Iterable[AudioLike], on_error: OnError = "raise") -> np.ndarray:
        """Unit vectors of audio clips, float32 [N, E].

        >>> model.embed_audio(["assets/gallery/speech.wav", (np.zeros(8000, np.float32), 16000)]).shape
        (2, 128)

        Args:
            clips: paths, or (samples, rate in Hz): samples [n] or [n, channels], float in [−1, 1], int16 or int32.

        Raises:
            DataError: a clip cannot be read.
        """
        return self._embed(AUDIO, clips, on_error)

    def embed_together(
        self, images: Iterable[ImageLike], clips: Iterable[AudioLike], on_error: OnError = "raise"
    ) -> np.ndarray:
        """Unit vectors of images with an audio clip each, float32 [N, E]: the sum of both vectors, at length 1.

        So are a text and its speech joined in training. No objective trains this sum.
        """
        found = [self._nothing]
        for _, media in self._read({IMAGE: images, AUDIO: clips}, on_error):
            both = sum(self.engine.encode(members).embeddings.astype(np.float64) for members in media.values())
            found.append(unit_rows(both))
        return np.concatenate(found)

    def embed_each(self, kind: str, items: Iterable[Item], on_error: OnError = "raise") -> Iterator[Batch]:
        """The vectors of any number of items, a batch at a time: nothing that was answered is kept.

        >>> for batch in model.embed_each("text", ("一只猫" for _ in range(20))):
        ...     print(batch.numbers[0], batch.vectors.shape)
        0 (16, 128)
        16 (4, 128)

        Args:
            kind: ``"text"``, ``"image"`` or ``"audio"``: what the items are.
        """
        modality = MODALITIES.index(kind)
        for numbers, media in self._read({modality: items}, on_error):
            yield Batch(numbers, media[modality], self.engine.encode(media[modality]).embeddings)

    def notes(self, medium: Medium) -> list[str]:
        """What of a text, an image or a clip that was read (``Batch.media``) the model does not read.

        >>> (batch,) = model.embed_each("text", ["一只猫", "一只猫和一架飞船"])
        >>> [model.notes(medium) for medium in batch.media]
        [[], ["not in the vocabulary: 和 飞 (25% of the tokens of '一只猫和一架飞船')"]]
        """
        return losses(medium, self.engine.tokenizer, self.config.model)

    def unlike(self, media: Sequence[Medium]) -> list[str]:
        """Says of media of one modality which are far from all that the model was trained on: one line, or none.

        None also where nothing was measured for the checkpoint (``tools/measure_outliers.py``), and of texts of which
        the vocabulary has no token, as :meth:`notes` says.

        >>> (batch,) = model.embed_each("text", ["昨天的会议改到下周三下午三点"])
        >>> len(model.unlike(batch.media))
        1
        """
        known = [m for m in media if m.modality != TEXT or not meaningless(m.content, self.engine.tokenizer)]
        if not known or self.engine.outliers is None:
            return []
        names = [repr(medium.content[:20]) if medium.modality == TEXT else medium.name for medium in known]
        return self.engine.outliers.remarks(known[0].modality, names, self.engine.encode(known))

    def encoded(self, media: Sequence[Medium]) -> list[Medium]:
        """Media of one modality that this model need not encode again, whatever it is asked about them.

        >>> from pathlib import Path
        >>> (batch,) = model.embed_each("text", ["红色背景上，左边有一只猫"])
        >>> (query,) = model.encoded(batch.media)
        >>> model.unlike([query]), model.rank(query, [Path("assets/gallery/01.png")])[0].index  # encodes the image only
        ([], 0)
        """
        return self.engine.with_encodings(media, self.batch_size)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosines of unit vectors [N, E] and [M, E], float64 [N, M].

        >>> bool(np.abs(model.similarity(texts, texts).diagonal() - 1).max() < 1e-6)
        True
        """
        left, right = grid_tables(np.atleast_2d(a), np.atleast_2d(b))
        found, columns = np.empty((len(left), len(right))), right[:].T
        for rows in blocks(len(left), SIMILARITY_ROWS):
            found[rows] = left[rows] @ columns * (left.scale * right.scale)
        return found

    def nearest(self, queries: np.ndarray, gallery: np.ndarray, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors of a gallery [M, E] for each query [N, E], the nearest first.

        Exact, and of equal ones the first; with faiss installed it is faster.

        >>> places, cosines = model.nearest(texts, texts, top=1)
        >>> places[:, 0].tolist()
        [0, 1]

        Returns:
            places int64 [N, top] and cosines float64 [N, top]; fewer than ``top`` where the gallery has fewer.
        """
        return top_k(np.atleast_2d(queries), gallery, min(top, len(gallery)))

    def rank(
        self,
        query: Item,
        gallery: Sequence[Item],
        top: int = 5,
        vectors: np.ndarray | None = None,
        on_error: OnError = "raise",
    ) -> list[Hit]:
        """The items of a gallery that belong best to a query, the best first, re-ranked as ``eval.rerank`` says.

        What is of the query's own modality is ranked by embeddings alone.

        >>> from pathlib import Path
        >>> gallery = sorted(Path("assets/gallery").glob("*.png"))
        >>> hits = model.rank(Path("assets/gallery/speech.wav"), gallery, top=3)
        >>> gallery[hits[0].index].name, hits[0].share > 0.9
        ('01.png', True)

        Args:
            query: a ``str`` is a text, a ``Path`` a file of any kind; an image, or (samples, rate).
            gallery: items of one modality, told as the query's.
            top: how many are wanted.
            vectors: of the gallery, float32 [N, E], where they were made before; then only candidates are read.
            on_error: what happens to items of the gallery that cannot be read.

        Raises:
            DataError: the query or an item cannot be read, or nothing of the gallery can.
        """
        model = self.config.model
        asked = read_item(query, modality_of(query, "query"), "query", model)
        kind = gallery_modality(gallery, on_error)
        places = np.arange(len(gallery))
        if vectors is None:
            batches = list(self.embed_each(MODALITIES[kind], gallery, on_error))
            places = np.array([number for batch in batches for number in batch.numbers], np.int64)
            vectors = np.concatenate([self._nothing, *(batch.vectors for batch in batches)])
        elif len(vectors) != len(gallery):
            raise DataError(f"vectors: {len(vectors)} of them for a gallery of {len(gallery)} items")
        if not len(vectors):
            raise DataError("gallery: nothing of it can be read")
        encoded = self.engine.encode([asked])
        depth = min(max(top, self.config.eval.rerank.top_k), len(vectors))
        (candidates,), (cosines,) = top_k(encoded.embeddings, vectors, depth)
        offered = places[candidates]
        # where the vectors were made before, files may have gone since
        read = dict(read_each({kind: (gallery[place] for place in offered)}, model, on_error, offered.tolist()))
        if not read:
            raise DataError(f"gallery: none of the best {depth} can be read")
        media = [row[kind] for row in read.values()]
        cosines = cosines[np.isin(offered, list(read))]
        scores = self._second_scores(asked.modality, encoded, media, cosines)
        shares, found = softmax(scores), list(read)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Hit(found[i], media[i], float(shares[i]), float(cosines[i])) for i in order]

    def caption(self, images: Iterable[ImageLike], on_error: OnError = "raise") -> list[str]:
        """A caption of each image, decoded as ``eval.decoding`` says.

        >>> model.caption(["assets/gallery/01.png"])
        ['红色背景上，左边有一只猫，右边有两个苹果']
        """
        engine, found = self.engine, []
        for _, media in self._read({IMAGE: images}, on_error):
            found += engine.caption(self._filled(media[IMAGE]))[: len(media[IMAGE])]
        return found

    def transcribe(
        self,
        clips: Iterable[AudioLike],
        images: Iterable[ImageLike] | None = None,
        on_error: OnError = "raise",
    ) -> list[str]:
        """A transcript of each audio clip, heard beside the image of its place if there are ``images``.

        >>> model.transcribe(["assets/gallery/speech.wav"])
        ['红底，左边一只猫，右边两个苹果']
        """
        engine, found = self.engine, []
        columns = {AUDIO: clips} if images is None else {IMAGE: images, AUDIO: clips}
        for _, media in self._read(columns, on_error):
            heard = self._filled(media[AUDIO])
            if images is None:
                ids = engine.transcribe(heard).ids
            else:
                ids = engine.transcribe_with_images(heard, self._filled(media[IMAGE]))
            found += engine.text_generator.decode(ids[: len(media[AUDIO])])
        return found

    def answer(
        self,
        images: Iterable[ImageLike],
        questions: Iterable[TextLike | AudioLike],
        on_error: OnError = "raise",
    ) -> list[str]:
        """An answer to the question about each image, of a model that was trained for it (``config/vqa/``)::

            model = load("runs/demo/vqa")
            model.answer(["assets/gallery/01.png"] * 2, ["左边有几只猫？", Path("question.wav")])

        Args:
            images: of each question.
            questions: a ``str`` is a text, a ``Path`` a file of text or audio; or (samples, rate).

        Raises:
            ConfigError: the model was not trained to answer questions, or not such ones.
            DataError: they differ in number, an item cannot be read, or a question is an image.
        """
        check_answers(self.config)
        found: dict[int, str] = {}
        for numbers, media in self._read({IMAGE: images, PROMPT: questions}, on_error):
            for modality in (TEXT, AUDIO):
                own = [at for at, medium in enumerate(media[PROMPT]) if medium.modality == modality]
                if not own:
                    continue
                check_reads(self.config, modality)
                given = {
                    IMAGE: self._filled([media[IMAGE][at] for at in own]),
                    modality: self._filled([media[PROMPT][at] for at in own]),
                }
                answers = self.engine.answerer.answer(given)
                found |= {numbers[at]: answer for at, answer in zip(own, answers, strict=False)}
        return [found[number] for number in sorted(found)]

    def generate_image(
        self,
        prompts: Iterable[TextLike | AudioLike],
        seed: int | None = None,
        guidance: float | None = None,
        samples: int | None = None,
        on_error: OnError = "raise",
    ) -> list[Generated]:
        """Images of texts and of speech, of each prompt the best first if several are scored (:class:`Generated`).

        >>> (made,) = model.generate_image(["红色背景上，左边有一只猫"], seed=3, samples=2)
        >>> made.images.shape, made.image.dtype
        ((2, 64, 64, 3), dtype('uint8'))

        Args:
            prompts: a ``str`` is a text, a ``Path`` a file of text or audio; or (samples, rate).
            seed: of what is sampled; with it a prompt gets the same images whatever stands beside it.
            guidance: weight of classifier-free guidance.
            samples: images of each prompt. What is None is as ``eval.image_generation`` and ``seed`` have it.

        Raises:
            ConfigError: the model generates no images.
            DataError: a prompt cannot be read, or is an image.
        """
        check_generates(self.config)
        generator = self.engine.image_generator
        given = {"seed": seed, "guidance": guidance, "samples": samples}
        sampling = replace(generator.sampling, **{name: value for name, value in given.items() if value is not None})
        found: dict[int, Generated] = {}
        for numbers, media in self._read({PROMPT: prompts}, on_error):
            for modality in (TEXT, AUDIO):
                own = [at for at, medium in enumerate(media[PROMPT]) if medium.modality == modality]
                if not own:
                    continue
                encoded = self.engine.encode([media[PROMPT][at] for at in own])
                made = zip(*generator.generate_all(modality, encoded, sampling), strict=True)
                found |= {numbers[at]: Generated.best_first(*both) for at, both in zip(own, made, strict=True)}
        return [found[number] for number in sorted(found)]

    def match(
        self,
        text: Iterable[TextLike] | None = None,
        image: Iterable[ImageLike] | None = None,
        audio: Iterable[AudioLike] | None = None,
        on_error: OnError = "raise",
    ) -> np.ndarray:
        """The probability, by the matching head, that the text, image and audio of a place belong together.

        >>> both = ["红色背景上，左边有一只猫，右边有两个苹果", "蓝色背景上，中间有一辆公交车"]
        >>> right, wrong = model.match(text=both, image=["assets/gallery/01.png"] * 2)
        >>> right > 0.9, wrong < 0.1
        (True, True)

        Args:
            text, image, audio: two or three of them, N of each.

        Returns:
            float64 [N].

        Raises:
            DataError: fewer than two are given, they differ in number, or an item cannot be read.
        """
        columns = _given(text, image, audio)
        if len(columns) < 2:
            raise DataError("match: give two or three of text, image, audio")
        found = [np.zeros(0)]
        for numbers, media in self._read(columns, on_error):
            items = {modality: self._filled(members) for modality, members in media.items()}
            rows = np.arange(len(items[min(items)]))
            logs = self.engine.reranker.matching.score(items, np.stack([rows] * len(items), 1))
            found.append(np.exp(logs[: len(numbers)]))
        return np.concatenate(found)

    def match_map(self, text: TextLike, image: ImageLike | None = None, audio: AudioLike | None = None) -> MatchMap:
        """Where in an image, or in an audio clip, the model looks for each word of a text, and how likely the word is.

        Both are read off the text decoder. Texts should be such as it was trained on, whole captions or transcripts.

        >>> found = model.match_map("红色背景上，左边有一只猫，右边有两个苹果", image="assets/gallery/01.png")
        >>> cat = found.of("猫")
        >>> cat.shape, bool(cat.argmax() % 8 < 4)  # patches; the largest weight is in the left half
        ((8, 8), True)

        Args:
            text, image, audio: a text, and either an image or a clip.

        Raises:
            DataError: not just one of image and audio is given, the text holds no word, or an item cannot be read.
        """
        if (image is None) == (audio is None):
            raise DataError("match_map: give either an image or an audio clip")
        given = IMAGE if audio is None else AUDIO
        told = read_item(text, TEXT, "text", self.config.model)
        medium = read_item(audio if image is None else image, given, MODALITIES[given], self.config.model)
        tokenizer, room = self.engine.tokenizer, self.config.model.text.max_len
        tokens = tokenizer.tokens(told.content)[: room - 1]
        if not tokens:
            raise DataError(f"match_map: {told.content!r} holds nothing that the model reads")
        item = self.engine.encode([medium])
        logs, weights = self.engine.reader.read(given, item, tokenizer.encode(told.content, room)[0])
        count, places, image = len(tokens), np.flatnonzero(item.mask[0]), self.config.model.image
        shape = (image.size // image.patch,) * 2 if given == IMAGE and image.input == "patch" else places.shape
        owners = tokenizer.words(told.content, room)[1 : count + 1]
        return MatchMap(tokens, owners, logs[:count], weights[:count, places].reshape(count, *shape))

    def represent(
        self,
        text: Iterable[TextLike] | None = None,
        image: Iterable[ImageLike] | None = None,
        audio: Iterable[AudioLike] | None = None,
        on_error: OnError = "raise",
    ) -> np.ndarray:
        """The [CLS] of the cross-modal encoder, which reads the text, image and audio of a place together.

        >>> model.represent(text=["红色背景上，左边有一只猫"], image=["assets/gallery/01.png"]).shape
        (1, 128)

        Args:
            text, image, audio: one, two or three of them, N of each; what is left out is absent.

        Returns:
            float32 [N, D], D the width of the cross-modal encoder: features, no unit vectors.

        Raises:
            DataError: none is given, they differ in number, or an item cannot be read.
        """
        columns = _given(text, image, audio)
        if not columns:
            raise DataError("represent: give one, two or three of text, image, audio")
        found = [np.zeros((0, self.config.model.cross.width), np.float32)]
        for numbers, media in self._read(columns, on_error):
            items = {modality: self._filled(members) for modality, members in media.items()}
            found.append(self.engine.fusion.cls(items)[: len(numbers)])
        return np.concatenate(found)

    def classify(
        self,
        items: Iterable[ImageLike | AudioLike],
        labels: Sequence[str],
        templates: Sequence[str] = ("{}",),
        clips: Iterable[AudioLike] | None = None,
        on_error: OnError = "raise",
    ) -> Classes:
        """Zero-shot classification: what of the labels is nearest to each image or audio clip.

        >>> model.classify(["assets/gallery/01.png"], ["红色背景上有一只猫", "蓝色背景上有一辆公交车"]).best
        ['红色背景上有一只猫']

        Args:
            items: images, or audio clips: of one modality. A ``str`` is a path.
            labels: names of the classes, each once.
            clips: of each image an audio clip, whose vector is added to the image's (:meth:`embed_together`).
            templates: texts with a ``{}`` in the label's place; the vectors of a label's texts are averaged.

        Raises:
            DataError: there is no label, one stands twice, a template has no ``{}``, or an item cannot be read.
        """
        classes = self.embed_labels(labels, templates)
        if clips is None:
            modality, items = first_modality(items, on_error)
            vectors = self._embed(modality, items, on_error)
        else:
            vectors = self.embed_together(items, clips, on_error)
        cosines = self.similarity(vectors, classes) if len(vectors) else np.zeros((0, len(labels)))
        return Classes(list(labels), cosines, softmax(self.engine.reranker.logit_scale() * cosines))

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> np.ndarray:
        """Unit vectors of classes, float32 [labels, E]: the mean over templates, at length 1.

        Radford et al. 2021, section 3.1.4: the unit vectors of a label's texts are averaged and the mean is normalised.

        Raises:
            DataError: there is no label, one stands twice, or a template has no ``{}``.
        """
        if not labels or len(set(labels)) < len(labels):
            raise DataError("labels: give at least one, and each once")
        if not templates or any("{}" not in template for template in templates):
            raise DataError("templates: each must hold {}, which the label takes the place of")
        texts = (template.replace("{}", label) for label in labels for template in templates)
        means = self.embed_text(texts).reshape(len(labels), len(templates), -1).astype(np.float64).mean(1)
        return unit_rows(means)

    @property
    def _nothing(self) -> np.ndarray:
        return np.zeros((0, self.dim), np.float32)

    def _embed(self, modality: int, items: Iterable[Item], on_error: OnError) -> np.ndarray:
        found = [self._nothing]
        for batch in self.embed_each(MODALITIES[modality], items, on_error):
            found.append(batch.vectors)
            if modality == TEXT:
                _warn_unknown(batch.media, self.engine)
        return np.concatenate(found)

    def _read(self, columns: Mapping[int, Iterable[Item]], on_error: OnError) -> Iterator[tuple[list[int], Media]]:
        return read_batches(columns, self.batch_size, self.config.model, on_error)

    def _filled(self, media: Sequence[Medium]) -> Items:
        """A whole batch: the last item stands in for those that are missing."""
        return self.engine.encode(media).take(np.minimum(np.arange(self.batch_size), len(media) - 1))

    def _second_scores(self, modality: int, asked: Items, media: list[Medium], cosines: np.ndarray) -> np.ndarray:
        """The scores of candidates, float64 [n], the best ``eval.rerank.top_k`` of them re-ranked.

        The others follow in their order, as far behind the last of those as their cosines are behind its own.
        """
        reranker, kind, depth = self.engine.reranker, media[0].modality, self.config.eval.rerank.top_k
        first = reranker.logit_scale() * cosines
        if not (depth and reranker.active and kind != modality):
            return first
        media = media[:depth]
        items = {modality: asked, kind: self.engine.encode(media)}
        pairs = np.stack([np.zeros(len(media), np.int64), np.arange(len(media))], 1)
        pairs = pairs if modality < kind else pairs[:, ::-1]
        second = reranker.scores(Proposal(items, pairs, cosines[:depth]))
        return np.concatenate([second, second.min() + first[depth:] - first[len(media) - 1]])


def open_model(
    path: str | Path, settings: Sequence[str], config_file: str | Path | None, batch_size: int, ema: bool
) -> Model:
    """As :func:`src.inference.load`."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be positive")
    folder = locate(path, ema)
    config = load_checkpoint_config(folder, settings, config_file)
    check_network(config)
    usual = None if ema else outliers.load(folder)  # it was measured for the plain weights
    setup(replace(config.runtime, distributed=False), None)  # nothing is sampled but from seeds of its own
    drawn = np.random.get_state()  # the caller's; MindSpore's initial weights are drawn from the same generator
    try:
        config, network = load_model(folder, settings, config_file, ema)
    finally:
        np.random.set_state(drawn)
    network.set_train(False)
    return Model(Engine(config, network, usual, batch_size, ema), str(path), batch_size)


def _given(*columns: Iterable[Item] | None) -> dict[int, Iterable[Item]]:
    """What is given of text, image, audio, by modality."""
    named = zip((TEXT, IMAGE, AUDIO), columns, strict=True)
    return {modality: items for modality, items in named if items is not None}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _warn_unknown(texts: Sequence[Medium], engine: Engine) -> None:
    """Warns of texts of which the vocabulary has no token: their vectors mean nothing."""
    for text in texts:
        if remark := meaningless(text.content, engine.tokenizer):
            warnings.warn(remark, stacklevel=4)

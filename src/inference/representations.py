"""What a frozen network makes of items, as features for a linear probe; beside it the inputs themselves.

    fused       the [CLS] of the cross-modal encoder that reads the given modalities, float32 [N, D]
    embedding   the unit vectors of the given modalities, one behind the other, float32 [N, E · modalities]
    raw         no network: characters, pixels, log-mels, one behind the other, uint8

Letters: ``N`` items, ``D`` fused width, ``E`` embedding width, ``L`` tokens, ``M`` audio frames, ``S`` image side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

import numpy as np
from PIL import Image

from src.data.audio import spectrogram
from src.data.errors import DataError
from src.data.regions import Regions
from src.data.schema import IMAGE, MODALITIES, TEXT
from src.inference.encode import ROWS
from src.inference.engine import Engine
from src.inference.media import Medium
from src.models.batches import progress

Given = tuple[int, ...]  # modalities, in the order text, image, audio
Example = dict[int, Medium]  # an item by modality

FUSED, EMBEDDING, RAW = "fused", "embedding", "raw"
PIXELS, BINS = 16, 16  # raw: the sides of an image, and the parts of the longest audio clip, that are averaged
BUCKETS = 4096  # raw: tokens of a larger vocabulary share places (the hashing trick, Weinberger et al. 2009)


def subsets(modalities: Collection[int]) -> list[Given]:
    """Every choice of modalities, single ones first: seven of three."""
    given = sorted(modalities)
    return [chosen for size in range(1, len(given) + 1) for chosen in combinations(given, size)]


def name_of(given: Given) -> str:
    """``text+image``."""
    return "+".join(MODALITIES[modality] for modality in given)


class Representations:
    """Features of items by kind: of each network, ``fused`` and ``embedding``, and ``raw``.

    Args:
        engines: networks by what stands before the kinds of their features: ``""``, ``"untrained "``.
        modalities: that every item has.
        raw: also keep the inputs.
    """

    def __init__(self, engines: Mapping[str, Engine], modalities: Collection[int], raw: bool) -> None:
        self.engines, self.modalities, self.raw = engines, sorted(modalities), raw
        self.given = subsets(modalities)
        self.kinds = [name + kind for kind in (FUSED, EMBEDDING) for name in engines] + [RAW] * raw

    def read(
        self, count: int, item: Callable[[int], Example], failed: Callable[[int, DataError], object], label: str
    ) -> "Features":
        """The features of all items that can be read.

        Args:
            count: N.
            item: reads one by its number, from 0 on; it may raise DataError.
            failed: gets the number of an item that cannot be read, and why.
            label: of the progress bar.
        """
        features, waiting = Features(count), []
        for number in progress(range(count), label):
            try:
                waiting.append((number, item(number)))
            except DataError as error:
                failed(number, error)
            if len(waiting) == ROWS:
                self._add(features, waiting)
                waiting = []
        if waiting:
            self._add(features, waiting)
        return features

    def _add(self, features: "Features", read: Sequence[tuple[int, Example]]) -> None:
        """A batch; it is filled up by its last item, so that one graph serves all."""
        numbers, rows = [number for number, _ in read], [example for _, example in read]
        filled = rows + [rows[-1]] * (ROWS - len(rows))
        for name, engine in self.engines.items():
            items = {which: engine.encode([example[which] for example in filled]) for which in self.modalities}
            for which, encoded in items.items():
                features.put(name + EMBEDDING, (which,), numbers, encoded.embeddings)
            for given in self.given:
                features.put(name + FUSED, given, numbers, engine.fusion.cls({which: items[which] for which in given}))
        for which in self.modalities if self.raw else ():
            values = [raw_of(example[which], next(iter(self.engines.values()))) for example in rows]
            features.put(RAW, (which,), numbers, np.stack(values))


class Features:
    """Features of items, by kind and given modalities; only what :meth:`of` puts together is made when asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, np.zeros(count, bool)
        self.tables: dict[tuple[str, Given], np.ndarray] = {}

    @property
    def numbers(self) -> np.ndarray:
        """The items that could be read, int64 [n]."""
        return np.flatnonzero(self.done)

    def put(self, kind: str, given: Given, numbers: Sequence[int], rows: np.ndarray) -> None:
        """Keeps the first rows, one of each item."""
        table = self.tables.setdefault((kind, given), np.zeros((self.count, rows.shape[1]), rows.dtype))
        table[numbers] = rows[: len(numbers)]
        self.done[numbers] = True

    def of(self, kind: str, given: Given) -> np.ndarray:
        """The features of the items that could be read, [n, …]."""
        if (kind, given) in self.tables:
            found = self.tables[kind, given]
        else:  # nothing fuses these: they stand side by side
            found = np.concatenate([self.tables[kind, (modality,)] for modality in given], 1)
        return found if self.done.all() else found[self.done]


def raw_of(medium: Medium, engine: Engine) -> np.ndarray:
    """An item without any network, uint8: which characters a text has, an image's pixels, a clip's log-mels.

    Raises:
        DataError: the model reads regions or features, which another network made.
    """
    config = engine.config.model
    if medium.modality == TEXT:
        found = np.zeros(min(engine.tokenizer.size, BUCKETS), np.uint8)
        ids, mask = engine.tokenizer.encode(medium.content, config.text.max_len)
        found[ids[mask == 1] % len(found)] = 1
        return found
    if medium.modality == IMAGE:
        if isinstance(medium.content, Regions):
            raise DataError("model.image.input=region: there are no pixels: compare with untrained alone (--against)")
        return np.asarray(Image.fromarray(medium.content).resize((PIXELS, PIXELS), Image.Resampling.BOX)).reshape(-1)
    heard = spectrogram(medium.content, config.audio)
    if heard is None:
        raise DataError("model.audio.input=feature: there are no log-mels: compare with untrained alone (--against)")
    longest = np.zeros((max(config.audio.max_frames, BINS), heard.shape[1]), np.uint8)
    longest[: len(heard)] = heard
    # clips keep their time: what is said at its beginning stays at the beginning
    return np.asarray(Image.fromarray(longest).resize((heard.shape[1], BINS), Image.Resampling.BOX)).reshape(-1)

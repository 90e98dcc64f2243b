"""How much of a dataset the model reads: texts in tokens of its vocabulary, texts and audio that fit whole.

Measured on some samples of a split, evenly spaced, so that the answer takes seconds and is the same each time.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.config import AudioEncoderConfig, ModelConfig
from src.data.errors import DataError
from src.data.masking import possible_given
from src.data.order import evenly_apart
from src.data.store import Dataset, read_info
from src.data.tokenizer import UNK, Tokenizer

MEASURED = 2000  # samples of a split
SHOWN = 10  # unknown characters that are named
NOTED = 0.01  # a larger share of [UNK] is noted in evaluation


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts or audio clips: int64 [n], and how many of them a model's setting cuts."""

    values: np.ndarray
    cut: int

    @property
    def share(self) -> float:
        return self.cut / max(len(self.values), 1)

    def __str__(self) -> str:
        half, most, longest = np.percentile(self.values, [50, 99, 100], method="higher")
        return f"half of them have up to {half}, 99 % up to {most}, the longest {longest}"


@dataclass(frozen=True)
class Given:
    """What a text needs beside it to count for the loss (:func:`src.data.masking.possible_given`)."""

    key: str  # the setting
    choices: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class Coverage:
    """What was found in the samples of one dataset's split."""

    name: str  # folder and split, and how many of its samples were looked at if not all, for messages
    whole: bool  # whether all of its samples were
    folder: Path
    tokens: int
    unknown: int  # of the tokens, [UNK]
    characters: Counter[str]  # those that made a token [UNK]
    texts: Lengths  # in tokens, with [CLS] and [SEP]
    clips: Lengths  # in frames of model.audio.max_frames
    stored_frames: int  # at which preparation cut some of the clips, so that their lengths are not known; 0: none
    given: Given | None  # what is asked of the texts; None: nothing
    lacking: int  # of the texts, without what is asked

    @property
    def unknown_share(self) -> float:
        """The share of tokens that are [UNK]."""
        return self.unknown / max(self.tokens, 1)

    def require_known(self, most: float) -> None:
        """Raises DataError if a larger share of the tokens is [UNK]."""
        if self.unknown_share > most:
            raise DataError(f"{self.describe_unknown()} (more than data.max_unknown={most} allows)")

    def describe_unknown(self) -> str:
        """One line: how much is [UNK], which characters, and what to do."""
        often = " ".join(char[:SHOWN] for char, _ in self.characters.most_common(SHOWN))
        build = f"python tools/build_vocab.py --output vocab.txt {self.folder}"
        return (
            f"{self.name}: {self.unknown_share:.1%} of the tokens of its texts are [UNK], most often for {often}: "
            f"make a vocabulary ({build}) or take model.text.vocab=config/vocab/bert-base-chinese.txt"
        )

    @property
    def _all(self) -> str:
        return "all" if self.whole else "all of these"

    def notes(self, model: ModelConfig, unknown: float = 0.0) -> list[str]:
        """What the model does not read: a line for [UNK] above a share, for texts and for audio that is cut, and for
        texts that do not count."""
        found = [self.describe_unknown()] if self.unknown_share > unknown else []
        if self.texts.cut:
            found.append(
                f"{self.name}: {self.texts.share:.1%} of the texts are cut at model.text.max_len={model.text.max_len} "
                f"tokens: {self.texts}; model.text.max_len={self.texts.values.max()} holds {self._all}"
            )
        if self.clips.cut:
            found.append(
                f"{self.name}: {self.clips.share:.1%} of the audio clips are cut at "
                f"model.audio.max_frames={model.audio.max_frames} frames: {self.clips}; {self._audio_hint(model.audio)}"
            )
        if self.lacking:
            share = self.lacking / len(self.texts.values)
            found.append(f"{self.name}: {share:.1%} of the texts lack what {self.given.key} names, and do not count")
        return found

    def _audio_hint(self, audio: AudioEncoderConfig) -> str:
        if self.stored_frames:
            more = 2 * self.stored_frames
            return f"the longest were cut in preparation: prepare with more, such as model.audio.max_frames={more}"
        stride = 1 if audio.input == "wav2vec2" else audio.stride
        return f"model.audio.max_frames={-(-int(self.clips.values.max()) // stride) * stride} holds {self._all}"


class Texts:
    """Counts the tokens of texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens: Counter[bool] = Counter()  # by whether they are [UNK]
        self.characters: Counter[str] = Counter()
        self.lengths: list[int] = []

    def add(self, text: str) -> None:
        pieces = self.tokenizer.tokens(text)
        self.tokens.update(piece == UNK for piece in pieces)
        self.lengths.append(len(pieces) + 2)
        if UNK in pieces:
            self.characters.update(self.tokenizer.unknown_characters(text))

    def counts(self, model: ModelConfig) -> tuple[int, int, Counter[str], Lengths]:
        """``tokens``, ``unknown``, ``characters`` and ``texts`` of a :class:`Coverage`."""
        lengths = np.array(self.lengths, np.int64)
        cut = int((lengths > model.text.max_len).sum())
        return self.tokens.total(), self.tokens[True], self.characters, Lengths(lengths, cut)


def measure(dataset: Dataset, tokenizer: Tokenizer, model: ModelConfig, given: Given | None = None) -> Coverage:
    """The coverage of one split, of at most MEASURED samples; records that cannot be read are passed over."""
    chosen = evenly_apart(len(dataset), MEASURED)
    records, captions, _ = dataset.samples[chosen].T
    some = f", {len(chosen):,} of its {len(dataset):,} samples" if len(chosen) < len(dataset) else ""
    texts, clips, lacking = Texts(tokenizer), [], 0
    for record, caption in zip(dataset.read_good(records), captions.tolist(), strict=True):
        if record is None:
            continue
        if caption >= 0:
            texts.add(record.captions[caption])
            if given is not None:
                presence = np.array(record.presence(caption, model.image.input))
                lacking += not len(possible_given(given.choices, presence, given.whole))
        if record.audio and (clip := record.audio[max(caption, 0)]) is not None:
            clips.append(len(clip))
    frames, cut, stored_frames = _audio_lengths(np.array(clips, np.int64), dataset, model.audio)
    return Coverage(
        f"{dataset.folder}, split {dataset.split!r}{some}",
        not some,
        dataset.folder,
        *texts.counts(model),
        Lengths(frames, cut),
        stored_frames,
        given,
        lacking,
    )


def _audio_lengths(lengths: np.ndarray, dataset: Dataset, audio: AudioEncoderConfig) -> tuple[np.ndarray, int, int]:
    """Lengths in frames, how many clips are cut, and the frames at which some were in preparation already (0: none).

    A clip that is exactly as long as preparation stores any counts as cut there: few others are.
    """
    if not len(lengths):
        return lengths, 0, 0
    stored = dataset.info["audio"]["max_frames"]
    full = lengths >= stored * audio.length // audio.max_frames  # of a waveform, in samples
    cut = int((full | (lengths > audio.length)).sum())
    return -(-lengths * audio.max_frames // audio.length), cut, stored * int(full.any())


def report_coverage(folder: Path, model: ModelConfig) -> None:
    """Prints the lengths in each split of a dataset folder, and what a model would not read of it."""
    tokenizer = Tokenizer(model.text.vocab)
    for split in read_info(folder)["splits"]:
        dataset = Dataset(folder, split, model.audio, model.image)
        found = measure(dataset, tokenizer, model)
        if len(found.texts.values):
            print(f"{found.name}: tokens of the texts: {found.texts}")
        if len(found.clips.values):
            print(f"{found.name}: frames of the audio clips: {found.clips}")
        print("\n".join(found.notes(model)) or f"{found.name}: no [UNK], and nothing is cut")

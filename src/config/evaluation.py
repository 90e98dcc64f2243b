"""How a model is evaluated: how much of a split each part reads, and how texts and images are generated."""

from dataclasses import dataclass, field
from typing import Any, Literal

from src.config.checks import require
from src.config.paths import PathText


@dataclass(frozen=True)
class RetrievalConfig:
    gallery_size: int = 1000  # images of the gallery, the first of the split; 0: the whole split
    folds: int = 1  # above 1: also the mean over so many galleries of consecutive images (COCO's 1K: 5 of the 5K)

    def __post_init__(self) -> None:
        _not_negative(self, "gallery_size")
        require(self.folds > 0, "folds", "must be positive")


@dataclass(frozen=True)
class RerankConfig:
    """The second ranking: the score of a candidate is the weighted sum of three."""

    top_k: int = 16  # best candidates by embedding that are re-ranked; 0: embeddings only
    embedding: float = 1.0  # weight of the embeddings' similarity
    matching: float = 0.0  # weight of the matching head's score; one pass of the cross-modal encoder per candidate
    likelihood: float = 0.0  # weight of log p(text | image); one pass of the decoder per candidate
    tuned_on: str = ""  # split that the weights were chosen on for this very checkpoint; empty: they were not

    def __post_init__(self) -> None:
        _not_negative(self, "top_k", "embedding", "matching", "likelihood")


@dataclass(frozen=True)
class CaptionConfig:
    max_items: int = 1000  # images to caption; 0: none

    def __post_init__(self) -> None:
        _not_negative(self, "max_items")


@dataclass(frozen=True)
class TranscriptConfig:
    max_items: int = 1000  # audio clips to transcribe; 0: none

    def __post_init__(self) -> None:
        _not_negative(self, "max_items")


@dataclass(frozen=True)
class VqaConfig:
    max_items: int = 0  # questions to answer, the first of the split; 0: all

    def __post_init__(self) -> None:
        _not_negative(self, "max_items")


@dataclass(frozen=True)
class DecodingConfig:
    """Beam search, for captions, transcripts and answers. Lengths count tokens, the end of the text included."""

    beam_size: int = 1  # hypotheses kept; 1: greedy
    length_penalty: float = 0.0  # α: texts compare by log p / ((5 + tokens) / 6)^α; 0: shorter texts tend to win
    no_repeat_ngram: int = 0  # no sequence of so many tokens occurs twice in a text; 0: any may
    min_length: int = 0  # fewest tokens of a text
    max_length: int = 0  # most tokens of a text; 0: model.text.max_len - 1

    def __post_init__(self) -> None:
        require(self.beam_size > 0, "beam_size", "must be positive")
        _not_negative(self, "length_penalty", "no_repeat_ngram", "min_length", "max_length")
        fits = not self.max_length or self.min_length <= self.max_length
        require(fits, "min_length", f"must not be above max_length={self.max_length}")


@dataclass(frozen=True)
class MaskedConfig:
    max_items: int = 1000  # samples on which masked modelling and matching are measured; 0: all

    def __post_init__(self) -> None:
        _not_negative(self, "max_items")


@dataclass(frozen=True)
class ReconstructionConfig:
    max_items: int = 0  # images that an image tokenizer is measured on; 0: all

    def __post_init__(self) -> None:
        _not_negative(self, "max_items")


@dataclass(frozen=True)
class ImageGenerationConfig:
    max_items: int = 0  # texts and audio clips that images are generated of; 0: none
    samples: int = 1  # images for each, of which the best is kept
    rank_by: Literal["embedding", "matching"] = "embedding"  # what says which is best: cosine, or the matching head
    temperature: float = 0.7  # of the sampled codes; 0: always the likeliest code
    top_k: int = 0  # only the k likeliest codes are sampled; 0: all
    guidance: float = 0.0  # w of classifier-free guidance; 0: none

    def __post_init__(self) -> None:
        require(self.samples > 0, "samples", "must be positive")
        _not_negative(self, "max_items", "temperature", "top_k", "guidance")


@dataclass(frozen=True)
class ZeroShotConfig:
    """Classes that were not trained as such: the nearest text names the class (task=zero_shot, infer.py --classify)."""

    path: PathText = ""  # a folder with a folder of files for each class, or a CSV of path (or image, audio) and label
    given: Literal["image", "audio", "image+audio"] = "image"  # what is classified; both: the sum of their vectors
    templates: PathText = ""  # file of texts, one a line, with {} in the label's place; empty: the label alone
    names: PathText = ""  # CSV of label and name: what a label is called in texts; empty: by itself


@dataclass(frozen=True)
class EvalConfig:
    split: str = "test"  # split of the dataset that is measured
    batch_size: int = 100  # evaluation batch size
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    transcript: TranscriptConfig = field(default_factory=TranscriptConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    image_generation: ImageGenerationConfig = field(default_factory=ImageGenerationConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    vqa: VqaConfig = field(default_factory=VqaConfig)

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", "must be positive")


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        require(getattr(config, name) >= 0, name, "must not be negative")

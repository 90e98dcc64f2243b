"""What a run is made of beside its network and data: device, objectives, optimiser, training, evaluation."""

from dataclasses import dataclass
from typing import Literal

from src.config.checks import require

# fields of ObjectivesConfig that are loss weights, in the order in which the losses are logged
OBJECTIVES = ("contrastive", "mlm", "mvm_code", "mvm_feature", "mvm_class", "mam_feature", "mam_contrastive")
OBJECTIVES += ("matching", "denoise_text", "denoise_image")


@dataclass(frozen=True)
class RuntimeConfig:
    device: Literal["CPU", "GPU", "Ascend"] = "CPU"  # where the graphs run
    mode: Literal["graph", "pynative"] = "graph"  # pynative is for debugging: about twice as slow
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"  # of products; fp16 has a dynamic loss scale; a CPU has no bf16
    distributed: bool = False  # data parallel over the ranks that msrun started
    graph_kernel: bool = False  # fuse elementwise chains; on a CPU it needs g++, decorator and attrs


@dataclass(frozen=True)
class ObjectivesConfig:
    contrastive: float = 1.0  # weights; 0 removes the computation as well
    mlm: float = 0.0
    mvm_code: float = 0.0  # codes of hidden patches; needs data.codes
    mvm_feature: float = 0.0  # clean features of hidden patches, the detector's of hidden regions
    mvm_class: float = 0.0  # the detector's class of hidden regions; needs model.image.input=region
    mam_feature: float = 0.0  # clean features of hidden frames, with model.audio.input=feature those that are read
    mam_contrastive: float = 0.0  # which hidden frame is which
    matching: float = 0.0
    denoise_text: float = 0.0
    denoise_image: float = 0.0  # needs data.codes
    mask_ratio: float = 0.15  # share of the words, patches and frames that the token level hides
    mam_span: int = 3  # sound tokens hidden in a row
    mam_temperature: float = 0.1  # of the cosines that tell frames apart
    token_fraction: float = 1.0  # share of the batch that the token level reads
    modality_fraction: float = 1.0  # ... the half of the modality level that writes
    draw_fraction: float = 1.0  # ... the half that draws
    sample_fraction: float = 1.0  # ... the sample level (matching)
    denoise_given: tuple[str, ...] = ("image+audio", "image", "audio")  # what is left when the text is absent
    draw_given: tuple[str, ...] = ("text+audio", "text", "audio")  # ... when the picture is absent
    draw_drop: float = 0.1  # share of the drawing rows that are given nothing, for classifier-free guidance
    label_smoothing: float = 0.0  # of the denoised text
    self_critical: int = 0  # captions sampled of each picture and rewarded by CIDEr-D, in place of all losses; 0: none

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            require(getattr(self, name) >= 0, name, "a weight must not be negative")
        for name in ("token_fraction", "modality_fraction", "draw_fraction", "sample_fraction"):
            require(0 < getattr(self, name) <= 1, name, "must be in (0, 1]")
        require(0 < self.mask_ratio < 1, "mask_ratio", "must be in (0, 1)")
        require(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)")
        require(self.mam_span > 0, "mam_span", "must be positive")
        require(self.mam_temperature > 0, "mam_temperature", "must be positive")
        require(self.self_critical >= 0 and self.self_critical != 1, "self_critical", "must be 0, or 2 or more")
        require(0 <= self.draw_drop < 1, "draw_drop", "must be in [0, 1)")
        for name, other in (("denoise_given", "image"), ("draw_given", "text")):
            choices, given = {f"{other}+audio", other, "audio"}, getattr(self, name)
            require(bool(given) and set(given) <= choices, name, f"must be a list out of {', '.join(sorted(choices))}")


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"  # muon: layers' matrices by Muon, the rest by AdamW
    lr: float = 1.5e-3  # peak learning rate of AdamW
    muon_lr: float = 0.02  # ... of Muon
    muon_momentum: float = 0.95
    min_lr: float = 1e-6  # where the cosine ends
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01  # never on gains, biases and embeddings' positions (any 1-d parameter)
    clip_norm: float = 1.0  # global norm of the gradients
    layer_decay: float = 1.0  # an encoder's layer learns at this share of the rate of the one above; 1: all alike
    freeze: tuple[str, ...] = ()  # parts of the network that keep their weights, such as text_encoder

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "must be positive")
        require(0 <= self.min_lr <= self.lr, "min_lr", f"must be between 0 and lr={self.lr}")
        require(self.warmup_steps >= 0, "warmup_steps", "must not be negative")
        require(self.muon_lr > 0, "muon_lr", "must be positive")
        for name in ("beta1", "beta2", "muon_momentum"):
            require(0 <= getattr(self, name) < 1, name, "must be in [0, 1)")
        for name in ("eps", "clip_norm"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        require(0 < self.layer_decay <= 1, "layer_decay", "must be in (0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    output: str = "runs/run"  # run folder
    init_from: str = ""  # checkpoint folder whose weights the run starts from; parts that it lacks begin anew
    steps: int = 1000
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0  # 0: only at the end
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "keep_checkpoints"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(bool(self.output), "output", "must name a folder")
        require(self.eval_every >= 0, "eval_every", "must not be negative")


@dataclass(frozen=True)
class EvalConfig:
    split: str = "test"
    batch_size: int = 100  # samples that are read, written about or drawn at once
    gallery: int = 1000  # pictures of the retrieval gallery, the first of the split; 0: the whole split
    folds: int = 1  # above 1: also the mean over so many galleries of consecutive pictures (COCO's 1K: 5 of the 5K)
    captions: int = 1000  # pictures to caption, and whose sounds are written down; 0: none
    beam: int = 1  # texts kept in the search for the likeliest; 1: greedy
    length_penalty: float = 0.0  # α: texts compare by log p / ((5 + tokens) / 6)^α; 0: the shorter tend to win
    no_repeat_ngram: int = 0  # no run of so many tokens twice in a text; 0: no matter
    min_length: int = 0  # tokens written at least, the end of the text included
    max_length: int = 0  # ... at most; 0: model.text.max_len - 1
    probe: int = 1000  # samples on which masked modelling and matching are measured; 0: all
    draw: int = 0  # texts and sounds to draw pictures of; 0: none
    draw_samples: int = 1  # pictures for each, of which the one that suits it best is kept
    draw_rank: Literal["embedding", "matching"] = "embedding"  # what says which suits best: cosine, or matching head
    draw_temperature: float = 0.7  # 0: always the likeliest code
    draw_top_k: int = 0  # only the k likeliest codes are drawn; 0: all
    draw_guidance: float = 0.0  # w of classifier-free guidance; 0: none
    rerank: int = 16  # best k by embedding that are scored again; 0: embeddings only
    rerank_embedding: float = 1.0  # weights of the three scores in the second ranking
    rerank_matching: float = 0.0
    rerank_likelihood: float = 0.0

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", "must be positive")
        for name in ("draw_samples", "beam", "folds"):
            require(getattr(self, name) > 0, name, "must be positive")
        counts = ("gallery", "captions", "probe", "draw", "rerank", "no_repeat_ngram", "min_length", "max_length")
        for name in (*counts, "length_penalty", "draw_temperature", "draw_top_k", "draw_guidance"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        fits = not self.max_length or self.min_length <= self.max_length
        require(fits, "min_length", f"must not be above max_length={self.max_length}")

"""Typed configuration: frozen dataclasses filled from YAML files and ``key=value`` overrides.

A file may name a parent with ``base:`` (a path relative to the file); its own keys win. Every error is one
line that names the key, the value and the file it came from.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used; its message is one line meant for the user."""


@dataclass(frozen=True)
class RuntimeConfig:
    device: Literal["CPU", "GPU", "Ascend"] = "CPU"  # where the graphs run
    mode: Literal["graph", "pynative"] = "graph"  # pynative is for debugging: about twice as slow
    precision: Literal["fp32", "fp16"] = "fp32"  # fp16: mixed precision with a dynamic loss scale
    distributed: bool = False  # data parallel over the ranks that msrun started
    graph_kernel: bool = False  # fuse elementwise chains; needs g++ on a CPU


@dataclass(frozen=True)
class TextEncoderConfig:
    vocab: str = "config/vocab/demo.txt"  # WordPiece vocabulary, one token a line
    max_len: int = 32  # T: tokens with [CLS] and [SEP]; longer text is cut
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"  # post: the layer order of BERT
    dropout: float = 0.0


@dataclass(frozen=True)
class ImageEncoderConfig:
    size: int = 64  # side of the square picture in pixels
    patch: int = 8  # side of a patch in pixels; P = (size / patch)²
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0


@dataclass(frozen=True)
class AudioEncoderConfig:
    sample_rate: int = 16000  # Hz; other rates are resampled
    mels: int = 64  # mel bands of a frame
    hop_ms: int = 20  # distance of two frames
    window_ms: int = 25  # length of the analysis window
    max_frames: int = 192  # longer sound is cut
    stride: int = 4  # frames joined into one token; F = max_frames / stride
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0


@dataclass(frozen=True)
class CrossEncoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0


@dataclass(frozen=True)
class TextDecoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    embed_dim: int = 128  # E: width of the shared contrastive space
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    cross: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    text_decoder: TextDecoderConfig = field(default_factory=TextDecoderConfig)


@dataclass(frozen=True)
class DataConfig:
    path: str = ""  # folder of shards with dataset.json
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 128  # B: samples a step and rank
    workers: int = 1  # threads that decode samples
    prefetch: int = 4  # batches made ahead of the step


@dataclass(frozen=True)
class ObjectivesConfig:
    contrastive: float = 1.0  # weights; 0 removes the computation as well
    mlm: float = 0.0
    matching: float = 0.0
    denoise_text: float = 0.0
    mask_ratio: float = 0.15  # share of the words that MLM hides
    token_fraction: float = 1.0  # share of the batch that the token level (MLM) reads
    modality_fraction: float = 1.0  # ... the modality level (denoising)
    sample_fraction: float = 1.0  # ... the sample level (matching)
    denoise_given: tuple[str, ...] = ("image+audio", "image", "audio")  # what is left when the text is absent
    label_smoothing: float = 0.0  # of the denoised text


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 1.5e-3  # peak learning rate
    min_lr: float = 1e-6  # where the cosine ends
    warmup_steps: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01  # never on gains, biases and embeddings' positions (any 1-d parameter)
    clip_norm: float = 1.0  # global norm of the gradients


@dataclass(frozen=True)
class TrainConfig:
    output: str = "runs/run"  # run folder
    init_from: str = ""  # checkpoint folder whose weights the run starts from
    steps: int = 1000
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0  # 0: only at the end
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class EvalConfig:
    split: str = "test"
    batch_size: int = 100
    gallery: int = 1000  # items of the retrieval gallery, the first of the split; 0: the whole split
    captions: int = 1000  # pictures to caption; 0: none
    rerank: int = 16  # best k by embedding that are scored again; 0: embeddings only
    rerank_embedding: float = 1.0  # weights of the three scores in the second ranking
    rerank_matching: float = 0.0
    rerank_likelihood: float = 0.0


@dataclass(frozen=True)
class Config:
    task: str = "pretrain"
    name: str = "opt"
    seed: int = 1
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

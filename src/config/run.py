"""How a run is executed: device, optimiser, training."""

from dataclasses import dataclass
from typing import Literal

from src.config.checks import require
from src.config.paths import PathText


@dataclass(frozen=True)
class RuntimeConfig:
    device: Literal["CPU", "GPU", "Ascend"] = "CPU"  # where the graphs run
    mode: Literal["graph", "pynative"] = "graph"  # pynative is for debugging: about twice as slow
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"  # of products; fp16 has a dynamic loss scale; a CPU has no bf16
    distributed: bool = False  # data parallel over the ranks that msrun started
    recompute: bool = False  # compute Transformer layers again in the backward pass: less memory, more time
    shard_optimizer: bool = False  # each rank keeps the moments of its share of the weights, and updates that alone
    graph_kernel: bool = False  # fuse elementwise chains; on a CPU it needs g++, decorator and attrs


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"  # muon: layers' matrices by Muon, the rest by AdamW
    lr: float = 1.5e-3  # peak learning rate of AdamW
    muon_lr: float = 0.02  # ... of Muon
    muon_momentum: float = 0.95
    min_lr: float = 1e-6  # where the cosine ends
    warmup_steps: int = 50  # a run that is not longer warms up for half of its steps
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

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up of a run: as configured, but half of a run that ends before."""
        return self.warmup_steps if self.warmup_steps < steps else steps // 2


@dataclass(frozen=True)
class TrainConfig:
    output: PathText = "runs/run"  # run folder
    init_from: PathText = ""  # checkpoint to start from, also of another vocabulary, image size or length
    steps: int = 1000
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0  # 0: never; otherwise also after the last step
    best_metric: str = ""  # a logged metric, which marks the best checkpoint (higher is better); empty: the task's
    patience: int = 0  # training ends after so many evaluations without a better one; 0: never
    stop_on_eval_error: bool = False  # end the run when an evaluation fails, instead of telling it
    keep_checkpoints: int = 2
    accumulate: int = 1  # a step takes its batch in so many parts, with the losses and gradients of the whole
    ema_decay: float = 0.0  # of a moving average of the weights, kept beside them for --ema, such as 0.999; 0: none
    log_samples: bool = True  # TensorBoard shows the first batch, and images, texts and embeddings of evaluations
    wandb: str = ""  # project of Weights & Biases that the run is logged to as well; empty: none
    max_bad_steps: int = 1  # the run stops at so many steps in a row whose losses or gradients are not finite

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "keep_checkpoints", "accumulate", "max_bad_steps"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(bool(self.output), "output", "must name a folder")
        for name in ("eval_every", "patience"):
            require(getattr(self, name) >= 0, name, "must not be negative")
        require(not self.patience or self.eval_every > 0, "patience", "counts evaluations: set eval_every")
        require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1)")

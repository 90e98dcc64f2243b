"""The whole configuration, and what its sections must agree on."""

from dataclasses import dataclass, field

from src.config.checks import require
from src.config.data import DataConfig
from src.config.model import ModelConfig
from src.config.run import (
    OBJECTIVES,
    EvalConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)

TASKS = ("pretrain", "retrieval", "caption", "speech_to_text", "text_to_image", "image_tokenizer")


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

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "must not be negative")
        require(self.task in TASKS, "task", f"must be one of {', '.join(TASKS)}")
        self._check_task()
        self._check_masked()
        self._check_codes()
        self._check_inputs()
        self._check_run()

    def _check_task(self) -> None:
        """The losses are those that the task is about."""
        weights = self.objectives
        require(any(getattr(weights, name) > 0 for name in OBJECTIVES), "objectives", "one weight must be positive")
        for task, name in (
            ("caption", "denoise_text"),
            ("speech_to_text", "denoise_text"),
            ("text_to_image", "denoise_image"),
        ):
            wanted = self.task != task or getattr(weights, name) > 0
            require(wanted, f"objectives.{name}", f"task={task} needs it")
        hears = self.task != "speech_to_text" or "image" not in weights.denoise_given
        require(hears, "objectives.denoise_given", "task=speech_to_text writes down sounds: audio, image+audio")
        if weights.self_critical:
            self._check_self_critical()

    def _check_masked(self) -> None:
        """What is hidden is there, and has a head that predicts it."""
        weights = self.objectives
        for name in ("mvm_code", "mvm_feature", "mvm_class", "mam_feature", "mam_contrastive"):
            wanted = getattr(weights, name) > 0
            require(self.model.masked_features or not wanted, f"objectives.{name}", "needs model.masked_features=true")
        for name, value, kind in (
            ("objectives.mvm_class", weights.mvm_class, "region"),
            ("objectives.mvm_code", weights.mvm_code, "patch"),
            ("eval.draw", self.eval.draw, "patch"),  # what was drawn is judged by the image encoder
        ):
            require(self.model.image.input == kind or value == 0, name, f"needs model.image.input={kind}")

    def _check_codes(self) -> None:
        """Who reads or draws codes has an image tokenizer that makes them."""
        weights = self.objectives
        reading = {f"objectives.{name}": getattr(weights, name) for name in ("mvm_code", "denoise_image")}
        for name, value in ({"eval.draw": self.eval.draw} | reading).items():
            require(self.model.image_codes or value == 0, name, "needs model.image_codes=true")
            require(bool(self.data.codes) or value == 0, name, "needs data.codes, an image tokenizer")
        patches, side = self.model.image.size // self.model.image.patch, self.model.tokenizer.side
        require(
            weights.mvm_code == 0 or patches == side,
            "objectives.mvm_code",
            f"needs as many codes as patches: model.tokenizer.side={side}, a picture has {patches} patches on a side",
        )
        require(
            weights.mvm_code == 0 or not self.data.augment.of_pictures,
            "objectives.mvm_code",
            "the codes are those of whole pictures: leave data.augment's crop_scale, flip and colours off",
        )

    def _check_inputs(self) -> None:
        """Only pixels and log-mel frames can be varied."""
        require(
            self.model.image.input == "patch" or not self.data.augment.of_pictures,
            "model.image.input",
            "regions cannot be varied: leave data.augment's crop_scale, flip and colours off",
        )
        require(
            self.model.audio.input == "fbank" or not self.data.augment.of_sounds,
            "model.audio.input",
            "SpecAugment is for log-mel frames: leave data.augment's time_masks and frequency_masks 0",
        )

    def _check_run(self) -> None:
        """Lengths and rates fit what they are used with."""
        room = self.model.text.max_len - 1
        for name in ("min_length", "max_length"):
            fits = getattr(self.eval, name) <= room
            require(fits, f"eval.{name}", f"model.text.max_len leaves room for {room} tokens")
        require(
            self.task != "image_tokenizer" or self.optimizer.layer_decay == 1,
            "optimizer.layer_decay",
            "an image tokenizer's layers learn alike: leave it 1",
        )
        require(
            self.optimizer.warmup_steps < self.train.steps,
            "optimizer.warmup_steps",
            f"must be below train.steps={self.train.steps}",
        )

    def _check_self_critical(self) -> None:
        """What is sampled must be what is scored."""
        model, name = self.model, "objectives.self_critical"
        require(self.task == "caption", name, "is for task=caption")
        require(set(self.objectives.denoise_given) == {"image"}, name, "needs objectives.denoise_given=[image]")
        require(self.runtime.precision == "fp32", name, "needs runtime.precision=fp32")
        for part in ("image", "cross", "text_decoder"):
            require(getattr(model, part).dropout == 0, name, f"needs model.{part}.dropout=0")

"""The whole configuration, and what its sections must agree on."""

from dataclasses import dataclass, field

from src.config.checks import require
from src.config.data import DataConfig
from src.config.evaluation import EvalConfig
from src.config.model import ModelConfig
from src.config.objectives import OBJECTIVES, ObjectivesConfig
from src.config.run import OptimizerConfig, RuntimeConfig, TrainConfig
from src.config.tasks import TASKS


@dataclass(frozen=True)
class Config:
    task: str = "pretrain"  # a row of src.config.tasks
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

    @property
    def network(self) -> str:
        """Which network the task trains: a key of :data:`src.models.build.NETWORKS`."""
        return TASKS[self.task].network

    def _check_task(self) -> None:
        """The settings are those that the task's row asks for."""
        row, weights, given = TASKS[self.task], self.objectives.weights, self.objectives.denoise_text.given
        found = any(getattr(weights, name) > 0 for name in OBJECTIVES)
        require(found, "objectives.weights", "one weight must be positive")
        has_objective = not row.objective or getattr(weights, row.objective) > 0
        require(has_objective, f"objectives.weights.{row.objective}", f"task={row.name} needs it")
        allowed = not row.given or set(given) <= set(row.given)
        choices = ", ".join(row.given)
        require(allowed, "objectives.denoise_text.given", f"task={row.name} reads nothing but {choices}")
        for part in row.no_dropout:
            none = getattr(self.model, part).dropout == 0
            require(none, f"model.{part}.dropout", f"task={row.name} needs 0: what is sampled must be what is scored")
        exact = not row.full_precision or self.runtime.precision == "fp32"
        require(exact, "runtime.precision", f"task={row.name} needs fp32")
        alike = row.layer_decay or self.optimizer.layer_decay == 1
        require(alike, "optimizer.layer_decay", f"task={row.name} needs 1: its layers share one learning rate")
        listed = not row.answers or self.objectives.answer.head == "generate" or bool(self.model.answers)
        require(listed, "model.answers", f"task={row.name}, objectives.answer.head=classify needs a file of answers")
        whole = row.accumulates or self.train.accumulate == 1
        require(whole, "train.accumulate", f"task={row.name} takes its batch whole: lower data.batch_size instead")

    def _check_masked(self) -> None:
        """What is masked is read by the model, and a head predicts it."""
        weights = self.objectives.weights
        for name in ("mvm_code", "mvm_feature", "mvm_class", "mam_feature", "mam_contrastive"):
            has_head = self.model.masked_features or getattr(weights, name) == 0
            require(has_head, f"objectives.weights.{name}", "needs model.masked_features=true")
        for name, value, kind in (
            ("objectives.weights.mvm_class", weights.mvm_class, "region"),
            ("objectives.weights.mvm_code", weights.mvm_code, "patch"),
            # the image encoder judges what was generated
            ("eval.image_generation.max_items", self.eval.image_generation.max_items, "patch"),
        ):
            require(self.model.image.input == kind or value == 0, name, f"needs model.image.input={kind}")

    def _check_codes(self) -> None:
        """Where codes are read or generated, an image tokenizer makes them."""
        weights, images = self.objectives.weights, self.eval.image_generation.max_items
        users = {f"objectives.weights.{name}": getattr(weights, name) for name in ("mvm_code", "denoise_image")}
        for name, value in ({"eval.image_generation.max_items": images} | users).items():
            require(self.model.image_codes or value == 0, name, "needs model.image_codes=true")
            require(bool(self.data.codes) or value == 0, name, "needs data.codes, an image tokenizer")
        patches, side = self.model.image.size // self.model.image.patch, self.model.image_tokenizer.side
        require(
            weights.mvm_code == 0 or patches == side,
            "objectives.weights.mvm_code",
            f"needs as many codes as patches: model.image_tokenizer.side={side}, "
            f"an image has {patches} patches on a side",
        )
        require(
            weights.mvm_code == 0 or not self.data.augment.augments_images,
            "objectives.weights.mvm_code",
            "the codes are those of whole images: leave data.augment's crop_scale, flip and colours off",
        )

    def _check_inputs(self) -> None:
        """Only pixels and log-mel frames can be augmented."""
        require(
            self.model.image.input == "patch" or not self.data.augment.augments_images,
            "model.image.input",
            "regions cannot be augmented: leave data.augment's crop_scale, flip and colours off",
        )
        require(
            self.model.audio.input == "fbank" or not self.data.augment.augments_audio,
            "model.audio.input",
            "SpecAugment is for log-mel frames: leave data.augment's time_masks and frequency_masks 0",
        )

    def _check_run(self) -> None:
        """Lengths fit what they are used with."""
        room = self.model.text.max_len - 1
        for name in ("min_length", "max_length"):
            fits = getattr(self.eval.decoding, name) <= room
            require(fits, f"eval.decoding.{name}", f"model.text.max_len leaves room for {room} tokens")

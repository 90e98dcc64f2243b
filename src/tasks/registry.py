"""The tasks: the objectives that a run trains, the batches it reads, and the evaluators that judge it.

All tasks but the image tokenizer train the same network; which losses count is configuration.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from mindspore import nn

from src.config import ANSWERED_FROM, TASKS, Config, ObjectivesConfig
from src.data.images import ImageLoader
from src.data.pipeline import Loader
from src.data.questions import QuestionLoader
from src.evaluation.evaluator import Evaluator
from src.evaluation.image_generation import ImageGenerationEvaluator
from src.evaluation.masked import MaskedEvaluator
from src.evaluation.reconstruction import ReconstructionEvaluator
from src.evaluation.retrieval import RetrievalEvaluator
from src.evaluation.text_generation import CaptionEvaluator, ImageTranscriptEvaluator, TranscriptEvaluator
from src.evaluation.vqa import VqaEvaluator, logged_name
from src.evaluation.zero_shot import ZeroShotEvaluator
from src.models.opt import OPT
from src.objectives.answers import AnswerObjectives
from src.objectives.image_tokenizer import TokenizerObjectives
from src.objectives.objectives import Objectives
from src.objectives.peers import Peers
from src.objectives.self_critical import build_self_critical
from src.objectives.table import MEASURED, TABLE, active_objectives


def build_objectives(network: OPT, config: Config, peers: Peers, absent: Collection[int] = ()) -> Objectives:
    return Objectives(network, config.objectives, config.data.batch_size, peers, absent)


RECALL = "mean_R@1"
# the logged metric of each objective; a cosine is none to compare checkpoints by: it rises as encodings become alike
JUDGED = {name: TABLE[name].metric.removeprefix("masked.") for name in MEASURED if "cosine" not in TABLE[name].metric}
JUDGED |= {"contrastive": RECALL, "denoise_text": "cider_d", "denoise_image": "generated_mean_R@1"}


@dataclass(frozen=True)
class Task:
    """How a run is built, and how it is judged.

    Args:
        evaluators: what is measured, in training and by eval.py.
        best_by: logged metrics, higher is better; the mean of those that a split has marks the best checkpoint.
        objectives: (network, config, peers) → a Cell with names, fields, trained_parts() and, where there are such,
            metrics, before_step and after_update (:class:`src.training.step.TrainStep`). Where weights say what is
            trained, it also takes ``absent``, the modalities that the data lacks.
        loader: (config, split, rank, ranks) → batches.
    """

    evaluators: tuple[type[Evaluator], ...]
    best_by: tuple[str, ...]
    objectives: Callable[..., nn.Cell] = build_objectives
    loader: type[Loader] = Loader

    @property
    def weighs(self) -> bool:
        """Whether objectives.weights says what is trained."""
        return self.objectives is build_objectives

    def build(self, network: nn.Cell, config: Config, peers: Peers, absent: Collection[int] = ()) -> nn.Cell:
        """The objectives of a run.

        Args:
            absent: the modalities that its data lack, where weights say what is trained.
        """
        options = {"absent": absent} if self.weighs else {}
        return self.objectives(network, config, peers, **options)

    def best_metric(self, logged: Mapping[str, float], config: ObjectivesConfig) -> float | None:
        """By what a checkpoint is compared with the others; None if the split has nothing of it to measure.

        Recall by embeddings that no objective trains says nothing: the metrics of those that are trained count instead.
        """
        names = self.best_by
        if self.weighs and RECALL in names and not config.weights.contrastive:
            names = tuple(JUDGED[name] for name in active_objectives(config) if name in JUDGED)
        found = [logged[name] for name in names if name in logged]
        return sum(found) / len(found) if found else None


REGISTRY = {
    "pretrain": Task(
        (
            RetrievalEvaluator,
            CaptionEvaluator,
            TranscriptEvaluator,
            ReconstructionEvaluator,
            ImageGenerationEvaluator,
            MaskedEvaluator,
        ),
        (RECALL,),
    ),
    "retrieval": Task((RetrievalEvaluator,), (RECALL,)),
    "caption": Task((CaptionEvaluator, TranscriptEvaluator), ("cider_d",)),
    "self_critical": Task((CaptionEvaluator,), ("cider_d",), build_self_critical),
    "speech_to_text": Task(
        (TranscriptEvaluator, ImageTranscriptEvaluator),
        ("transcription_characters_right", "transcription_with_image_characters_right"),
    ),
    "text_to_image": Task((ReconstructionEvaluator, ImageGenerationEvaluator), ("generated_mean_R@1",)),
    "vqa": Task((VqaEvaluator,), tuple(map(logged_name, ANSWERED_FROM)), AnswerObjectives, QuestionLoader),
    "zero_shot": Task((ZeroShotEvaluator,), ()),
    "image_tokenizer": Task((ReconstructionEvaluator,), ("psnr",), TokenizerObjectives, ImageLoader),
}
if REGISTRY.keys() != set(TASKS):
    raise RuntimeError("src.config.TASKS and the registry name different tasks")


def get(name: str) -> Task:
    """The task of a name that the configuration has checked."""
    return REGISTRY[name]

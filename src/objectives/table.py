"""The objectives, one row each. A new one is its loss (:mod:`src.objectives.levels`), its row here and its weight in
:class:`src.config.WeightsConfig`.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from src.config import OBJECTIVES, ObjectivesConfig, WeightsConfig
from src.data.schema import AUDIO, IMAGE, IMAGE_FIELDS, MODALITIES, TEXT

TOKEN, SAMPLE, MODALITY = "token", "sample", "modality"  # the levels of pre-training
# what objectives need beside modalities: what codes are made of, whatever the image encoder reads; a detector's classes
PIXELS, CLASSES = len(MODALITIES), len(MODALITIES) + 1
# and IMAGE_FIELDS
CLEAN_FIELDS, AUDIO_FIELDS = ("image_id", "text_id", "presence", "text_ids", "text_mask"), ("audio", "audio_frames")
ENCODERS = ("text_encoder", "image_encoder", "audio_encoder")
HEADS = ("text_head", "image_head", "audio_head")
FUSED = (*ENCODERS, "cross_encoder")


@dataclass(frozen=True)
class Objective:
    """One loss.

    Args:
        name: of its weight.
        level: whose rows of the batch it reads; empty: those of the whole batch, without the cross-modal encoder.
        fields: of the batch that it reads beside the clean view's.
        parts: of the model that its gradient reaches, beside the encoders of what a level reads.
        metric: of an evaluation (its path in metrics.json) that shows whether it is learned.
        needs: what its loss is 0 without, a modality, PIXELS or CLASSES; None: any two modalities do.
    """

    name: str
    level: str
    fields: tuple[str, ...]
    parts: tuple[str, ...]
    metric: str
    needs: int | None


MVM, MAM = ("mvm_positions", "mvm_weights"), ("mam_positions", "mam_weights")
_ROWS = (
    Objective(
        "contrastive",
        level="",
        fields=(),
        parts=(*ENCODERS, *HEADS, "scale"),
        metric="retrieval.text_to_image.R@1",
        needs=None,
    ),
    Objective(
        "mlm",
        TOKEN,
        fields=("mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"),
        parts=(*FUSED, "masked_text_head"),
        metric="masked.mlm_accuracy",
        needs=TEXT,
    ),
    Objective(
        "mvm_code",
        TOKEN,
        fields=(*MVM, "image_codes"),
        parts=(*FUSED, "masked_code_head", "masked_image_head"),  # the latter holds the mask token
        metric="masked.mvm_code_accuracy",
        needs=PIXELS,
    ),
    Objective(
        "mvm_feature", TOKEN, fields=MVM, parts=(*FUSED, "masked_image_head"), metric="masked.patch_cosine", needs=IMAGE
    ),
    Objective(
        "mvm_class",
        TOKEN,
        fields=(*MVM, "region_classes"),
        parts=(*FUSED, "masked_class_head", "masked_image_head"),  # the latter holds the mask token
        metric="masked.mvm_class_accuracy",
        needs=CLASSES,
    ),
    Objective(
        "mam_feature", TOKEN, fields=MAM, parts=(*FUSED, "masked_audio_head"), metric="masked.frame_cosine", needs=AUDIO
    ),
    Objective(
        "mam_contrastive",
        TOKEN,
        fields=MAM,
        parts=(*FUSED, "masked_audio_head"),
        metric="masked.frame_cosine",
        needs=AUDIO,
    ),
    Objective(
        "matching",
        SAMPLE,
        fields=("match_case", "match_presence", "match_noise"),
        parts=(*FUSED, "matching_head"),
        metric="masked.matching_accuracy",
        needs=None,
    ),
    Objective(
        "denoise_text",
        MODALITY,
        fields=("denoise_text_presence",),
        parts=("cross_encoder", "text_decoder"),
        metric="caption.cider_d",
        needs=TEXT,
    ),
    Objective(
        "denoise_image",
        MODALITY,
        fields=("denoise_image_presence", "image_codes"),
        parts=("cross_encoder", "image_decoder"),
        metric="image_generation.text.R@10",
        needs=PIXELS,
    ),
)
TABLE = {row.name: row for row in _ROWS}
if tuple(TABLE) != OBJECTIVES:
    raise RuntimeError("the rows of src.objectives.table and the fields of WeightsConfig differ")
# what the masked evaluator measures
MEASURED = tuple(row.name for row in _ROWS if row.metric.startswith("masked."))


def active_objectives(config: ObjectivesConfig, level: str | None = None) -> tuple[str, ...]:
    """Names of the objectives whose weight is not 0, in the order of the losses; of one level, or of all."""
    rows = (row for row in _ROWS if level is None or row.level == level)
    return tuple(row.name for row in rows if getattr(config.weights, row.name) > 0)


def needed_fields(
    config: ObjectivesConfig, image_input: str = "patch", absent: Collection[int] = ()
) -> tuple[str, ...]:
    """The batch fields that the active objectives read, each once.

    Args:
        config: weights.
        image_input: model.image.input.
        absent: modalities that no sample has.
    """
    found = [field for name in active_objectives(config) for field in TABLE[name].fields]
    images = () if IMAGE in absent else IMAGE_FIELDS[image_input]
    audio = () if AUDIO in absent else AUDIO_FIELDS
    return (*CLEAN_FIELDS, *audio, *images, *dict.fromkeys(found))


def reached_parts(names: tuple[str, ...]) -> frozenset[str]:
    """The parts of the model that the gradient of some of these objectives reaches."""
    return frozenset(part for name in names for part in TABLE[name].parts)


def measured_settings(config: ObjectivesConfig) -> ObjectivesConfig:
    """The objectives that the masked evaluator measures, on whole batches, and no others."""
    others = {field.name: 0.0 for field in fields(WeightsConfig) if field.name not in MEASURED}
    return replace(
        config,
        weights=replace(config.weights, **others),
        masking=replace(config.masking, batch_share=1.0),
        matching=replace(config.matching, batch_share=1.0),
    )


def level_rows(batch_size: int, share: float) -> int:
    """How many rows of a batch a level reads (at least one)."""
    return max(1, round(batch_size * share))

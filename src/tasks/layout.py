"""Which losses are active, which fields of a batch they read and how many of its rows: what needs no framework."""

from src.config import OBJECTIVES, ObjectivesConfig
from src.data.schema import AUDIO, IMAGE, IMAGE_FIELDS, JOINT, TEXT

CLEAN_FIELDS = ("image_id", "presence", "text_ids", "text_mask", "audio", "audio_frames")  # and IMAGE_FIELDS
LEVEL_FIELDS = {
    "mlm": ("mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"),
    "mvm_code": ("mvm_positions", "mvm_weights", "image_codes"),
    "mvm_feature": ("mvm_positions", "mvm_weights"),
    "mvm_class": ("mvm_positions", "mvm_weights", "region_classes"),
    "mam_feature": ("mam_positions", "mam_weights"),
    "mam_contrastive": ("mam_positions", "mam_weights"),
    "matching": ("match_case", "match_presence", "match_noise"),
    "denoise_text": ("denoise_presence",),
    "denoise_image": ("draw_presence", "image_codes"),
}
# what the contrastive loss compares, each both ways
COUPLES = ((TEXT, IMAGE), (TEXT, AUDIO), (IMAGE, AUDIO), (JOINT, IMAGE))


def active_objectives(config: ObjectivesConfig) -> tuple[str, ...]:
    """Names of the objectives whose weight is not 0, in the order of the losses."""
    return tuple(name for name in OBJECTIVES if getattr(config, name) > 0)


def needed_fields(config: ObjectivesConfig, image_input: str = "patch") -> tuple[str, ...]:
    """The batch fields that the active objectives read, each once; ``image_input`` is model.image.input."""
    fields = [field for name in active_objectives(config) for field in LEVEL_FIELDS.get(name, ())]
    return (*CLEAN_FIELDS, *IMAGE_FIELDS[image_input], *dict.fromkeys(fields))


def level_rows(batch_size: int, fraction: float) -> int:
    """How many rows of a batch a level reads (at least one)."""
    return max(1, round(batch_size * fraction))

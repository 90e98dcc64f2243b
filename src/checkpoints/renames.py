"""Configuration keys of earlier versions, as checkpoints hold them.

The table is applied to a checkpoint's own config.yaml and to nothing else: in a user's file an old key is an error that
names the new one.
"""

from collections.abc import Mapping
from typing import Any

# old key → today's; several where one setting has become several, none where it is gone
RENAMED: dict[str, tuple[str, ...]] = {
    "name": (),
    "data.unique_pictures": ("data.unique_images",),
    "objectives.contrastive": ("objectives.weights.contrastive",),
    "objectives.mlm": ("objectives.weights.mlm",),
    "objectives.mvm_code": ("objectives.weights.mvm_code",),
    "objectives.mvm_feature": ("objectives.weights.mvm_feature",),
    "objectives.mvm_class": ("objectives.weights.mvm_class",),
    "objectives.mam_feature": ("objectives.weights.mam_feature",),
    "objectives.mam_contrastive": ("objectives.weights.mam_contrastive",),
    "objectives.matching": ("objectives.weights.matching",),
    "objectives.denoise_text": ("objectives.weights.denoise_text",),
    "objectives.denoise_image": ("objectives.weights.denoise_image",),
    "objectives.mask_ratio": ("objectives.masking.ratio",),
    "objectives.mam_span": ("objectives.masking.audio_span",),
    "objectives.mam_temperature": ("objectives.masking.temperature",),
    "objectives.token_fraction": ("objectives.masking.batch_share",),
    "objectives.sample_fraction": ("objectives.matching.batch_share",),
    "objectives.denoise_given": ("objectives.denoise_text.given",),
    "objectives.label_smoothing": ("objectives.denoise_text.label_smoothing",),
    "objectives.modality_fraction": ("objectives.denoise_text.batch_share",),
    "objectives.draw_given": ("objectives.denoise_image.given",),
    "objectives.draw_drop": ("objectives.denoise_image.drop_given",),
    "objectives.draw_fraction": ("objectives.denoise_image.batch_share",),
    "objectives.self_critical": ("objectives.self_critical.samples",),
    "eval.gallery": ("eval.retrieval.gallery_size",),
    "eval.folds": ("eval.retrieval.folds",),
    "eval.rerank": ("eval.rerank.top_k",),
    "eval.rerank_embedding": ("eval.rerank.embedding",),
    "eval.rerank_matching": ("eval.rerank.matching",),
    "eval.rerank_likelihood": ("eval.rerank.likelihood",),
    "eval.captions": ("eval.caption.max_items", "eval.transcript.max_items"),
    "eval.beam": ("eval.decoding.beam_size",),
    "eval.length_penalty": ("eval.decoding.length_penalty",),
    "eval.no_repeat_ngram": ("eval.decoding.no_repeat_ngram",),
    "eval.min_length": ("eval.decoding.min_length",),
    "eval.max_length": ("eval.decoding.max_length",),
    "eval.probe": ("eval.masked.max_items",),
    "eval.draw": ("eval.image_generation.max_items",),
    "eval.draw_samples": ("eval.image_generation.samples",),
    "eval.draw_rank": ("eval.image_generation.rank_by",),
    "eval.draw_temperature": ("eval.image_generation.temperature",),
    "eval.draw_top_k": ("eval.image_generation.top_k",),
    "eval.draw_guidance": ("eval.image_generation.guidance",),
}
RENAMED_SECTIONS = {"model.tokenizer.": "model.image_tokenizer."}
SELF_CRITICAL = "objectives.self_critical"  # was a count of samples, with task=caption; 0: off


def rename(values: Mapping[str, Any]) -> dict[str, Any]:
    """Today's dotted keys and their values, from those of an earlier version; today's own pass as they are."""
    values = dict(values)
    if values.get(SELF_CRITICAL) == 0:
        del values[SELF_CRITICAL]
    elif SELF_CRITICAL in values:
        values["task"] = "self_critical"
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        for old, new in RENAMED_SECTIONS.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
        renamed |= dict.fromkeys(RENAMED.get(key, (key,)), value)
    return renamed

"""A tiny network under all objectives, for the tests of the objectives and of the levels' losses."""

from dataclasses import replace

import mindspore as ms
import numpy as np

from src.config import (
    DenoiseImageConfig,
    DenoiseTextConfig,
    MaskingConfig,
    MatchingConfig,
    ObjectivesConfig,
    WeightsConfig,
)
from src.data.schema import AUDIO, IMAGE, TEXT
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.table import active_objectives, needed_fields
from tests.oracles import MASK_RATIO, OBJECTIVES, VOCAB, Arrays, randomise, tensors, tiny_batch, tiny_model

MODEL = tiny_model()
B = 10
WEIGHTS = {
    "contrastive": 0.7,
    "mlm": 0.5,
    "mvm_code": 0.8,
    "mvm_feature": 1.2,
    "mam_feature": 0.9,
    "mam_contrastive": 0.6,
    "matching": 1.5,
    "denoise_text": 2.0,
    "denoise_image": 1.1,
}
SHARES = {
    "masking": MaskingConfig(batch_share=0.5, ratio=MASK_RATIO),
    "matching": MatchingConfig(batch_share=0.8),
    "denoise_text": DenoiseTextConfig(batch_share=0.3),
    "denoise_image": DenoiseImageConfig(batch_share=0.4),
}
ALL = ObjectivesConfig(weights=WeightsConfig(**WEIGHTS), **SHARES)
# what each level reads of the batch
TOKEN_ROWS = dict.fromkeys(("mlm", "mvm_code", "mvm_feature", "mam_feature", "mam_contrastive"), range(5))
ROWS = {**TOKEN_ROWS, "matching": range(8), "denoise_image": range(3, 7), "denoise_text": range(7, B)}
Values = dict[str, float]


def only(name: str, config: ObjectivesConfig = ALL) -> ObjectivesConfig:
    return weighted(config, **{other: WEIGHTS[name] if other == name else 0.0 for other in OBJECTIVES})


def weighted(config: ObjectivesConfig = ALL, **weights: float) -> ObjectivesConfig:
    return replace(config, weights=replace(config.weights, **weights))


def text_from(config: ObjectivesConfig, *modalities: str) -> ObjectivesConfig:
    """With other modalities that the text is generated from."""
    return replace(config, denoise_text=replace(config.denoise_text, given=modalities))


def batch_with_repeats() -> Arrays:
    """Samples that lack something, and two images with two samples each; one caption of these has no audio clip.

    Two of the samples say the same of two images.
    """
    batch = tiny_batch(MODEL, B)
    batch["image_id"][3] = batch["image_id"][0]
    batch["image_id"][1] = batch["image_id"][4]
    batch["text_id"][5] = batch["text_id"][3]
    for row, presence in ((1, (1, 1, 0)), (2, (0, 1, 1)), (6, (1, 0, 1)), (7, (0, 1, 1))):
        batch["presence"][row] = presence
        for name in ("match_presence", "denoise_text_presence", "denoise_image_presence"):
            batch[name][row] *= np.array(presence, np.int32)
        if not presence[TEXT]:
            for name in ("text_ids", "text_mask", "mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"):
                batch[name][row] = 0
        if not presence[AUDIO]:
            batch["audio"][row], batch["audio_frames"][row] = 0, 0
            batch["mam_positions"][row], batch["mam_weights"][row] = 0, 0
        if not presence[IMAGE]:
            batch["image"][row], batch["image_codes"][row] = 0, -1
            batch["mvm_positions"][row], batch["mvm_weights"][row] = 0, 0
    return batch


def build() -> OPT:
    """A model whose every parameter is away from where it starts."""
    model = OPT(MODEL, VOCAB)
    randomise(model, spread=0.1)
    return model


def losses(opt: OPT, config: ObjectivesConfig, batch: Arrays) -> Values:
    """total and each active loss, in pynative mode."""
    found = Objectives(opt, config, B)(tensors(batch))
    return dict(zip(("total", *active_objectives(config)), map(float, found), strict=True))


def gradients(opt: OPT, config: ObjectivesConfig, batch: Arrays) -> tuple[Values, Arrays]:
    """The losses, and the total's gradients by parameter of the model, in pynative mode."""
    named = dict(opt.parameters_and_names())
    function = ms.value_and_grad(Objectives(opt, config, B), None, list(named.values()), has_aux=True)
    values, found = function(tensors({name: batch[name] for name in needed_fields(config)}))
    names = ("total", *active_objectives(config))
    return (
        dict(zip(names, map(float, values), strict=True)),
        {name: gradient.asnumpy() for name, gradient in zip(named, found, strict=True)},
    )

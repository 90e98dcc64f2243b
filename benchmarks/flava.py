"""FLAVA (Singh et al. 2022) as ``transformers`` has it: the nearest peer, for images and text.

Both views of image and text are encoded and the masked one is fused, as in our image-text step; the losses are the
contrastive one, masked words and codes of masked patches. Widths, layers, heads, lengths and batch are ours.
"""

from collections.abc import Callable

import numpy as np
import torch
from transformers import FlavaConfig, FlavaForPreTraining

from src.config import ModelConfig

IGNORED = -100  # label of what is not masked


def build(model: ModelConfig, vocab_size: int) -> FlavaForPreTraining:
    """FLAVA in the sizes of a configuration."""

    def transformer(part) -> dict[str, int]:
        sizes = {"hidden_size": part.width, "num_hidden_layers": part.layers, "intermediate_size": part.ffn}
        return {**sizes, "num_attention_heads": part.heads}

    image, text = model.image, model.text
    config = FlavaConfig(
        image_config={
            **transformer(image),
            "image_size": image.size,
            "patch_size": image.patch,
            "vocab_size": model.image_tokenizer.codes,
        },
        text_config={**transformer(text), "vocab_size": vocab_size, "max_position_embeddings": text.max_len},
        multimodal_config=transformer(model.cross),
        hidden_size=model.cross.width,
        projection_dim=model.embed_dim,
        init_codebook=False,  # the codes are given
        itm_weight=0.0,
    )
    return FlavaForPreTraining(config)


def inputs(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch as FLAVA's tensors, the image still as bytes."""
    patches = np.zeros(batch["image_codes"].shape, bool)
    np.put_along_axis(patches, batch["mvm_positions"], True, 1)
    labels = np.full(batch["text_ids"].shape, IGNORED, np.int64)
    # an empty slot points at [CLS]
    known = np.where(batch["mlm_weights"] > 0, batch["mlm_labels"].astype(np.int64), IGNORED)
    np.put_along_axis(labels, batch["mlm_positions"], known, 1)
    arrays = {
        "input_ids": batch["text_ids"].astype(np.int64),
        "input_ids_masked": batch["mlm_ids"].astype(np.int64),
        "attention_mask": batch["text_mask"].astype(np.int64),
        "pixel_values": batch["image"],
        "bool_masked_pos": patches,
        "mim_labels": batch["image_codes"].astype(np.int64),
        "mlm_labels": labels,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loss_of(model: FlavaForPreTraining, batch: dict[str, np.ndarray]) -> Callable[[], torch.Tensor]:
    """What computes the total loss of a batch, the normalisation of the image included."""
    tensors = inputs(batch)

    def total() -> torch.Tensor:
        pixels = tensors["pixel_values"].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return model(**{**tensors, "pixel_values": pixels}).loss

    return total

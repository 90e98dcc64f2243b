"""What the cross-modal encoder makes of items of some modalities, the others absent.

Letters: ``n`` items, ``B`` rows of a batch, ``L`` tokens of an item, ``D`` their width.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import nn

from src.data.schema import AUDIO, IMAGE, TEXT
from src.inference.encode import Items
from src.models.batches import absent, run_batched
from src.models.opt import OPT


def fused_inputs(model: OPT, items: Mapping[int, Items]) -> list[np.ndarray]:
    """What the cross-modal encoder reads of n items of each modality: three tokens, three masks, presence int32 [n, 3].

    Modalities that are not there are absent.
    """
    count = len(next(iter(items.values())))
    shapes = {
        TEXT: (model.text_len, model.text_encoder.tokens.shape[1]),
        IMAGE: model.image_shape,
        AUDIO: model.audio_shape,
    }
    pairs = [
        (items[modality].tokens, items[modality].mask) if modality in items else absent(count, *shape)
        for modality, shape in shapes.items()
    ]
    presence = np.array([int(modality in items) for modality in shapes], np.int32)
    return [*(tokens for tokens, _ in pairs), *(mask for _, mask in pairs), np.broadcast_to(presence, (count, 3))]


class _Cls(nn.Cell):
    """What :func:`fused_inputs` names → the fused [CLS] (B, D)."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, text, image, audio, text_mask, image_mask, audio_mask, presence):
        fused, _ = self.model.cross_encoder(text, image, audio, text_mask, image_mask, audio_mask, presence)
        return fused[:, 0]


class Fusion:
    """The fused [CLS] of items: one graph for every choice of modalities.

    Args:
        model: the network.
        rows: that the graph reads at once.
    """

    def __init__(self, model: OPT, rows: int) -> None:
        self.model, self.rows, self.cell = model, rows, _Cls(model)

    def cls(self, items: Mapping[int, Items]) -> np.ndarray:
        """float32 [n, D] of n items of each modality."""
        return run_batched(self.cell, self.rows, fused_inputs(self.model, items))[0]

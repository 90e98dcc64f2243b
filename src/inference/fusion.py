"""What the cross-modal encoder makes of items of some modalities, the others absent.

Letters: ``n`` items, ``B`` rows of a batch, ``L`` tokens of an item, ``D`` their width.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import nn

from src.inference.encode import Items
from src.models.batches import run_batched
from src.models.opt import OPT


class _Cls(nn.Cell):
    """Tokens (B, L, …), then masks (B, L) of the given modalities → the fused [CLS] (B, D)."""

    def __init__(self, model: OPT, given: tuple[int, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.given = model, given

    def construct(self, *inputs):
        count = len(self.given)
        fused, _ = self.model.cross_encoder.fuse_given(inputs[:count], inputs[count:], self.given)
        return fused[:, 0]


class Fusion:
    """The fused [CLS] of items; each choice of modalities has a graph of its own, as long as it needs.

    Args:
        model: the network.
        rows: that a graph reads at once.
    """

    def __init__(self, model: OPT, rows: int) -> None:
        self.model, self.rows = model, rows
        self.cells: dict[tuple[int, ...], _Cls] = {}

    def cls(self, items: Mapping[int, Items]) -> np.ndarray:
        """float32 [n, D] of n items of each modality."""
        given = tuple(sorted(items))
        cell = self.cells.setdefault(given, _Cls(self.model, given))
        columns = [getattr(items[modality], part) for part in ("tokens", "mask") for modality in given]
        return run_batched(cell, self.rows, columns)[0]

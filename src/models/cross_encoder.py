"""Cross-modal encoder: one Transformer over [CLS], text, image and audio tokens."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import ModelConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.models.layers import TOKEN_STD, Linear, Transformer, padding_bias


class CrossEncoder(nn.Cell):
    """Fuses what is present.

    A modality that is absent from a row is masked out of attention; in its first place stands a learned *absent*
    embedding, so that the model knows what is missing and nothing of the content gets through.

    Args:
        config: of the whole model.
        text_len, patches, audio_len: T, P and F.

    Inputs:
        text (B, T, Dt), image (B, P, Di), audio (B, F, Da) float; text_mask (B, T), image_mask (B, P), audio_mask
        (B, F) int32; presence (B, 3) int32.

    Outputs:
        fused (B, L, D) float with L = 1 + T + P + F; mask (B, L) int32, 1 where fused may be attended.
    """

    def __init__(self, config: ModelConfig, text_len: int, patches: int, audio_len: int) -> None:
        super().__init__()
        width = config.cross.width
        self.length = 1 + text_len + patches + audio_len
        self.text_project = Linear(config.text.width, width)
        self.image_project = Linear(config.image.width, width)
        self.audio_project = Linear(config.audio.width, width)
        self.cls = Parameter(initializer(Normal(TOKEN_STD), (1, 1, width)), name="cls")
        self.modality = Parameter(initializer(Normal(TOKEN_STD), (3, 1, 1, width)), name="modality")
        self.absent = Parameter(initializer(Normal(TOKEN_STD), (3, 1, 1, width)), name="absent")
        self.transformer = Transformer(config.cross)
        self.patches = patches
        self.first_text = _first(text_len)
        self.first_image = _first(patches)
        self.first_audio = _first(audio_len)

    def place(self, tokens, mask, presence, which: int, first):
        """Tokens and mask of one modality, replaced by the absent embedding in the rows that lack it."""
        here = presence[:, which].reshape(-1, 1, 1)  # (B, 1, 1)
        present = here.astype(tokens.dtype)
        missing = (first * self.absent[which]) * (1.0 - present)  # (B, length, D)
        mask = mask * here[:, :, 0] + first[:, :, 0].astype(ms.int32) * (1 - here[:, :, 0])
        return (tokens + self.modality[which]) * present + missing, mask

    def construct(self, text, image, audio, text_mask, image_mask, audio_mask, presence):
        rows = presence.shape[0]
        text, text_mask = self.place(self.text_project(text), text_mask, presence, TEXT, self.first_text)
        image, image_mask = self.place(self.image_project(image), image_mask, presence, IMAGE, self.first_image)
        audio, audio_mask = self.place(self.audio_project(audio), audio_mask, presence, AUDIO, self.first_audio)
        cls = ops.tile(self.cls, (rows, 1, 1))
        tokens = ops.concat((cls, text, image, audio), 1)  # (B, L, D)
        mask = ops.concat((ops.ones((rows, 1), ms.int32), text_mask, image_mask, audio_mask), 1)  # (B, L)
        return self.transformer(tokens, padding_bias(mask)), mask

    def fuse_single_modality(self, tokens, mask, which: int):
        """As :meth:`fuse_given` of one modality."""
        return self.fuse_given((tokens,), (mask,), (which,))

    def fuse_given(self, tokens, masks, given):
        """Fuses some modalities, the others absent, at their own length: less work for the same numbers.

        Args:
            tokens: (B, length, width of the modality) float, a tensor for each of ``given``.
            masks: (B, length) int32, likewise.
            given: the modalities, in the order text, image, audio; at least one.

        Returns:
            fused (B, Lm, D) and mask (B, Lm): what :meth:`construct` gives at ``single_modality_positions(*given)``.
        """
        rows = tokens[0].shape[0]
        one = ops.ones((rows, 1), ms.int32)
        parts, fused_masks = (ops.tile(self.cls, (rows, 1, 1)),), (one,)
        found = 0
        for modality in (TEXT, IMAGE, AUDIO):
            if modality in given:
                project = (self.text_project, self.image_project, self.audio_project)[modality]
                parts = (*parts, project(tokens[found]) + self.modality[modality])
                fused_masks = (*fused_masks, masks[found])
                found = found + 1
            else:
                parts, fused_masks = (*parts, ops.tile(self.absent[modality], (rows, 1, 1))), (*fused_masks, one)
        mask = ops.concat(fused_masks, 1)
        return self.transformer(ops.concat(parts, 1), padding_bias(mask)), mask

    def single_modality_positions(self, *which: int) -> np.ndarray:
        """int32 [Lm]: the fused places that may be attended when only these modalities are there."""
        lengths = (self.first_text.shape[1], self.patches, self.first_audio.shape[1])
        starts = (1, 1 + lengths[TEXT], 1 + lengths[TEXT] + lengths[IMAGE])
        shown = [length if modality in which else 1 for modality, length in enumerate(lengths)]
        places = [np.arange(start, start + count) for start, count in zip(starts, shown, strict=True)]
        return np.concatenate([[0], *places]).astype(np.int32)


def _first(length: int) -> Tensor:
    """(1, length, 1) float32: one in the first place, zeros behind."""
    return Tensor(np.eye(1, length, dtype=np.float32)[:, :, None])

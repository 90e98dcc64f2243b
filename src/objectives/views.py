"""The two views of a batch that the encoders read: the clean one, and the masked one of the token level's rows."""

from collections.abc import Collection

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.schema import AUDIO, IMAGE, TEXT
from src.models.opt import OPT
from src.objectives.levels import TokenLevel


class Views(nn.Cell):
    """Encodes both views, each modality in one pass: the rows of the masked view are appended to the clean ones.

    Two passes would compute the same with twice the operators, and compile time grows with their number.

    Args:
        model: the network.
        batch_size: B.
        reads: modalities whose clean view a loss reads; the others are zeros.
        level: the token level if it has a loss: it says what is masked, in the first n rows.

    Inputs:
        batch: dict of tensors.

    Outputs:
        clean: tokens (B, length, D) of text, image and audio, masks (B, length) of the three; masked: the same of n
        rows, with clean tokens where nothing is masked, or () without a token level.
    """

    def __init__(self, model: OPT, batch_size: int, reads: Collection[int], level: TokenLevel | None) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.rows, self.reads = model, batch_size, frozenset(reads)
        self.masked_rows = level.count if level is not None else 0  # n
        self.masks_text = level is not None and level.masks_text
        self.masks_image = level is not None and level.masks_image
        self.masks_audio = level is not None and level.masks_audio
        text_shape = model.text_encoder.positions.shape[1:]
        shapes = (text_shape, model.image_shape, model.audio_shape)
        nothing = [Tensor(np.zeros((batch_size, *shape), np.float32)) for shape in shapes]
        self.no_text, self.no_image, self.no_audio = nothing  # (B, length, D) in place of an encoder's tokens
        self.no_audio_mask = Tensor(np.zeros(self.no_audio.shape[:2], np.int32))
        self.no_image_mask = Tensor(np.zeros(self.no_image.shape[:2], np.int32))
        # (B, length): in the clean view nothing is masked
        self.nothing_masked = tuple(Tensor(np.zeros((batch_size, shape[0]), np.float32)) for shape in shapes)

    def construct(self, batch):
        text, text_mask, masked_text, masked_text_mask = self.texts(batch)
        image, image_mask, masked_image, masked_image_mask = self.images(batch)
        audio, audio_mask, masked_audio, masked_audio_mask = self.audio(batch)
        clean = (text, image, audio, text_mask, image_mask, audio_mask)
        if self.masked_rows == 0:
            return clean, ()
        masks = (masked_text_mask, masked_image_mask, masked_audio_mask)
        return clean, (masked_text, masked_image, masked_audio, *masks)

    def texts(self, batch):
        """Tokens (B, T, D) and mask (B, T) of the clean view, then of the masked one."""
        ids, mask, n = batch["text_ids"], batch["text_mask"], self.masked_rows
        encode = self.model.text_encoder
        if not self.masks_text:
            tokens = encode(ids, mask) if TEXT in self.reads else self.no_text
            return tokens, mask, tokens[:n], mask[:n]
        if TEXT not in self.reads:
            return self.no_text, mask, encode(batch["mlm_ids"][:n], mask[:n]), mask[:n]
        both = encode(ops.concat((ids, batch["mlm_ids"][:n]), 0), ops.concat((mask, mask[:n]), 0))
        return both[: self.rows], mask, both[self.rows :], mask[:n]

    def images(self, batch):
        """Tokens (B, P, D) and mask (B, P) of the clean view, then of the masked one."""
        model, n = self.model, self.masked_rows
        if not self.masks_image and IMAGE not in self.reads:
            return self.no_image, self.no_image_mask, self.no_image[:n], self.no_image_mask[:n]
        inputs = image_inputs(batch, model.image_fields)
        tokens, mask = self.no_image, model.image_mask(inputs)
        if not self.masks_image:
            tokens, mask = model.encode_image(inputs)
            return tokens, mask, tokens[:n], mask[:n]
        some, mask_token = image_inputs(batch, model.image_fields, n), model.masked_image_head.vector
        masked = slots_to_mask(batch["mvm_positions"][:n], batch["mvm_weights"][:n], mask.shape[1])
        if IMAGE not in self.reads:
            return tokens, mask, *model.encode_image(some, masked, mask_token)
        both = ()
        for i in range(len(inputs)):
            both = (*both, ops.concat((inputs[i], some[i]), 0))
        tokens, _ = model.encode_image(both, ops.concat((self.nothing_masked[IMAGE], masked), 0), mask_token)
        return tokens[: self.rows], mask, tokens[self.rows :], mask[:n]

    def audio(self, batch):
        """Tokens (B, F, D) and mask (B, F) of the clean view, then of the masked one."""
        n, encode = self.masked_rows, self.model.audio_encoder
        tokens, mask = self.no_audio, self.no_audio_mask
        if not self.masks_audio and AUDIO not in self.reads:
            return tokens, mask, tokens[:n], mask[:n]
        clip, frames = batch["audio"], batch["audio_frames"]
        if not self.masks_audio:
            tokens, mask = encode(clip, frames)
            return tokens, mask, tokens[:n], mask[:n]
        mask_token = self.model.masked_audio_head.vector
        masked = slots_to_mask(batch["mam_positions"][:n], batch["mam_weights"][:n], mask.shape[1])
        if AUDIO not in self.reads:
            return tokens, mask, *encode(clip[:n], frames[:n], masked, mask_token)
        clip, frames = ops.concat((clip, clip[:n]), 0), ops.concat((frames, frames[:n]), 0)
        tokens, mask = encode(clip, frames, ops.concat((self.nothing_masked[AUDIO], masked), 0), mask_token)
        return tokens[: self.rows], mask[: self.rows], tokens[self.rows :], mask[self.rows :]


def name_tensors(fields, tensors):
    """The batch, by name: as an input of a graph a dict would be a constant, compiled in anew for every batch."""
    batch = {}
    for name, tensor in zip(fields, tensors):  # noqa: B905 - the graph compiler has no strict=
        batch[name] = tensor
    return batch


def image_inputs(batch, fields, rows=None):
    """What the image encoder reads of the batch's first rows, of all by default."""
    inputs = ()
    for name in fields:
        inputs = (*inputs, batch[name] if rows is None else batch[name][:rows])
    return inputs


def slots_to_mask(positions: Tensor, weights: Tensor, length: int) -> Tensor:
    """(B, K) int32 positions, (B, K) weights → (B, length) float32, 1 at the positions of used slots."""
    places = Tensor(np.arange(length, dtype=np.int32).reshape(1, 1, length))
    hits = ops.equal(positions.expand_dims(2), places).astype(ms.float32) * weights.expand_dims(2)  # (B, K, length)
    return hits.sum(1)

"""Greedy decoding of text from a picture, a sound or both, with a key/value cache.

Letters: ``B`` batch, ``P`` patches or regions, ``F`` audio tokens, ``T`` text tokens, ``D`` width.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.schema import AUDIO, IMAGE
from src.data.tokenizer import Tokenizer
from src.generation.batches import absent, fitting_size, pad_rows, progress
from src.generation.cache import CachedDecoder
from src.models.layers import MASKED
from src.models.opt import OPT


class _Read(nn.Cell):
    """Fuses what is given and writes the memory's part of the cache.

    Inputs:
        image (B, P, Di), image_mask (B, P) int32, audio (B, F, Da), audio_mask (B, F) int32: encoded; presence (B, 3)
        int32, text absent.
    """

    def __init__(self, model: OPT, cached: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.cross_encoder, self.cached = model.cross_encoder, cached
        self.text_shape = (model.text_len, model.text_encoder.tokens.shape[1])

    def construct(self, image, image_mask, audio, audio_mask, presence):
        rows = image.shape[0]
        text = ops.zeros((rows,) + self.text_shape, image.dtype)
        text_mask = ops.zeros((rows, self.text_shape[0]), ms.int32)
        fused, mask = self.cross_encoder(text, image, audio, text_mask, image_mask, audio_mask, presence)
        self.cached.read(fused, mask)
        return mask


class _Step(nn.Cell):
    """The most likely next token of every row.

    Inputs:
        ids (B,) int32, the last tokens; position (1,) int32, where they stand.

    Outputs:
        (B,) int32.
    """

    def __init__(self, cached: CachedDecoder, never: Tensor) -> None:
        super().__init__(auto_prefix=False)
        self.cached, self.never = cached, never
        self.best = ops.Argmax(axis=-1, output_type=ms.int32)

    def construct(self, ids, position):
        return self.best(self.cached.step(ids, position) + self.never)


class GreedyDecoder:
    """Writes the likeliest text token by token, from [CLS] to [SEP] or the model's longest text.

    Args:
        model: the network.
        tokenizer: its vocabulary.
        batch_size: rows decoded at once; fewer rows are decoded by a smaller graph.
    """

    def __init__(self, model: OPT, tokenizer: Tokenizer, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        never = np.zeros((1, model.vocab_size), np.float32)
        never[0, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.unk_id]] = MASKED
        self._never = Tensor(never)
        self._graphs: dict[int, tuple[_Read, _Step]] = {}

    def write(
        self,
        image: tuple[np.ndarray, np.ndarray] | None = None,
        audio: tuple[np.ndarray, np.ndarray] | None = None,
        label: str = "writing",
    ) -> np.ndarray:
        """Decodes a text for every row.

        Args:
            image: encoded pictures float32 [n, P, Di] and their mask int32 [n, P], or None: absent.
            audio: encoded sounds float32 [n, F, Da] and their mask int32 [n, F], or None: absent.
            label: of the progress bar.

        Returns:
            int32 [n, T]: [CLS] tokens [SEP] [PAD] …; a text that found no end within T has no [SEP].
        """
        count = len((audio if image is None else image)[0])
        size = fitting_size(count, self.batch_size, self._graphs)
        presence = np.zeros((size, 3), np.int32)
        presence[:, IMAGE], presence[:, AUDIO] = image is not None, audio is not None
        image = image or absent(count, *self.model.image_shape)
        audio = audio or absent(count, *self.model.audio_shape)
        texts = np.empty((count, self.model.text_len), np.int32)
        for start in progress(range(0, count, size), label):
            rows = slice(start, min(start + size, count))
            given = [Tensor(pad_rows(array[rows], size)) for array in (*image, *audio)]
            texts[rows] = self._decode(size, [*given, Tensor(presence)])[: rows.stop - start]
        return texts

    def texts(self, ids: np.ndarray) -> list[str]:
        """Rows of :meth:`write` as text."""
        return [self.tokenizer.decode(row) for row in ids]

    def _decode(self, size: int, given: list[Tensor]) -> np.ndarray:
        """int32 [size, T] for one batch."""
        if size not in self._graphs:
            places = np.arange(self.model.cross_encoder.length, dtype=np.int32)
            cached = CachedDecoder(self.model.text_decoder, size, places)
            self._graphs[size] = _Read(self.model, cached), _Step(cached, self._never)
        read, step = self._graphs[size]
        read(*given)
        texts = np.full((size, self.model.text_len), self.tokenizer.pad_id, np.int32)
        texts[:, 0] = self.tokenizer.cls_id
        last, going = Tensor(texts[:, 0].copy()), np.ones(size, bool)
        for position in range(self.model.text_len - 1):
            last = step(last, Tensor(np.array([position], np.int32)))
            chosen = last.asnumpy()
            texts[going, position + 1] = chosen[going]
            going &= chosen != self.tokenizer.sep_id
            if not going.any():
                break
        return texts

"""Greedy decoding of text from a picture, a sound or both, with a key/value cache.

Letters: ``B`` batch, ``T`` text tokens, ``L`` fused length, ``H`` heads, ``D`` width, ``V`` vocabulary.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.data.schema import AUDIO, IMAGE
from src.data.tokenizer import Tokenizer
from src.generation.batches import fitting_size, pad_rows, progress
from src.models.layers import MASKED, padding_bias
from src.models.opt import OPT


class _Cache(nn.Cell):
    """The keys and values of every layer: of the memory, written once a batch, and of the text, once a token."""

    def __init__(self, model: OPT, batch_size: int) -> None:
        super().__init__(auto_prefix=False)
        decoder = model.text_decoder
        self.layers = len(decoder.transformer.blocks)
        attention = decoder.transformer.blocks[0].attention
        heads = (batch_size, attention.heads)
        fused = model.cross_encoder.length
        self.memory_keys = self.tables("memory_keys", (*heads, fused, attention.head_width))
        self.memory_values = self.tables("memory_values", (*heads, fused, attention.head_width))
        self.keys = self.tables("keys", (*heads, model.text_len, attention.head_width))
        self.values = self.tables("values", (*heads, model.text_len, attention.head_width))
        self.memory_bias = _state("memory_bias", (batch_size, 1, 1, fused))

    def tables(self, name: str, shape: tuple[int, ...]) -> ParameterTuple:
        return ParameterTuple([_state(f"{name}{layer}", shape) for layer in range(self.layers)])


def _state(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=f"decoding.{name}", requires_grad=False)


class _Read(nn.Cell):
    """Fuses what is given and writes the memory's part of the cache.

    Inputs:
        image (B, P, Di), audio (B, F, Da) float, audio_mask (B, F) int32: encoded; presence (B, 3) int32, text absent.
    """

    def __init__(self, model: OPT, cache: _Cache) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.cache = model, cache
        self.places = Tensor(np.arange(model.cross_encoder.length, dtype=np.int32))
        self.text_shape = (model.text_len, model.text_encoder.tokens.shape[1])

    def construct(self, image, audio, audio_mask, presence):
        rows = image.shape[0]
        text = ops.zeros((rows,) + self.text_shape, image.dtype)
        text_mask = ops.zeros((rows, self.text_shape[0]), ms.int32)
        fused, mask = self.model.cross_encoder(text, image, audio, text_mask, audio_mask, presence)
        memory = self.model.text_decoder.read(fused, self.places)
        for i in range(self.cache.layers):
            ops.assign(self.cache.memory_keys[i], memory[i][0])
            ops.assign(self.cache.memory_values[i], memory[i][1])
        ops.assign(self.cache.memory_bias, padding_bias(mask))
        return mask


class _Step(nn.Cell):
    """The most likely next token of every row.

    Inputs:
        ids (B,) int32, the last tokens; position (1,) int32, where they stand.

    Outputs:
        (B,) int32.
    """

    def __init__(self, model: OPT, cache: _Cache, never: Tensor) -> None:
        super().__init__(auto_prefix=False)
        self.decoder, self.cache, self.never = model.text_decoder, cache, never
        self.best = ops.Argmax(axis=-1, output_type=ms.int32)

    def construct(self, ids, position):
        past, memory = (), ()
        for i in range(self.cache.layers):
            past = (*past, (self.cache.keys[i], self.cache.values[i]))
            memory = (*memory, (self.cache.memory_keys[i], self.cache.memory_values[i]))
        logits, written = self.decoder.step(ids, position, past, memory, self.cache.memory_bias)
        best = self.best(logits + self.never)
        for i in range(self.cache.layers):
            ops.assign(self.cache.keys[i], written[i][0])
            ops.assign(self.cache.values[i], written[i][1])
        return best


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
        encoders = model.image_encoder.positions.shape[1:], model.audio_encoder.positions.shape[1:]
        self._image_shape, self._audio_shape = encoders  # (P, Di), (F, Da)

    def write(
        self,
        image: np.ndarray | None = None,
        audio: tuple[np.ndarray, np.ndarray] | None = None,
        label: str = "writing",
    ) -> np.ndarray:
        """Decodes a text for every row.

        Args:
            image: encoded pictures float32 [n, P, Di], or None: absent.
            audio: encoded sounds float32 [n, F, Da] and their mask int32 [n, F], or None: absent.
            label: of the progress bar.

        Returns:
            int32 [n, T]: [CLS] tokens [SEP] [PAD] …; a text that found no end within T has no [SEP].
        """
        count = len(image) if image is not None else len(audio[0])
        size = fitting_size(count, self.batch_size, self._graphs)
        presence = np.zeros((size, 3), np.int32)
        presence[:, IMAGE], presence[:, AUDIO] = image is not None, audio is not None
        if image is None:
            image = np.broadcast_to(np.float32(0), (count, *self._image_shape))
        if audio is None:
            audio = (
                np.broadcast_to(np.float32(0), (count, *self._audio_shape)),
                np.broadcast_to(np.int32(0), (count, self._audio_shape[0])),
            )
        texts = np.empty((count, self.model.text_len), np.int32)
        for start in progress(range(0, count, size), label):
            rows = slice(start, min(start + size, count))
            given = [Tensor(pad_rows(array[rows], size)) for array in (image, *audio)]
            texts[rows] = self._decode(size, [*given, Tensor(presence)])[: rows.stop - start]
        return texts

    def texts(self, ids: np.ndarray) -> list[str]:
        """Rows of :meth:`write` as text."""
        return [self.tokenizer.decode(row) for row in ids]

    def _decode(self, size: int, given: list[Tensor]) -> np.ndarray:
        """int32 [size, T] for one batch."""
        if size not in self._graphs:
            cache = _Cache(self.model, size)
            self._graphs[size] = _Read(self.model, cache), _Step(self.model, cache, self._never)
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

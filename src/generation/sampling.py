"""Images from a text, an audio clip or both: sampling of image codes, with a key/value cache.

Letters: ``n`` rows, ``N`` samples of each, ``B`` samples at once, ``L`` fused length, ``D`` width,
``K`` codes, ``P'`` codes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.schema import AUDIO, TEXT
from src.generation.cache import CachedDecoder, Read, called_often, past_bias
from src.models.batches import absent, fitting_size, join_batches, pad_rows, run_batched
from src.models.cross_encoder import CrossEncoder
from src.models.image_decoder import ImageDecoder

Encoded = tuple[np.ndarray, np.ndarray]  # tokens float32 [n, length, width] and their mask int32 [n, length]


@dataclass(frozen=True)
class Sampling:
    """How codes are sampled; the order is guidance, top-k, temperature."""

    samples: int = 1  # N: images for each row
    temperature: float = 1.0  # 0: always the likeliest code
    top_k: int = 0  # only the k likeliest codes are sampled; 0: all
    guidance: float = 0.0  # w: logits are (1 + w) · given − w · given nothing (Ho and Salimans 2022)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be positive")
        for name in ("temperature", "top_k", "guidance", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


class _Step(nn.Cell):
    """The logits of the next code of every sample.

    Args:
        cached: of B rows; with guidance of 2B, first those given something, then those given nothing.
        guided: whether there is guidance.

    Inputs:
        ids (B,) int32, the last codes; position () int32, where they stand; bias of :meth:`CachedDecoder.step`;
        guidance () float32.

    Outputs:
        (B, K) float32.
    """

    def __init__(self, cached: CachedDecoder, guided: bool) -> None:
        super().__init__(auto_prefix=False)
        self.cached, self.guided = cached, guided

    def construct(self, ids, position, bias, guidance):
        if not self.guided:
            return self.cached.step(ids, position, bias)
        both = self.cached.step(ops.concat((ids, ids)), position, bias)  # (2B, K)
        rows = ids.shape[0]
        return both[:rows] + guidance * (both[:rows] - both[rows:])


def sample_codes(logits: np.ndarray, noise: np.ndarray, top_k: int) -> np.ndarray:
    """One code a row by the Gumbel-max trick.

    On the host: no slower than in the graph, and one graph serves every ``top_k``.

    Args:
        logits: float32 [B, K].
        noise: float32 [B, K], Gumbel's times the temperature: the same as dividing the logits by it, and 0 is no
            special case.
        top_k: codes less likely than the k-th are not sampled; 0: all may be.

    Returns:
        int32 [B].
    """
    scores = logits + noise
    if 0 < top_k < logits.shape[1]:
        worst = np.partition(logits, -top_k, axis=1)[:, -top_k, None]  # [B, 1]
        scores[logits < worst] = -np.inf
    return scores.argmax(1).astype(np.int32)


class CodeSampler:
    """Samples code sequences; the same seed gives the same images whatever the batch and the order of rows.

    Args:
        cross_encoder: fuses what is given.
        decoder: of the codes.
        batch_size: samples at once; fewer use a smaller graph.
    """

    def __init__(self, cross_encoder: CrossEncoder, decoder: ImageDecoder, batch_size: int) -> None:
        self.cross_encoder, self.decoder, self.batch_size = cross_encoder, decoder, batch_size
        self._graphs: dict[tuple, dict[int, tuple[Read, _Step]]] = {}  # by what is given and guidance, then size

    def sample(
        self,
        sampling: Sampling,
        text: Encoded | None = None,
        audio: Encoded | None = None,
        rows: Sequence[int] | None = None,
        label: str = "generating",
    ) -> np.ndarray:
        """Samples the codes of N images for every row.

        Args:
            sampling: settings.
            text, audio: encoded; None: absent.
            rows: numbers of the rows, which with the seed determine the noise; 0 … n − 1 by default.
            label: of the progress bar.

        Returns:
            codes int32 [n, N, P'].
        """
        count = len((text or audio)[0])
        rows = range(count) if rows is None else rows
        given = [which for which, encoded in ((TEXT, text), (AUDIO, audio)) if encoded is not None]
        places = self.cross_encoder.single_modality_positions(*given)
        memory, mask = (part[:, places] for part in self._fuse(text, audio, label))
        nothing = None
        if sampling.guidance:
            nothing = tuple(part[:1, places] for part in self._fuse(None, None, label))
        graphs = self._graphs.setdefault((*given, bool(sampling.guidance)), {})
        size = fitting_size(count * sampling.samples, self.batch_size, graphs)
        if size not in graphs:
            graphs[size] = self._build(size, places, bool(sampling.guidance))
        owner, number_of = np.divmod(np.arange(count * sampling.samples), sampling.samples)

        def compute(part: slice) -> tuple[np.ndarray]:
            chosen = pad_rows(owner[part], size)
            streams = [
                np.random.default_rng((sampling.seed, int(rows[row]), int(number)))
                for row, number in zip(owner[part], number_of[part], strict=True)
            ]
            given_rows = memory[chosen], mask[chosen]
            return (self._sample(graphs[size], given_rows, nothing, streams, sampling)[: len(streams)],)

        (codes,) = join_batches(len(owner), size, compute, label)
        return codes.reshape(count, sampling.samples, -1)

    def _fuse(self, text: Encoded | None, audio: Encoded | None, label: str) -> tuple[np.ndarray, ...]:
        """Fused tokens float32 [n, L, D] and their mask int32 [n, L]; of one row where nothing is given."""
        encoder = self.cross_encoder
        count = len((text or audio)[0]) if text or audio else 1
        presence = np.zeros((count, 3), np.int32)
        presence[:, TEXT], presence[:, AUDIO] = text is not None, audio is not None
        text = text or absent(count, encoder.first_text.shape[1], encoder.text_project.inputs)
        audio = audio or absent(count, encoder.first_audio.shape[1], encoder.audio_project.inputs)
        image = absent(count, encoder.patches, encoder.image_project.inputs)
        size = fitting_size(count, self.batch_size)
        return run_batched(encoder, size, (text[0], image[0], audio[0], text[1], image[1], audio[1], presence), label)

    def _build(self, size: int, places: np.ndarray, guided: bool) -> tuple[Read, _Step]:
        cached = CachedDecoder(self.decoder, size * (1 + guided), places)
        return Read(cached), called_often(_Step(cached, guided))

    def _sample(
        self,
        graphs: tuple[Read, _Step],
        given: Encoded,
        nothing: Encoded | None,
        streams: list[np.random.Generator],
        sampling: Sampling,
    ) -> np.ndarray:
        """int32 [B, P'] for one batch; rows without a stream of noise are padding."""
        read, step = graphs
        size = len(given[0])
        if nothing is not None:
            given = tuple(np.concatenate([x, np.repeat(y, size, 0)]) for x, y in zip(given, nothing, strict=True))
        read(*map(Tensor, given))
        codes = np.empty((size, self.decoder.length), np.int32)
        noise = np.zeros((size, self.decoder.outputs), np.float32)
        guidance = Tensor(sampling.guidance, ms.float32)
        last = np.full(size, self.decoder.bos, np.int32)
        for position in range(self.decoder.length):
            bias = Tensor(past_bias(position, self.decoder.length))
            logits = step(Tensor(last), Tensor(position, ms.int32), bias, guidance).asnumpy()
            if sampling.temperature:
                for row, stream in zip(noise, streams, strict=False):
                    row[:] = sampling.temperature * stream.gumbel(size=len(row))
            last = codes[:, position] = sample_codes(logits, noise, sampling.top_k)
        return codes

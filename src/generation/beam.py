"""Text from images, audio clips and texts: beam search over a key/value cache; greedy decoding is a beam of one.

Letters: ``B`` inputs, ``K`` beams of each, ``N`` = B·K rows, ``T`` positions, ``V`` vocabulary, ``L`` tokens of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import DecodingConfig
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.generation.cache import CachedDecoder, Read, called_often, past_bias
from src.generation.text_sampling import never_generated
from src.models.batches import fitting_size, join_batches, pad_rows
from src.models.layers import MASKED
from src.models.opt import OPT

Encoded = tuple[np.ndarray, np.ndarray]  # tokens float32 [n, L, D] and their mask int32 [n, L]


@dataclass(frozen=True)
class BeamSettings:
    """Settings of the search. Lengths count the generated tokens, the closing [SEP] included."""

    beams: int = 1  # K
    length_penalty: float = 0.0  # α: texts compare by log p / ((5 + n) / 6)^α (Wu et al. 2016)
    no_repeat_ngram: int = 0  # no sequence of so many tokens occurs twice in a text; 0: any may
    min_length: int = 0
    max_length: int = 0  # 0: what the model has room for

    @classmethod
    def of(cls, config: DecodingConfig) -> "BeamSettings":
        lengths = config.min_length, config.max_length
        return cls(config.beam_size, config.length_penalty, config.no_repeat_ngram, *lengths)

    def penalty(self, tokens: int) -> float:
        return ((5 + tokens) / 6) ** self.length_penalty


class _Fuse(nn.Cell):
    """What is given as a memory.

    Inputs:
        tokens (B, L, D) float and mask (B, L) int32 of every modality in ``given``, in that order.

    Outputs:
        memory (B, Lm, D) float and its mask (B, Lm) int32.
    """

    def __init__(self, model: OPT, given: tuple[int, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.cross_encoder, self.given = model.cross_encoder, given

    def construct(self, *encoded):
        return self.cross_encoder.fuse_given(encoded[0::2], encoded[1::2], self.given)


class _Step(nn.Cell):
    """The likeliest next tokens.

    Args:
        cached: of N rows.
        choices: C, how many of each row.

    Inputs:
        ids (N,) int32, the last tokens; position () int32, where they stand; bias of :meth:`CachedDecoder.step`;
        allowed (V,) or (N, V) float32, added to the logits: MASKED where a token may not be generated.

    Outputs:
        (N,) int32, the likeliest token, where C is 1. Otherwise (N, C) int32, the likeliest first, and (N, C) float32,
        their log-probabilities among the tokens that may be generated.
    """

    def __init__(self, cached: CachedDecoder, choices: int) -> None:
        super().__init__(auto_prefix=False)
        self.cached, self.choices = cached, choices
        self.best, self.top = ops.Argmax(axis=-1, output_type=ms.int32), ops.TopK(sorted=True)

    def construct(self, ids, position, bias, allowed):
        logits = self.cached.step(ids, position, bias) + allowed
        if self.choices == 1:
            return self.best(logits)
        values, tokens = self.top(logits, self.choices)
        normaliser = ops.log(ops.exp(logits - values[:, :1]).sum(1, keepdims=True)) + values[:, :1]  # (N, 1)
        return tokens, values - normaliser


class _Hypotheses:
    """The beams of B inputs, extended token by token. A text that has ended leaves its beam to those that go on.

    Args:
        inputs, length, limit: B, T, and the most tokens that are generated.
        settings: K and the penalty.
        tokenizer: what begins, ends and fills a text.
    """

    def __init__(self, inputs: int, length: int, limit: int, settings: BeamSettings, tokenizer: Tokenizer) -> None:
        self.settings, self.limit, self.tokenizer = settings, limit, tokenizer
        beams = settings.beams
        self.ids = np.full((inputs, beams, length), tokenizer.pad_id, np.int32)
        self.ids[:, :, 0] = tokenizer.cls_id
        self.origins = np.tile(np.arange(beams)[:, None], (inputs, 1, length))  # where the cache holds a beam's past
        # log p of unfinished texts, of which there is one at first; −inf: none
        self.going = np.where(np.arange(beams) == 0, 0.0, np.full((inputs, 1), -np.inf))
        # the best text of each input that has ended, and its score
        self.ended_ids, self.ended = self.ids[:, 0].copy(), np.full(inputs, -np.inf)

    def extend(self, generated: int, tokens: np.ndarray, logs: np.ndarray) -> None:
        """Goes on by one token.

        Args:
            generated: tokens that every text then has, unless it ended before.
            tokens, logs: [B, K, C], choices of every beam and their log-probabilities, best first.
        """
        beams = self.settings.beams
        sums = self.going[:, :, None] + np.where(logs > MASKED / 2, logs, -np.inf)  # [B, K, C]
        ends = tokens == self.tokenizer.sep_id
        self._end(generated, np.where(ends, sums, -np.inf).max(2))
        flat = np.where(ends, -np.inf, sums).reshape(len(sums), -1)
        # a stable sort: of equals the earlier beam, and in it the earlier choice, comes first
        order = np.argsort(-flat, axis=1, kind="stable")[:, :beams]
        parent, choice = np.divmod(order, sums.shape[2])
        rows = np.arange(len(flat))[:, None]
        self.ids, self.origins = self.ids[rows, parent], self.origins[rows, parent]
        self.origins[:, :, generated:] = np.arange(beams)[:, None]
        self.ids[:, :, generated] = tokens[rows, parent, choice]
        self.going = flat[rows, order]
        # a text that could not beat the best ended one even at no further cost is given up
        hopeless = self.going / self.settings.penalty(self.limit) <= self.ended[:, None]
        self.going[hopeless] = -np.inf

    def _end(self, generated: int, sums: np.ndarray) -> None:
        """Keeps of the texts that end here, log p [B, K], the best, if none before was as good."""
        scores = sums / self.settings.penalty(generated)
        beam = scores.argmax(1)
        rows = np.arange(len(scores))
        better = scores[rows, beam] > self.ended
        self.ended = np.where(better, scores[rows, beam], self.ended)
        self.ended_ids[better] = self.ids[rows, beam][better]
        self.ended_ids[better, generated] = self.tokenizer.sep_id

    @property
    def over(self) -> bool:
        return not np.isfinite(self.going).any()

    def last(self, position: int) -> np.ndarray:
        """int32 [N]: the tokens at a position."""
        return self.ids[:, :, position].reshape(-1)

    def best(self) -> np.ndarray:
        """int32 [B, T]: the best texts; one that found no end competes as it is."""
        scores = self.going / self.settings.penalty(self.limit)
        rows, beam = np.arange(len(scores)), scores.argmax(1)
        cut = scores[rows, beam] > self.ended
        return np.where(cut[:, None], self.ids[rows, beam], self.ended_ids)


class BeamSearch:
    """Generates the likeliest texts, from [CLS] to [SEP] or the greatest length; deterministic.

    Args:
        model: the network.
        tokenizer: its vocabulary.
        batch_size: inputs at once; fewer use a smaller graph.
        settings: of the search.
    """

    def __init__(self, model: OPT, tokenizer: Tokenizer, batch_size: int, settings: BeamSettings | None = None) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.settings = settings or BeamSettings()
        self._never, self._never_or_end = never_generated(tokenizer), never_generated(tokenizer)
        self._never_or_end[tokenizer.sep_id] = MASKED
        # of every position, made once
        self._allowances = Tensor(self._never), Tensor(self._never_or_end)
        self._positions = [Tensor(np.int32(position)) for position in range(model.text_len)]
        self._pasts = [Tensor(past_bias(position, model.text_len)) for position in range(model.text_len)]  # of one beam
        self._graphs: dict[tuple, dict[int, tuple[_Fuse, Read, _Step]]] = {}  # by what is given and blocking, then size

    @property
    def limit(self) -> int:
        """The most tokens that are generated."""
        return self.settings.max_length or self.model.text_len - 1

    def generate(self, given: Mapping[int, Encoded], label: str = "generating") -> np.ndarray:
        """A text for every row.

        Args:
            given: encoded texts, images, audio clips or several of them, by modality, n rows of each; the others are
                absent.
            label: of the progress bar.

        Returns:
            int32 [n, T]: [CLS] tokens [SEP] [PAD] …; a text that found no end has no [SEP].
        """
        present = tuple(which for which in (TEXT, IMAGE, AUDIO) if which in given)
        arrays = [array for which in present for array in given[which]]
        count = len(arrays[0])
        graphs = self._graphs.setdefault((*present, self.settings.no_repeat_ngram > 0), {})
        size = fitting_size(count, self.batch_size, graphs)
        if size not in graphs:
            places = self.model.cross_encoder.single_modality_positions(*present)
            graphs[size] = _Fuse(self.model, present), *self.build(size, places)
        fuse, read, step = graphs[size]

        def compute(rows: slice) -> tuple[np.ndarray]:
            batch = [pad_rows(array[rows], size) for array in arrays]
            read(*fuse(*map(Tensor, batch)))
            return (self.search(size, step)[: rows.stop - rows.start],)

        return join_batches(count, size, compute, label)[0]

    def decode(self, ids: np.ndarray) -> list[str]:
        """Rows of :meth:`generate` as text."""
        return [self.tokenizer.decode(row) for row in ids]

    def build(self, size: int, places: np.ndarray) -> tuple[Read, _Step]:
        """Graphs that read so many memories, made of these ``places`` of the fused tokens, and go on from them."""
        beams = self.settings.beams
        cached = CachedDecoder(self.model.text_decoder, size, places, beams)
        # one of a beam's choices may end the text: with one more, as many go on as there are beams
        choices = min(beams + 1, self.model.vocab_size) if beams > 1 else 1
        return Read(cached), called_often(_Step(cached, choices))

    def search(self, size: int, step: _Step) -> np.ndarray:
        """int32 [B, T]: the best texts of the B = ``size`` memories that were read last."""
        beams, length = self.settings.beams, self.model.text_len
        found = _Hypotheses(size, length, self.limit, self.settings, self.tokenizer)
        last, shape = Tensor(found.last(0)), (size, beams, step.choices)
        for position in range(self.limit):
            bias = self._pasts[position] if beams == 1 else Tensor(past_bias(position, length, found.origins))
            made = step(last, self._positions[position], bias, self._allowed(found, position))
            if beams == 1:  # its next input is its output; behind the end of a text it does not matter
                last = made
                found.extend(position + 1, made.asnumpy().reshape(shape), np.zeros(shape))
            else:
                tokens, logs = (part.asnumpy().reshape(shape) for part in made)
                found.extend(position + 1, tokens, logs.astype(np.float64))
                last = Tensor(found.last(position + 1))
            if found.over:
                break
        return found.best()

    def _allowed(self, found: _Hypotheses, position: int) -> Tensor:
        """(V,), or with n-gram blocking (N, V) float32: MASKED for tokens that may not stand at ``position`` + 1."""
        early = position + 1 < self.settings.min_length
        size = self.settings.no_repeat_ngram
        if not size:
            return self._allowances[early]
        generated = found.ids[:, :, 1 : position + 1].reshape(len(found.ids) * self.settings.beams, position)
        allowed = self._never_or_end if early else self._never
        return Tensor(allowed + np.float32(MASKED) * repeated(generated, size, len(allowed)))


def repeated(generated: np.ndarray, size: int, vocab_size: int) -> np.ndarray:
    """Which tokens would complete a sequence of ``size`` tokens that a text already has.

    Args:
        generated: int32 [N, n].

    Returns:
        bool [N, V].
    """
    rows, length = generated.shape
    found = np.zeros((rows, vocab_size), bool)
    if length >= size:
        windows = np.lib.stride_tricks.sliding_window_view(generated, size, axis=1)  # [N, n − size + 1, size]
        same = (windows[:, :, :-1] == generated[:, None, length - size + 1 :]).all(2)
        row, place = np.nonzero(same)
        found[row, windows[row, place, -1]] = True
    return found

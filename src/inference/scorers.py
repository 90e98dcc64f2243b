"""Second scores of pairs: does the pair match, and how likely is the text given the other one.

Letters: ``n`` pairs, ``R`` pairs scored at once, ``U`` items of which the texts are scored, ``T`` text tokens, ``L``
memory length, ``V`` vocabulary.
"""

from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.data.schema import AUDIO, IMAGE, MATCH_CASES, MODALITIES, TEXT
from src.inference.encode import Items
from src.models.batches import absent, fitting_size, join_batches, pad_rows, progress, run_batched
from src.models.layers import padding_bias
from src.models.opt import OPT
from src.models.text_decoder import repeat_memory
from src.sharing import divide

PAIRS_AT_ONCE = 256
LOGITS_AT_ONCE = 1 << 24  # entries of the table of logits: 64 MB
LENGTH_STEP = 4  # texts are cut behind the longest, rounded up so that galleries share a graph
ITEM_STEP = 4  # room for items, rounded up likewise


class _TextLikelihood(nn.Cell):
    """Fuses items of one modality, reads them into keys and values once, and scores texts over those.

    Args:
        model: the network.
        given: IMAGE or AUDIO.
        pad_id: the token that is no text.

    Inputs:
        tokens (U, L, D) float, mask (U, L) int32; owner (R,) int32: the item of each text; ids (R, T) int32.

    Outputs:
        (R,) float32: Σ_t log p(token t | tokens before t, item), the closing [SEP] included.
    """

    def __init__(self, model: OPT, given: int, pad_id: int) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.given, self.pad_id = model, given, pad_id
        self.places = Tensor(model.cross_encoder.single_modality_positions(given))

    def construct(self, tokens, mask, owner, ids):
        decoder = self.model.text_decoder
        fused, fused_mask = self.model.cross_encoder.fuse_single_modality(tokens, mask, self.given)
        memory = repeat_memory(decoder.read(fused, self.places), owner)
        bias = ops.gather(padding_bias(fused_mask), owner, 0)
        logs = decoder.log_probabilities(ids, memory, bias)  # (R, T−1)
        return (logs * (ids[:, 1:] != self.pad_id).astype(ms.float32)).sum(1)


class TextLikelihood:
    """log p(text | image) or log p(text | audio) of pairs, in nats, under the text decoder."""

    def __init__(self, model: OPT, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.cells = {given: _TextLikelihood(model, given, pad_id) for given in (IMAGE, AUDIO)}
        self.fused = 0  # items that went through the cross-modal encoder

    def score(self, given: int, items: Items, ids: np.ndarray, pairs: np.ndarray, label: str = "") -> np.ndarray:
        """The likelihood of every pair.

        Args:
            given: IMAGE or AUDIO: what the items are.
            ids: texts int32 [m, T], [CLS] … [SEP] [PAD] …
            pairs: int64 [n, 2]: text, item.

        Returns:
            float64 [n].
        """
        length = int((ids != self.pad_id).sum(1).max())
        ids = ids[:, : min(ids.shape[1], -(-length // LENGTH_STEP) * LENGTH_STEP)]
        rows = self.rows_at_once(len(pairs), ids.shape[1])
        # a graph has room for as many items as so many pairs usually have
        usual = rows * len(np.unique(pairs[:, 1])) / len(pairs)
        most_items = min(rows, -(-int(usual + 1) // ITEM_STEP) * ITEM_STEP)
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))  # the pairs of an item stand together: it is fused once
        scores = np.empty(len(pairs))

        def compute(chosen: np.ndarray) -> np.ndarray:
            used, owner = np.unique(pairs[chosen, 1], return_inverse=True)
            inputs = (
                pad_rows(items.tokens[used], most_items),
                pad_rows(items.mask[used], most_items),
                pad_rows(owner.astype(np.int32), rows),
                pad_rows(ids[pairs[chosen, 0]], rows),
            )
            return self.cells[given](*map(Tensor, inputs)).asnumpy()[: len(chosen)]

        chunks = [order[part] for part in _chunks(pairs[order, 1], rows, most_items)]
        self.fused += sum(len(np.unique(pairs[chosen, 1])) for chosen in chunks)
        for chosen, found in zip(chunks, divide(progress(chunks, label), compute), strict=True):
            scores[chosen] = found
        return scores

    def rows_at_once(self, pairs: int, length: int) -> int:
        """R: bounded by what the logits of a big vocabulary take."""
        room = max(8, LOGITS_AT_ONCE // (length * self.model.vocab_size))
        return fitting_size(pairs, min(PAIRS_AT_ONCE, 1 << (room.bit_length() - 1)))


def _chunks(sorted_items: np.ndarray, rows: int, most_items: int) -> Iterator[slice]:
    """Cuts pairs sorted by item into pieces of at most ``rows`` pairs and ``most_items`` different items."""
    number = np.cumsum(np.diff(sorted_items, prepend=sorted_items[:1]) != 0)
    start = 0
    while start < len(number):
        stop = min(start + rows, int(np.searchsorted(number, number[start] + most_items)))
        yield slice(start, stop)
        start = stop


class _Matching(nn.Cell):
    """Tokens, masks and embeddings of rows with one modality absent → logits (R, 5) of the matching head."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, text, image, audio, text_mask, image_mask, audio_mask, presence, text_e, image_e, audio_e):
        fused, _ = self.model.cross_encoder(text, image, audio, text_mask, image_mask, audio_mask, presence)
        return self.model.matching_head(fused[:, 0], text_e, image_e, audio_e, presence)


class Matching:
    """log p(what stands in a row belongs together) by the matching head: one fused pass a row, in nats."""

    def __init__(self, model: OPT) -> None:
        self.model, self.cell = model, _Matching(model)
        self.fused = 0

    def score(self, items: dict[int, Items], pairs: np.ndarray, label: str = "") -> np.ndarray:
        """The score of every pair or triplet.

        Args:
            items: of two or three modalities.
            pairs: int64 [n, 2 or 3]: an item of each, in the order text, image, audio.

        Returns:
            float64 [n].
        """
        model = self.model
        here = sorted(items)
        presence = np.array([int(modality in here) for modality in (TEXT, IMAGE, AUDIO)], np.int32)
        shapes = {
            TEXT: (model.text_len, model.text_encoder.tokens.shape[1]),
            IMAGE: model.image_shape,
            AUDIO: model.audio_shape,
        }
        rows = fitting_size(len(pairs), PAIRS_AT_ONCE)

        def compute(chosen: slice) -> tuple[np.ndarray, ...]:
            part = pairs[chosen]
            tokens, mask, embeddings = {}, {}, {}
            for modality, chosen in zip(here, part.T, strict=True):
                group = items[modality]
                tokens[modality], mask[modality] = group.tokens[chosen], group.mask[chosen]
                embeddings[modality] = group.embeddings[chosen]
            for missing in {TEXT, IMAGE, AUDIO} - set(here):
                tokens[missing], mask[missing] = absent(len(part), *shapes[missing])
                embeddings[missing] = np.zeros_like(embeddings[here[0]])
            inputs = [columns[m] for columns in (tokens, mask) for m in (TEXT, IMAGE, AUDIO)]
            inputs += [np.broadcast_to(presence, (len(part), 3))]
            inputs += [embeddings[m] for m in (TEXT, IMAGE, AUDIO)]
            return run_batched(self.cell, rows, inputs)

        self.fused += len(pairs)
        logits = join_batches(len(pairs), rows, compute, label)[0].astype(np.float64)
        # that two match is the case of just these two, or of all three; that three match is the latter
        own = "+".join(MODALITIES[modality] for modality in here)
        cases = [MATCH_CASES.index(case) for case in dict.fromkeys((own, "all")) if case in MATCH_CASES]
        return np.logaddexp.reduce(logits[:, cases], axis=1) - np.logaddexp.reduce(logits, axis=1)

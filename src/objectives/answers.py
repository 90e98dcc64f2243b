"""Visual question answering: a question, as text or speech, and an image through the cross-modal encoder to an answer.

Two heads, by ``objectives.answer.head``: the answer is one of a list, each with a probability of its own
(``classify``), or the text decoder generates it (``generate``).

Letters as in :mod:`src.models.opt`; ``A`` answers of the list, ``S`` slots of a row.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import Config
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.losses.classification import cross_entropy, soft_binary_cross_entropy
from src.models.layers import padding_bias
from src.models.opt import OPT
from src.objectives.peers import ALONE, Counts, Peers
from src.objectives.table import ENCODERS
from src.objectives.views import image_inputs

INPUTS = {TEXT: ("text_ids", "text_mask"), AUDIO: ("audio", "audio_frames")}  # of a batch; an image's by the model
TARGETS = {"classify": ("answer_classes", "answer_values"), "generate": ("answer_ids", "answer_mask")}


class AnswerObjectives(nn.Cell):
    """The loss of the answers to a batch of questions.

    Args:
        model: the network.
        config: the head, what questions are answered from, and the batch.
        peers: the other ranks, over whose questions the mean is, too.

    Inputs:
        batch: dict of the tensors that ``fields`` names.

    Outputs:
        total and answer, each () float32.
    """

    names = ("answer",)

    def __init__(self, model: OPT, config: Config, peers: Peers = ALONE) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.counts = model, Counts(peers)
        settings = config.objectives.answer
        choices = [frozenset(map(MODALITIES.index, choice.split("+"))) for choice in settings.given]
        self.reads = tuple(sorted(frozenset().union(*choices)))
        self.alike = settings.alike  # where every row shows the same, it is fused at its own length
        self.places = Tensor(model.cross_encoder.single_modality_positions(*self.reads))
        self.classifies = settings.head == "classify"
        inputs = INPUTS | {IMAGE: model.image_fields}
        read = (name for which in self.reads for name in inputs[which])
        self.fields = (*read, "answer_given", *TARGETS[settings.head])
        size = config.data.batch_size
        shapes = (model.text_encoder.positions.shape[1:], model.image_shape, model.audio_shape)
        nothing = [Tensor(np.zeros((size, *shape), np.float32)) for shape in shapes]
        self.no_text, self.no_image, self.no_audio = nothing  # (B, length, D) in place of what is never given

    def trained_parts(self) -> frozenset[str]:
        """The model's parts that gradients train."""
        head = "answer_head" if self.classifies else "text_decoder"
        return frozenset({*(ENCODERS[which] for which in self.reads), "cross_encoder", head})

    def construct(self, batch):
        encoded = self.encode(batch)
        fused, mask = self.fuse(batch, encoded)
        shown = (batch["answer_given"].sum(1) > 0).astype(ms.float32)  # (B,)
        if self.classifies:
            loss = self.classify(batch, fused, mask, self.points(batch, encoded), shown)
        else:
            loss = self.generate(batch, fused, mask, shown)
        return loss, loss

    def fuse(self, batch, encoded):
        """What each row is given, fused (B, L, D), and its mask (B, L)."""
        text, image, audio = encoded
        if not self.alike:
            tokens, masks = (text[0], image[0], audio[0]), (text[1], image[1], audio[1])
            return self.model.cross_encoder(*tokens, *masks, batch["answer_given"])
        tokens, masks = (), ()
        for which in self.reads:
            tokens = (*tokens, encoded[which][0])
            masks = (*masks, encoded[which][1])
        return self.model.cross_encoder.fuse_given(tokens, masks, self.reads)

    def points(self, batch, encoded):
        """Where each row's question points, of what the row is given alone: (B, L, P), or None."""
        given = batch["answer_given"]  # (B, 3)
        shown = ()
        for which in (TEXT, IMAGE, AUDIO):
            shown = (*shown, (encoded[which][0], encoded[which][1] * given[:, which : which + 1]))
        if IMAGE not in self.reads:
            return None
        # rows that differ are fused with room for everything, also for what none of them is given
        return self.model.points(shown, self.reads if self.alike else (TEXT, IMAGE, AUDIO))

    def encode(self, batch):
        """Tokens (B, length, D) and mask (B, length) of text, image and audio; zeros of what is never given."""
        model = self.model
        text, image, audio = nothing(self.no_text), nothing(self.no_image), nothing(self.no_audio)
        if TEXT in self.reads:
            text = (model.text_encoder(batch["text_ids"], batch["text_mask"]), batch["text_mask"])
        if IMAGE in self.reads:
            image = model.encode_image(image_inputs(batch, model.image_fields))
        if AUDIO in self.reads:
            audio = model.audio_encoder(batch["audio"], batch["audio_frames"])
        return text, image, audio

    def classify(self, batch, fused, mask, points, shown):
        """Of the questions that have an answer in the list."""
        values = batch["answer_values"]
        weights = shown * (values.sum(1) > 0).astype(ms.float32)
        counts = self.counts((weights,))
        logits = self.model.answer_head(fused, mask, points, self.places if self.alike else None)
        return soft_binary_cross_entropy(logits, batch["answer_classes"], values, weights, counts[0])

    def generate(self, batch, fused, mask, shown):
        """Of the tokens of the answers behind [CLS], their ends included."""
        ids, decoder = batch["answer_ids"], self.model.text_decoder
        weights = (batch["answer_mask"][:, 1:].astype(ms.float32) * shown.expand_dims(1)).reshape(-1)
        counts = self.counts((weights,))
        if self.alike:
            logits = decoder.score(ids[:, :-1], decoder.read(fused, self.places), padding_bias(mask))
        else:
            logits = decoder(ids[:, :-1], fused, mask)
        return cross_entropy(logits, ids[:, 1:].reshape(-1), weights, count=counts[0])


def nothing(tokens):
    """Tokens (B, length, D) with a mask of zeros (B, length) int32."""
    return tokens, tokens[:, :, 0].astype(ms.int32)

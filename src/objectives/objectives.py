"""One forward pass for every objective: each token is encoded once per view, and fused once.

The single-modal encoders read the clean view of the batch, with the masked view of the token level's rows appended.
The clean encodings serve the contrastive loss, the modality level (by presence masks) and the sample level (by
permuting rows). The cross-modal encoder runs once, on the stacked rows of all levels (:mod:`src.objectives.levels`)
that have a loss.
"""

from collections.abc import Collection

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.config import ObjectivesConfig
from src.data.schema import AUDIO, COUPLES, IMAGE, JOINT, MODALITIES, TEXT
from src.losses.contrastive import BlockedContrastive, contrastive_loss
from src.losses.positives import alike, same
from src.models.layers import padding_bias
from src.models.opt import OPT
from src.objectives.levels import ModalityLevel, SampleLevel, TokenLevel
from src.objectives.peers import ALONE, Counts, Peers
from src.objectives.table import ENCODERS, HEADS, active_objectives, needed_fields, reached_parts
from src.objectives.views import Views


class Objectives(nn.Cell):
    """The weighted sum of the active losses and each of them.

    Args:
        model: the network.
        config: weights and shares of the batch; an objective of weight 0 is left out of the graph.
        batch_size: B.
        peers: the other ranks: contrastive candidates are theirs too, and each loss is the mean over all ranks' items.
        absent: modalities that no sample has: they are neither encoded nor compared.

    Inputs:
        batch: dict of the tensors that :func:`needed_fields` names.

    Outputs:
        total () float32, then the loss of every active objective, () float32, in :func:`active_objectives`' order. On
        several ranks their mean over the ranks is the loss of the whole batch, whatever the ranks' samples have.
    """

    def __init__(
        self, model: OPT, config: ObjectivesConfig, batch_size: int, peers: Peers = ALONE, absent: Collection[int] = ()
    ) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.gather, self.counts = model, peers.gather(), Counts(peers)
        self.names, self.absent = active_objectives(config), frozenset(absent)
        self.fields = needed_fields(config, model.image_input, self.absent)
        self.weights = tuple(float(getattr(config.weights, name)) for name in self.names)
        self.contrasts = "contrastive" in self.names
        self.blocked_contrastive = BlockedContrastive()
        self.embeds = self.contrasts or "matching" in self.names
        gone = self.absent | ({JOINT} if self.absent & {TEXT, AUDIO} else set())
        self.couples = tuple(couple for couple in COUPLES if not gone & set(couple))
        self.embed_dim = model.text_head.project.weight.shape[0]
        # in the order of their losses
        levels = [kind(model, config, batch_size) for kind in (TokenLevel, SampleLevel, ModalityLevel)]
        self.levels = nn.CellList([level for level in levels if level.names], auto_prefix=False)
        self.single_modality = self._find_single_modality(config)
        if self.single_modality is not None:
            self.single_modality_positions = Tensor(model.cross_encoder.single_modality_positions(self.single_modality))
        read = {TEXT, IMAGE, AUDIO} if self.embeds else set()
        # only what a loss reads is encoded
        self.reads = frozenset(read.union(*(level.reads for level in self.levels))) - self.absent
        self.views = Views(model, batch_size, self.reads, levels[0] if levels[0].names else None)

    def _find_single_modality(self, config: ObjectivesConfig) -> int | None:
        """The modality that is the only one in every fused row; None if rows differ or show several."""
        given = config.denoise_text.given
        if [level.names for level in self.levels] != [("denoise_text",)] or len(set(given)) > 1:
            return None
        names = given[0].split("+")
        return MODALITIES.index(names[0]) if len(names) == 1 else None

    def trained_parts(self) -> frozenset[str]:
        """The model's parts that some active objective trains."""
        parts = reached_parts(self.names).union(ENCODERS[which] for level in self.levels for which in level.reads)
        return parts - {part for which in self.absent for part in (ENCODERS[which], HEADS[which])}

    def construct(self, batch):
        views = self.views(batch)
        embeddings, states, counts = self.plan(batch, views[0])
        losses = ()
        if self.contrasts:
            losses = (self.contrastive(batch, embeddings, counts[0]),)
        return self.add_up((*losses, *self.level_losses(batch, views, views[0], embeddings, states, counts)))

    def plan(self, batch, clean):
        """What the losses of a batch share: embeddings, what each level samples, and each loss' count."""
        embeddings = None
        if self.embeds:
            embeddings = self.embed(clean)
        states = ()
        for level in self.levels:
            states = (*states, level.state(batch, embeddings))
        return embeddings, states, self.counts(self.item_weights(batch, states))

    def item_weights(self, batch, states):
        """One tensor for each loss: what its items weigh."""
        weights = ()
        if self.contrasts:
            weights = (contrastive_queries(batch["presence"], self.couples),)
        for i in range(len(self.levels)):
            weights = (*weights, *self.levels[i].weights(batch, states[i]))
        return weights

    def add_up(self, losses):
        """The weighted sum, then each loss."""
        return (weighted_sum(losses, self.weights), *losses)

    def embed(self, clean):
        """Unit vectors (B, E) of text, image and audio, B as in the tokens; zeros where all lack the modality."""
        text, image, audio, text_mask, image_mask, audio_mask = clean
        model = self.model
        embedded_text = embedded_image = embedded_audio = ops.zeros((text.shape[0], self.embed_dim), ms.float32)
        if TEXT not in self.absent:
            embedded_text = model.embed_text(text, text_mask)
        if IMAGE not in self.absent:
            embedded_image = model.embed_image(image, image_mask)
        if AUDIO not in self.absent:
            embedded_audio = model.embed_audio(audio, audio_mask)
        return embedded_text, embedded_image, embedded_audio

    def level_losses(self, batch, views, whole, embeddings, states, counts):
        """The losses of all levels, from one pass of the cross-modal encoder over all their rows.

        Args:
            batch: of these rows.
            views: of them, as :class:`src.objectives.views.Views` gives them.
            whole: the clean views of the whole batch.
            embeddings: of the whole batch.
            states: what each level has sampled for these rows.
            counts: of every loss, that of the contrastive one included.
        """
        if len(self.levels) == 0:
            return ()
        if self.single_modality is not None:
            return (self.single_modality_loss(batch, views[0], counts[int(self.contrasts)]),)
        stacks = ((), (), (), (), (), (), ())
        for i in range(len(self.levels)):
            stacks = _append(stacks, self.levels[i].rows(batch, views, whole, states[i]))
        fused, mask = self.model.cross_encoder(*[_stack(parts) for parts in stacks])
        losses = ()
        first, place = 0, int(self.contrasts)  # of a level's rows in the stack, and of its losses
        for i in range(len(self.levels)):
            level, state = self.levels[i], states[i]
            last, end = first + level.count, place + len(level.names)
            shares = level.weights(batch, state), counts[place:end]
            found = level.losses(batch, views[0], embeddings, fused[first:last], mask[first:last], state, *shares)
            losses = (*losses, *found)
            first, place = last, end
        return losses

    def single_modality_loss(self, batch, clean, count):
        """The modality level where its rows show one modality: fused at its own length, with the same result."""
        level = self.levels[0]
        _, image, audio, _, image_mask, audio_mask = clean
        n = level.text_from
        if self.single_modality == IMAGE:
            tokens, mask = image[n:], image_mask[n:]
        else:
            tokens, mask = audio[n:], audio_mask[n:]
        fused, mask = self.model.cross_encoder.fuse_single_modality(tokens, mask, self.single_modality)
        decoder = self.model.text_decoder
        logits = decoder.score(
            level.input_ids(batch), decoder.read(fused, self.single_modality_positions), padding_bias(mask)
        )
        return level.text_loss(batch, logits, level.weights(batch, ())[0], count)

    def contrastive(self, batch, embeddings, queries):
        """Mean over the queries of all directions, so that every pair weighs the same; negatives come from all ranks.

        Text and speech belong together by caption: what another caption of the image says is another text. Everything
        else belongs together by image or by equal text.
        """
        scale = self.model.scale()
        images, texts, presence = batch["image_id"], batch["text_id"], batch["presence"]
        all_images, all_texts, all_presence, all_embeddings = images, texts, presence, embeddings
        if self.gather is not None:
            marks = self.gather(ops.concat((images.reshape(-1, 1), texts.reshape(-1, 1), presence), 1))
            all_images, all_texts, all_presence = marks[:, 0], marks[:, 1], marks[:, 2:]
            all_embeddings = (self.gather(embeddings[0]), self.gather(embeddings[1]), self.gather(embeddings[2]))
        same_text, together = None, None  # a large global batch holds no tensor of all its pairs
        blocked = images.shape[0] * all_images.shape[0] > self.blocked_contrastive.largest
        if not blocked:
            same_text = same(texts, all_texts).astype(ms.float32)  # (B, G)
            together = alike(images, texts, all_images, all_texts).astype(ms.float32)
        embeddings, presence = self.with_joint(embeddings, presence)
        all_embeddings, all_presence = self.with_joint(all_embeddings, all_presence)
        total = 0.0
        for couple in self.couples:
            for x, y in (couple, couple[::-1]):
                sides, present = (embeddings[x], all_embeddings[y]), presence[:, x] * presence[:, y]
                if blocked:
                    first, all_first = (images, all_images) if IMAGE in couple else (texts, all_texts)
                    ids = (ops.stack((first, texts), 1), ops.stack((all_first, all_texts), 1))
                    found = self.blocked_contrastive(*sides, present, all_presence[:, y], scale, *ids)
                else:
                    positive = together if IMAGE in couple else same_text
                    found = contrastive_loss(*sides, positive, present, all_presence[:, y], scale)
                total = total + found
        return total / queries

    def with_joint(self, embeddings, presence):
        """Text, image, audio and joint embeddings (B, E), and which of the four a sample has, (B, 4)."""
        joint = self.model.embed_joint(embeddings[TEXT], embeddings[AUDIO])
        return (*embeddings, joint), with_both(presence)


def weighted_sum(losses, weights):
    """Σ of one loss or more, each times its weight."""
    total = losses[0] * weights[0]
    for i in range(1, len(weights)):
        total = total + losses[i] * weights[i]
    return total


def with_both(presence):
    """(B, 3) int32: which modalities a sample has → (B, 4), with text and audio as one."""
    return ops.concat((presence, presence[:, TEXT : TEXT + 1] * presence[:, AUDIO : AUDIO + 1]), 1)


def contrastive_queries(presence, couples):
    """(B,) float32: in how many directions a sample is a query. What has both of a couple is one each way."""
    presence, queries = with_both(presence), 0
    for couple in couples:
        queries = queries + 2 * presence[:, couple[0]] * presence[:, couple[1]]
    return queries.astype(ms.float32)


def _append(stacks, rows):
    """Adds a level's seven tensors to the seven stacks."""
    grown = ()
    for i in range(7):
        grown = (*grown, (*stacks[i], rows[i]))
    return grown


def _stack(parts):
    return parts[0] if len(parts) == 1 else ops.concat(parts, 0)

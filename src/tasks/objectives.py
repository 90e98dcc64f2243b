"""One forward for every objective: each token is encoded once a view, and fused once.

The single-modal encoders run on the clean view of the batch and, for the token level, on the masked view of the text.
The clean encodings serve the contrastive loss, the modality level (by presence masks) and the sample level (by
permuting rows). The cross-modal encoder runs once, on the stacked rows of the levels that have a weight.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import OBJECTIVES, ObjectivesConfig
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.losses.classification import cross_entropy
from src.losses.contrastive import contrastive_loss
from src.losses.matching import build_rows
from src.models.layers import padding_bias
from src.models.opt import OPT

CLEAN_FIELDS = ("image_id", "presence", "text_ids", "text_mask", "image", "audio", "audio_frames")
# parts of the model whose parameters an objective's gradient reaches
ENCODERS = frozenset({"text_encoder", "image_encoder", "audio_encoder"})
REACHED = {
    "contrastive": ENCODERS | {"text_head", "image_head", "audio_head", "scale"},
    "mlm": ENCODERS | {"cross_encoder", "masked_text_head"},
    "matching": ENCODERS | {"cross_encoder", "matching_head"},
    "denoise_text": frozenset({"cross_encoder", "text_decoder"}),  # and the encoders of what it is given
}
LEVEL_FIELDS = {
    "mlm": ("mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"),
    "denoise_text": ("denoise_presence",),
    "matching": ("match_case", "match_presence", "match_noise"),
}


def active_objectives(config: ObjectivesConfig) -> tuple[str, ...]:
    """Names of the objectives whose weight is not 0, in the order of the losses."""
    return tuple(name for name in OBJECTIVES if getattr(config, name) > 0)


def needed_fields(config: ObjectivesConfig) -> tuple[str, ...]:
    """The batch fields that the active objectives read."""
    names = active_objectives(config)
    return CLEAN_FIELDS + tuple(field for name, fields in LEVEL_FIELDS.items() if name in names for field in fields)


def level_rows(batch_size: int, fraction: float) -> int:
    """How many rows of a batch a level reads (at least one)."""
    return max(1, round(batch_size * fraction))


class Objectives(nn.Cell):
    """The weighted sum of the active losses and each of them.

    Args:
        model: the network.
        config: weights and shares of the batch; an objective of weight 0 is not in the graph.
        batch_size: B.
        gather: joins a tensor's rows over all ranks (:class:`src.training.ranks.GatherRows`), or None.

    Inputs:
        batch: dict of the tensors that :func:`needed_fields` names.

    Outputs:
        total () float32, then the loss of every active objective, () float32, in :func:`active_objectives`' order.
    """

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int, gather: nn.Cell | None = None) -> None:
        super().__init__()
        self.model, self.gather = model, gather
        self.names, self.fields = active_objectives(config), needed_fields(config)
        self.weights = tuple(float(getattr(config, name)) for name in self.names)
        self.contrasts, self.matches = "contrastive" in self.names, "matching" in self.names
        self.masks, self.denoises = "mlm" in self.names, "denoise_text" in self.names
        self.token_rows = level_rows(batch_size, config.token_fraction)
        self.modality_rows = level_rows(batch_size, config.modality_fraction)
        self.sample_rows = level_rows(batch_size, config.sample_fraction)
        given = config.denoise_given if self.denoises else ()
        self.lone = None  # the modality that every fused row shows alone, if the losses leave it at that
        if not (self.masks or self.matches) and given in (("image",), ("audio",)):
            self.lone = MODALITIES.index(given[0])
            self.lone_places = Tensor(model.cross_encoder.places_alone(self.lone))
        fuses_pairs = self.contrasts or self.masks or self.matches
        self.reads = {  # what no active loss reads is not encoded
            "text_encoder": self.contrasts or self.matches,
            "image_encoder": fuses_pairs or any("image" in name for name in given),
            "audio_encoder": fuses_pairs or any("audio" in name for name in given),
        }
        self.no_text = _zeros(batch_size, model.text_encoder)
        self.no_image = _zeros(batch_size, model.image_encoder)
        self.no_audio = _zeros(batch_size, model.audio_encoder)
        self.no_sound = Tensor(np.zeros(self.no_audio.shape[:2], np.int32))
        self.batch_size = batch_size
        self.smoothing = config.label_smoothing

    def trained_parts(self) -> frozenset[str]:
        """The model's parts that some active objective trains."""
        given = {name for name in ("image_encoder", "audio_encoder") if self.reads[name] and self.denoises}
        return frozenset(given).union(*(REACHED[name] for name in self.names))

    def construct(self, batch):
        clean = self.encode(batch)
        embeddings = None
        if self.contrasts or self.matches:
            embeddings = self.embed(clean)
        fused, mask, matched = None, None, None
        if self.lone is not None:
            fused, mask = self.fuse_lone(clean)
        elif self.masks or self.denoises or self.matches:
            fused, mask, matched = self.fuse(batch, clean, embeddings)

        losses = ()
        row = 0  # the first of a level's rows in the stack
        if self.contrasts:
            losses = (*losses, self.contrastive(batch, embeddings))
        if self.masks:
            losses = (*losses, self.mlm(batch, fused[: self.token_rows]))
            row = row + self.token_rows
        if self.matches:
            losses = (*losses, self.matching(batch, fused[row : row + self.sample_rows, 0], embeddings, matched))
            row = row + self.sample_rows
        if self.denoises:
            losses = (*losses, self.denoise_text(batch, fused[row:], mask[row:]))

        total = losses[0] * self.weights[0]
        for i in range(1, len(self.weights)):
            total = total + losses[i] * self.weights[i]
        return (total, *losses)

    def encode(self, batch):
        """The clean view: tokens and masks of the three modalities; zeros where nothing reads them."""
        model, reads = self.model, self.reads
        text_mask = batch["text_mask"]
        text, image, audio, audio_mask = self.no_text, self.no_image, self.no_audio, self.no_sound
        if reads["text_encoder"]:
            text = model.text_encoder(batch["text_ids"], text_mask)
        if reads["image_encoder"]:
            image = model.image_encoder(batch["image"])
        if reads["audio_encoder"]:
            audio, audio_mask = model.audio_encoder(batch["audio"], batch["audio_frames"])
        return text, image, audio, text_mask, audio_mask

    def embed(self, clean):
        """Unit vectors (B, E) of text, image and audio."""
        text, image, audio, text_mask, audio_mask = clean
        model = self.model
        return model.embed_text(text, text_mask), model.embed_image(image), model.embed_audio(audio, audio_mask)

    def fuse(self, batch, clean, embeddings):
        """The cross-modal encoder on the stacked rows: token level, sample level, modality level.

        Returns fused (R, L, D), its mask (R, L), and the sample level's indices and weights.
        """
        text, image, audio, text_mask, audio_mask = clean
        stacks = ((), (), (), (), (), ())
        matched = None
        if self.masks:
            n = self.token_rows
            hidden = self.model.text_encoder(batch["mlm_ids"][:n], text_mask[:n])
            rows = (hidden, image[:n], audio[:n], text_mask[:n], audio_mask[:n], batch["presence"][:n])
            stacks = _append(stacks, rows)
        if self.matches:
            n = self.sample_rows
            matched = self.match_rows(batch, embeddings)
            rows = (
                ops.gather(text, matched[0], 0),
                ops.gather(image, matched[1], 0),
                ops.gather(audio, matched[2], 0),
                ops.gather(text_mask, matched[0], 0),
                ops.gather(audio_mask, matched[2], 0),
                batch["match_presence"][:n],
            )
            stacks = _append(stacks, rows)
        if self.denoises:
            n = self.batch_size - self.modality_rows  # the last rows: the token and sample levels read the first
            presence = batch["denoise_presence"][n:]
            stacks = _append(stacks, (text[n:], image[n:], audio[n:], text_mask[n:], audio_mask[n:], presence))
        fused, mask = self.model.cross_encoder(*[_stack(parts) for parts in stacks])
        return fused, mask, matched

    def fuse_lone(self, clean):
        """The modality level's rows when all show the same single modality: at its own length, the same numbers.

        Returns fused (R, 3 + length, D) and its mask (R, 3 + length).
        """
        _, image, audio, _, audio_mask = clean
        n = self.batch_size - self.modality_rows
        if self.lone == IMAGE:
            return self.model.cross_encoder.fuse_alone(image[n:], ops.ones(image.shape[:2], ms.int32)[n:], IMAGE)
        return self.model.cross_encoder.fuse_alone(audio[n:], audio_mask[n:], AUDIO)

    def match_rows(self, batch, embeddings):
        text, image, audio = embeddings
        n = self.sample_rows
        return build_rows(
            batch["match_case"][:n],
            batch["match_presence"][:n],
            batch["image_id"],
            batch["presence"],
            text,
            image,
            audio,
            ops.stop_gradient(self.model.scale()),
            batch["match_noise"][:n],
        )

    def contrastive(self, batch, embeddings):
        """Mean over the six directions between text, image and audio; negatives come from all ranks."""
        scale = self.model.scale()
        ids, presence = batch["image_id"], batch["presence"]
        all_ids, all_presence, all_embeddings = ids, presence, embeddings
        if self.gather is not None:
            all_ids, all_presence = self.gather(ids), self.gather(presence)
            all_embeddings = (self.gather(embeddings[0]), self.gather(embeddings[1]), self.gather(embeddings[2]))
        total = 0.0
        for x, y in ((TEXT, IMAGE), (IMAGE, TEXT), (TEXT, AUDIO), (AUDIO, TEXT), (IMAGE, AUDIO), (AUDIO, IMAGE)):
            total = total + contrastive_loss(
                embeddings[x],
                all_embeddings[y],
                ids,
                all_ids,
                presence[:, x] * presence[:, y],
                all_presence[:, y],
                scale,
            )
        return total / 6.0

    def mlm(self, batch, fused):
        n = self.token_rows
        logits = self.model.masked_text_logits(fused, batch["mlm_positions"][:n])
        return cross_entropy(logits, batch["mlm_labels"][:n].reshape(-1), batch["mlm_weights"][:n].reshape(-1))

    def matching(self, batch, cls, embeddings, matched):
        n = self.sample_rows
        presence = batch["match_presence"][:n]
        text, image, audio = embeddings
        logits = self.model.matching_head(
            cls,
            ops.gather(text, matched[0], 0),
            ops.gather(image, matched[1], 0),
            ops.gather(audio, matched[2], 0),
            presence,
        )
        weights = matched[3] * (presence.sum(1) > 1).astype(ms.float32)
        return cross_entropy(logits, batch["match_case"][:n], weights)

    def denoise_text(self, batch, fused, mask):
        n = self.batch_size - self.modality_rows
        ids, text_mask = batch["text_ids"][n:], batch["text_mask"][n:]
        given = (batch["denoise_presence"][n:].sum(1) > 0).astype(ms.float32).reshape(-1, 1)
        decoder = self.model.text_decoder
        if self.lone is None:
            logits = decoder(ids[:, :-1], fused, mask)  # (R·(T−1), V)
        else:
            logits = decoder.score(ids[:, :-1], decoder.read(fused, self.lone_places), padding_bias(mask))
        weights = text_mask[:, 1:].astype(ms.float32) * given
        return cross_entropy(logits, ids[:, 1:].reshape(-1), weights.reshape(-1), self.smoothing)


def _zeros(batch_size: int, encoder: nn.Cell) -> Tensor:
    """(B, length, D) in place of an encoder's tokens."""
    return Tensor(np.zeros((batch_size, *encoder.positions.shape[1:]), np.float32))


def _append(stacks, rows):
    """Adds a level's six tensors to the six stacks."""
    grown = ()
    for i in range(6):
        grown = (*grown, (*stacks[i], rows[i]))
    return grown


def _stack(parts):
    return parts[0] if len(parts) == 1 else ops.concat(parts, 0)

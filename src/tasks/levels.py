"""The three levels of pre-training: which rows each sends through the cross-modal encoder, and its losses on them.

A level is a Cell with ``names``, its active losses in their order; ``reads``, the modalities whose clean tokens it
reads; ``count``, how many fused rows it takes; ``rows``, their seven tensors (tokens of text, image and audio, their
masks, presence) from the views of :mod:`src.tasks.views`, with whatever its losses need again; and ``losses`` on what
came back, (count, L, D) and (count, L).
Letters as in :mod:`src.models.opt`.
"""

import mindspore as ms
from mindspore import nn, ops

from src.config import ObjectivesConfig
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.losses.classification import cross_entropy
from src.losses.generation import code_loss
from src.losses.masked import feature_regression, frame_contrastive, normalised
from src.losses.matching import build_rows
from src.models.layers import at
from src.models.opt import OPT
from src.tasks.layout import level_rows

TOKEN_LOSSES = ("mlm", "mvm_code", "mvm_feature", "mvm_class", "mam_feature", "mam_contrastive")
SAMPLE_LOSSES = ("matching",)
MODALITY_LOSSES = ("denoise_text", "denoise_image")


def _active(config: ObjectivesConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if getattr(config, name) > 0)


class TokenLevel(nn.Cell):
    """Masked language, image and audio modelling, on rows whose words, patches and frames are hidden together.

    What is hidden is hidden before the encoders; what a modality's losses leave alone keeps its clean tokens. The
    targets of the regression are the clean view's tokens, without gradient; of regions and of a sound's frames that
    another network has made, those features themselves.

    Args:
        model: the network.
        config: weights, shares and the temperature of the frames.
        batch_size: B.
    """

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, _active(config, TOKEN_LOSSES)
        self.count = level_rows(batch_size, config.token_fraction)
        self.temperature = config.mam_temperature
        self.hides_text = "mlm" in self.names
        self.hides_image = any(name.startswith("mvm") for name in self.names)
        self.hides_audio = "mam_feature" in self.names or "mam_contrastive" in self.names
        # what is hidden is read clean only as a target
        image_target = "mvm_feature" in self.names and not model.regional
        context = {
            TEXT: not self.hides_text,
            IMAGE: not self.hides_image or image_target,
            AUDIO: not self.hides_audio or not model.framed,
        }
        self.reads = frozenset(which for which, read in context.items() if read)

    def rows(self, batch, views, embeddings):
        return (*views[1], batch["presence"][: self.count]), ()

    def losses(self, batch, clean, embeddings, fused, mask, state):
        n, found = self.count, ()
        if self.hides_text:
            weights = batch["mlm_weights"][:n].reshape(-1)
            found = (*found, cross_entropy(self.words(batch, fused), batch["mlm_labels"][:n].reshape(-1), weights))
        if "mvm_code" in self.names:
            logits, codes = self.codes(batch, fused)
            weights = batch["mvm_weights"][:n].reshape(-1) * (codes >= 0).astype(ms.float32)
            found = (*found, cross_entropy(logits, ops.relu(codes), weights))
        if "mvm_feature" in self.names:
            predicted, target = self.patches(batch, clean, fused)
            found = (*found, feature_regression(predicted, target, batch["mvm_weights"][:n]))
        if "mvm_class" in self.names:
            logits, classes = self.classes(batch, fused)
            weights = batch["mvm_weights"][:n].reshape(-1) * (classes >= 0).astype(ms.float32)
            found = (*found, cross_entropy(logits, ops.relu(classes), weights))
        if self.hides_audio:
            predicted, target = self.frames(batch, clean, fused)
            weights = batch["mam_weights"][:n]
            if "mam_feature" in self.names:
                found = (*found, feature_regression(predicted, target, weights))
            if "mam_contrastive" in self.names:
                found = (*found, frame_contrastive(predicted, target, weights, self.temperature))
        return found

    def words(self, batch, fused):
        """Logits (n·K, V) of the hidden words."""
        return self.model.masked_text_logits(fused, batch["mlm_positions"][: self.count])

    def codes(self, batch, fused):
        """Logits (n·K, codes) of the hidden patches and their codes (n·K,), −1 where there is no picture."""
        positions = batch["mvm_positions"][: self.count]
        hidden = self.model.fused_image(fused, positions)
        codes = ops.gather_elements(batch["image_codes"][: self.count], 1, positions).reshape(-1)
        return self.model.masked_code_head(hidden.reshape(-1, fused.shape[2])), codes

    def classes(self, batch, fused):
        """Logits (n·K, classes) of the hidden regions and the detector's classes of them (n·K,), −1 where unknown."""
        positions = batch["mvm_positions"][: self.count]
        hidden = self.model.fused_image(fused, positions)
        classes = ops.gather_elements(batch["region_classes"][: self.count], 1, positions).reshape(-1)
        return self.model.masked_class_head(hidden.reshape(-1, fused.shape[2])), classes

    def patches(self, batch, clean, fused):
        """Predicted and true features (n, K, D) of the hidden patches or regions."""
        positions = batch["mvm_positions"][: self.count]
        predicted = self.model.masked_image_head(self.model.fused_image(fused, positions))
        truth = batch["regions"] if self.model.regional else clean[IMAGE]
        return predicted, normalised(at(truth[: self.count], positions))

    def frames(self, batch, clean, fused):
        """Predicted and true features (n, K, D) of the hidden sound tokens."""
        positions = batch["mam_positions"][: self.count]
        predicted = self.model.masked_audio_head(self.model.fused_audio(fused, positions))
        truth = clean[AUDIO]
        if self.model.framed:
            truth = self.model.audio_encoder.join(batch["audio"])
        return predicted, normalised(at(truth[: self.count], positions))


class SampleLevel(nn.Cell):
    """Five-way matching on rows that in-batch permutation has mixed. Arguments: as :class:`TokenLevel`."""

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, _active(config, SAMPLE_LOSSES)
        self.count = level_rows(batch_size, config.sample_fraction)
        self.reads = frozenset({TEXT, IMAGE, AUDIO})

    def rows(self, batch, views, embeddings):
        n = self.count
        text, image, audio, text_mask, image_mask, audio_mask = views[0]
        matched = build_rows(
            batch["match_case"][:n],
            batch["match_presence"][:n],
            batch["image_id"],
            batch["presence"],
            embeddings[0],
            embeddings[1],
            embeddings[2],
            ops.stop_gradient(self.model.scale()),
            batch["match_noise"][:n],
        )
        rows = (
            ops.gather(text, matched[0], 0),
            ops.gather(image, matched[1], 0),
            ops.gather(audio, matched[2], 0),
            ops.gather(text_mask, matched[0], 0),
            ops.gather(image_mask, matched[1], 0),
            ops.gather(audio_mask, matched[2], 0),
            batch["match_presence"][:n],
        )
        return rows, matched

    def losses(self, batch, clean, embeddings, fused, mask, state):
        logits, weights = self.answers(batch, embeddings, fused, state)
        return (cross_entropy(logits, batch["match_case"][: self.count], weights),)

    def answers(self, batch, embeddings, fused, state):
        """Logits (n, 5) of the cases and weights (n,): 0 where a row shows too little or the batch held no negative."""
        presence = batch["match_presence"][: self.count]
        text, image, audio = embeddings
        logits = self.model.matching_head(
            fused[:, 0],
            ops.gather(text, state[0], 0),
            ops.gather(image, state[1], 0),
            ops.gather(audio, state[2], 0),
            presence,
        )
        return logits, state[3] * (presence.sum(1) > 1).astype(ms.float32)


class ModalityLevel(nn.Cell):
    """Denoising: rows whose text is absent write it, rows whose picture is absent draw it, code by code.

    Writing reads ``modality_fraction`` of the batch, its last rows, drawing ``draw_fraction``, the rows before them,
    whether the other is switched on or not. Arguments: as :class:`TokenLevel`.
    """

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, _active(config, MODALITY_LOSSES)
        self.writes, self.draws = "denoise_text" in self.names, "denoise_image" in self.names
        self.written = level_rows(batch_size, config.modality_fraction)  # R
        self.drawn = level_rows(batch_size, config.draw_fraction)  # R'
        self.count = self.written * self.writes + self.drawn * self.draws
        self.smoothing = config.label_smoothing
        self.write_from = batch_size - self.written
        self.draw_from = max(0, self.write_from - self.drawn)
        given = {"denoise_text": config.denoise_given, "denoise_image": config.draw_given}
        shown = "+".join("+".join(given[name]) for name in self.names)
        self.reads = frozenset(which for which, name in enumerate(MODALITIES) if name in shown)

    def rows(self, batch, views, embeddings):
        w, d = self.write_from, self.draw_from
        if self.writes and self.draws:
            both = ()
            for tokens in views[0]:
                both = (*both, ops.concat((tokens[w:], tokens[d : d + self.drawn]), 0))
            presence = ops.concat((batch["denoise_presence"][w:], batch["draw_presence"][d : d + self.drawn]), 0)
            return (*both, presence), ()
        first, name = (w, "denoise_presence") if self.writes else (d, "draw_presence")
        last = first + self.count
        part = ()
        for tokens in views[0]:
            part = (*part, tokens[first:last])
        return (*part, batch[name][first:last]), ()

    def losses(self, batch, clean, embeddings, fused, mask, state):
        found = ()
        if self.writes:
            n = self.written
            logits = self.model.text_decoder(self.input_ids(batch), fused[:n], mask[:n])  # (R·(T−1), V)
            found = (*found, self.text_loss(batch, logits))
        if self.draws:
            n = self.drawn
            codes = batch["image_codes"][self.draw_from : self.draw_from + n]  # (R', P'); −1 where there is no picture
            decoder = self.model.image_decoder
            logits = decoder(decoder.shift(codes), fused[-n:], mask[-n:])  # (R'·P', K)
            found = (*found, code_loss(logits, codes))
        return found

    def input_ids(self, batch):
        return batch["text_ids"][self.write_from :, :-1]

    def text_loss(self, batch, logits):
        w = self.write_from
        given = (batch["denoise_presence"][w:].sum(1) > 0).astype(ms.float32).reshape(-1, 1)
        weights = batch["text_mask"][w:, 1:].astype(ms.float32) * given
        return cross_entropy(logits, batch["text_ids"][w:, 1:].reshape(-1), weights.reshape(-1), self.smoothing)

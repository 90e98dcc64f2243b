"""The three levels of pre-training: which rows each sends through the cross-modal encoder, and its losses on them.

A level is a Cell with

- ``names``: its active losses, in their order;
- ``reads``: the modalities whose clean tokens it reads;
- ``count``: how many rows of the cross-modal encoder it takes;
- ``state``: what the level samples, by the embeddings of the whole batch;
- ``rows``: their seven tensors (tokens of text, image and audio, the three masks, presence), made from the views of
  :mod:`src.objectives.views` and the clean views of the whole batch, of which these rows may be a part;
- ``weights``: one tensor for each loss, 0 where an item does not count: a loss is the mean over its items;
- ``losses``: of the fused rows (count, L, D) and their mask (count, L), with these weights and the count by which the
  sum of each loss is divided.

Letters as in :mod:`src.models.opt`.
"""

import mindspore as ms
from mindspore import nn, ops

from src.config import ObjectivesConfig
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.losses.classification import cross_entropy
from src.losses.masked import feature_regression, frame_contrastive, in_company, normalised
from src.models.layers import gather_positions
from src.models.opt import OPT
from src.objectives.hard_negatives import build_rows
from src.objectives.table import MODALITY, SAMPLE, TOKEN, active_objectives, level_rows


class TokenLevel(nn.Cell):
    """Masked language, image and audio modelling, on rows whose words, patches and audio tokens are masked together.

    Inputs are masked before the encoders; a modality without an active loss keeps its clean tokens. The targets of the
    regression are the clean view's tokens, without gradient. Where regions or precomputed audio features are read,
    these are the targets themselves.

    Args:
        model: the network.
        config: weights, shares and the temperature of mam_contrastive.
        batch_size: B.
    """

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, active_objectives(config, TOKEN)
        self.count = level_rows(batch_size, config.masking.batch_share)
        self.temperature = config.masking.temperature
        self.masks_text = "mlm" in self.names
        self.masks_image = any(name.startswith("mvm") for name in self.names)
        self.masks_audio = "mam_feature" in self.names or "mam_contrastive" in self.names
        # a masked modality is read clean only as a target
        image_target = "mvm_feature" in self.names and not model.region_features
        context = {
            TEXT: not self.masks_text,
            IMAGE: not self.masks_image or image_target,
            AUDIO: not self.masks_audio or not model.audio_features,
        }
        self.reads = frozenset(which for which, read in context.items() if read)

    def state(self, batch, embeddings):
        return ()

    def rows(self, batch, views, whole, state):
        return (*views[1], batch["presence"][: self.count])

    def weights(self, batch, state):
        n, found = self.count, ()
        if self.masks_text:
            found = (*found, batch["mlm_weights"][:n].reshape(-1))
        if "mvm_code" in self.names:
            known = (self.masked(batch, "image_codes") >= 0).astype(ms.float32)
            found = (*found, batch["mvm_weights"][:n].reshape(-1) * known)
        if "mvm_feature" in self.names:
            found = (*found, batch["mvm_weights"][:n])
        if "mvm_class" in self.names:
            known = (self.masked(batch, "region_classes") >= 0).astype(ms.float32)
            found = (*found, batch["mvm_weights"][:n].reshape(-1) * known)
        if "mam_feature" in self.names:
            found = (*found, batch["mam_weights"][:n])
        if "mam_contrastive" in self.names:
            found = (*found, in_company(batch["mam_weights"][:n]))
        return found

    def losses(self, batch, clean, embeddings, fused, mask, state, weights, counts):
        n, found = self.count, ()
        if self.masks_text:
            labels, at = batch["mlm_labels"][:n].reshape(-1), len(found)
            found = (*found, cross_entropy(self.words(batch, fused), labels, weights[at], count=counts[at]))
        if "mvm_code" in self.names:
            (logits, codes), at = self.codes(batch, fused), len(found)
            found = (*found, cross_entropy(logits, ops.relu(codes), weights[at], count=counts[at]))
        if "mvm_feature" in self.names:
            (predicted, target), at = self.patches(batch, clean, fused), len(found)
            found = (*found, feature_regression(predicted, target, weights[at], counts[at]))
        if "mvm_class" in self.names:
            (logits, classes), at = self.classes(batch, fused), len(found)
            found = (*found, cross_entropy(logits, ops.relu(classes), weights[at], count=counts[at]))
        if self.masks_audio:
            predicted, target = self.frames(batch, clean, fused)
            if "mam_feature" in self.names:
                at = len(found)
                found = (*found, feature_regression(predicted, target, weights[at], counts[at]))
            if "mam_contrastive" in self.names:
                at, slots = len(found), batch["mam_weights"][:n]
                found = (*found, frame_contrastive(predicted, target, slots, self.temperature, counts[at]))
        return found

    def masked(self, batch, name):
        """(n·K,) int32: the masked patches' or regions' values of a field (B, length)."""
        positions = batch["mvm_positions"][: self.count]
        return ops.gather_elements(batch[name][: self.count], 1, positions).reshape(-1)

    def words(self, batch, fused):
        """Logits (n·K, V) of the masked words."""
        return self.model.masked_text_logits(fused, batch["mlm_positions"][: self.count])

    def codes(self, batch, fused):
        """Logits (n·K, codes) of the masked patches and their codes (n·K,), −1 where there is no image."""
        positions = batch["mvm_positions"][: self.count]
        hidden = self.model.fused_image(fused, positions)
        return self.model.masked_code_head(hidden.reshape(-1, fused.shape[2])), self.masked(batch, "image_codes")

    def classes(self, batch, fused):
        """Logits (n·K, classes) of the masked regions and the detector's classes of them (n·K,), −1 where unknown."""
        positions = batch["mvm_positions"][: self.count]
        hidden = self.model.fused_image(fused, positions)
        return self.model.masked_class_head(hidden.reshape(-1, fused.shape[2])), self.masked(batch, "region_classes")

    def patches(self, batch, clean, fused):
        """Predicted and true features (n, K, D) of the masked patches or regions."""
        positions = batch["mvm_positions"][: self.count]
        predicted = self.model.masked_image_head(self.model.fused_image(fused, positions))
        truth = batch["regions"] if self.model.region_features else clean[IMAGE]
        return predicted, normalised(gather_positions(truth[: self.count], positions))

    def frames(self, batch, clean, fused):
        """Predicted and true features (n, K, D) of the masked audio tokens."""
        positions = batch["mam_positions"][: self.count]
        predicted = self.model.masked_audio_head(self.model.fused_audio(fused, positions))
        truth = clean[AUDIO]
        if self.model.audio_features:
            truth = self.model.audio_encoder.join(batch["audio"])
        return predicted, normalised(gather_positions(truth[: self.count], positions))


class SampleLevel(nn.Cell):
    """Five-way matching on rows that in-batch permutation has mixed. Arguments: as :class:`TokenLevel`."""

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, active_objectives(config, SAMPLE)
        self.count = level_rows(batch_size, config.matching.batch_share)
        self.reads = frozenset({TEXT, IMAGE, AUDIO})

    def state(self, batch, embeddings):
        """Which text, image and audio of the batch each row is made of, and whether that is a row: 4 × (n,)."""
        n = self.count
        return build_rows(
            batch["match_case"][:n],
            batch["match_presence"][:n],
            batch["image_id"],
            batch["text_id"],
            batch["presence"],
            embeddings[TEXT],
            embeddings[IMAGE],
            embeddings[AUDIO],
            ops.stop_gradient(self.model.scale()),
            batch["match_noise"][:n],
        )

    def rows(self, batch, views, whole, state):
        text, image, audio, text_mask, image_mask, audio_mask = whole
        text_index, image_index, audio_index, _ = state
        return (
            ops.gather(text, text_index, 0),
            ops.gather(image, image_index, 0),
            ops.gather(audio, audio_index, 0),
            ops.gather(text_mask, text_index, 0),
            ops.gather(image_mask, image_index, 0),
            ops.gather(audio_mask, audio_index, 0),
            batch["match_presence"][: self.count],
        )

    def weights(self, batch, state):
        """(n,): 0 where a row shows too little, or the batch held no negative."""
        shown = (batch["match_presence"][: self.count].sum(1) > 1).astype(ms.float32)
        return (state[3] * shown,)

    def losses(self, batch, clean, embeddings, fused, mask, state, weights, counts):
        logits = self.answers(batch, embeddings, fused, state)
        return (cross_entropy(logits, batch["match_case"][: self.count], weights[0], count=counts[0]),)

    def answers(self, batch, embeddings, fused, state):
        """Logits (n, 5) of the cases."""
        text, image, audio = embeddings
        text_index, image_index, audio_index, _ = state
        return self.model.matching_head(
            fused[:, 0],
            ops.gather(text, text_index, 0),
            ops.gather(image, image_index, 0),
            ops.gather(audio, audio_index, 0),
            batch["match_presence"][: self.count],
        )


class ModalityLevel(nn.Cell):
    """Denoising: the text of some rows is generated from their other modalities, the image of others code by code.

    denoise_text reads the last rows of the batch and denoise_image those before them, each its ``batch_share``, whether
    the other is active or not. Arguments: as :class:`TokenLevel`.
    """

    def __init__(self, model: OPT, config: ObjectivesConfig, batch_size: int) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.names = model, active_objectives(config, MODALITY)
        self.makes_text, self.makes_image = "denoise_text" in self.names, "denoise_image" in self.names
        self.text_rows = level_rows(batch_size, config.denoise_text.batch_share)  # R
        self.image_rows = level_rows(batch_size, config.denoise_image.batch_share)  # R'
        self.count = self.text_rows * self.makes_text + self.image_rows * self.makes_image
        self.smoothing = config.denoise_text.label_smoothing
        self.text_from = batch_size - self.text_rows
        self.image_from = max(0, self.text_from - self.image_rows)
        given = {"denoise_text": config.denoise_text.given, "denoise_image": config.denoise_image.given}
        shown = "+".join("+".join(given[name]) for name in self.names)
        self.reads = frozenset(which for which, name in enumerate(MODALITIES) if name in shown)

    def state(self, batch, embeddings):
        return ()

    def rows(self, batch, views, whole, state):
        text, image = self.text_from, self.image_from
        image_end = image + self.image_rows
        if self.makes_text and self.makes_image:
            both = ()
            for tokens in views[0]:
                both = (*both, ops.concat((tokens[text:], tokens[image:image_end]), 0))
            presence = ops.concat(
                (batch["denoise_text_presence"][text:], batch["denoise_image_presence"][image:image_end]), 0
            )
            return (*both, presence)
        first, name = (text, "denoise_text_presence") if self.makes_text else (image, "denoise_image_presence")
        last = first + self.count
        part = ()
        for tokens in views[0]:
            part = (*part, tokens[first:last])
        return (*part, batch[name][first:last])

    def weights(self, batch, state):
        """Of the words behind [CLS] of rows that are given something, and of the codes of rows that have an image.

        Images are generated from nothing, too: that teaches the unconditional branch of classifier-free guidance.
        """
        found = ()
        if self.makes_text:
            first = self.text_from
            given = (batch["denoise_text_presence"][first:].sum(1) > 0).astype(ms.float32).reshape(-1, 1)
            found = (*found, (batch["text_mask"][first:, 1:].astype(ms.float32) * given).reshape(-1))
        if self.makes_image:
            found = (*found, (self.codes(batch) >= 0).astype(ms.float32).reshape(-1))
        return found

    def losses(self, batch, clean, embeddings, fused, mask, state, weights, counts):
        found = ()
        if self.makes_text:
            n = self.text_rows
            logits = self.model.text_decoder(self.input_ids(batch), fused[:n], mask[:n])  # (R·(T−1), V)
            found = (*found, self.text_loss(batch, logits, weights[0], counts[0]))
        if self.makes_image:
            n, codes, at = self.image_rows, self.codes(batch), len(found)
            decoder = self.model.image_decoder
            logits = decoder(decoder.shift(codes), fused[-n:], mask[-n:])  # (R'·P', K)
            found = (*found, cross_entropy(logits, ops.relu(codes).reshape(-1), weights[at], count=counts[at]))
        return found

    def codes(self, batch):
        """(R', P') int32; −1 where there is no image."""
        return batch["image_codes"][self.image_from : self.image_from + self.image_rows]

    def input_ids(self, batch):
        return batch["text_ids"][self.text_from :, :-1]

    def text_loss(self, batch, logits, weights, count):
        return cross_entropy(
            logits, batch["text_ids"][self.text_from :, 1:].reshape(-1), weights, self.smoothing, count
        )

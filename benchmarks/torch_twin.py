"""The losses of a pre-training step in PyTorch: the yardstick of :mod:`benchmarks.train_step`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torch_network import MASKED, OPT
from src.config import Config
from src.data.schema import AUDIO, COUPLES, IMAGE, MATCH_CASES, TEXT
from src.objectives.table import active_objectives, level_rows

FORBIDDEN = -1e9
Batch = dict[str, Tensor]


class Objectives(nn.Module):
    """As :class:`src.objectives.objectives.Objectives` on one device: batch → total loss."""

    def __init__(self, model: OPT, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config.objectives
        self.names = active_objectives(config.objectives)
        size = config.data.batch_size
        self.token_rows = level_rows(size, self.config.masking.batch_share)
        self.sample_rows = level_rows(size, self.config.matching.batch_share)
        self.text_rows = level_rows(size, self.config.denoise_text.batch_share)
        self.image_rows = level_rows(size, self.config.denoise_image.batch_share)
        self.text_from = size - self.text_rows
        self.image_from = max(0, self.text_from - self.image_rows)

    def forward(self, batch: Batch) -> Tensor:
        model = self.model
        text = model.text_encoder(batch["text_ids"], batch["text_mask"])
        image = model.image_encoder(batch["image"])
        audio, audio_mask = model.audio_encoder(batch["audio"], batch["audio_frames"])
        clean = (text, image, audio, batch["text_mask"], audio_mask)
        embeddings = (
            model.text_head(text, batch["text_mask"]),
            model.image_head(image, torch.ones(image.shape[:2], device=image.device)),
            model.audio_head(audio, audio_mask),
        )
        stacks, losses, indices = [], {}, ()
        n, w, d = self.token_rows, self.text_rows, self.image_rows
        token_level = {"mlm", "mvm_code", "mvm_feature", "mam_feature", "mam_contrastive"} & set(self.names)
        if token_level:
            stacks.append((*self.masked_view(batch, clean), batch["presence"][:n]))
        if "matching" in self.names:
            *indices, valid = self.match_rows(batch, embeddings)
            rows = (x[i] for x, i in zip(clean, [*indices, indices[0], indices[2]], strict=True))
            stacks.append((*rows, batch["match_presence"][: self.sample_rows]))
        for name, first, rows, shown in (
            ("denoise_text", self.text_from, w, "denoise_text_presence"),
            ("denoise_image", self.image_from, d, "denoise_image_presence"),
        ):
            if name in self.names:
                stacks.append((*(x[first : first + rows] for x in clean), batch[shown][first : first + rows]))
        if stacks:
            fused, mask = model.cross_encoder(*(torch.cat(parts) for parts in zip(*stacks, strict=True)))
        if "contrastive" in self.names:
            losses["contrastive"] = self.contrastive(batch, embeddings)
        if token_level:
            losses |= self.masked_losses(batch, clean, fused[:n])
            fused, mask = fused[n:], mask[n:]
        if "matching" in self.names:
            r = self.sample_rows
            chosen = (x[i] for x, i in zip(embeddings, indices, strict=True))
            presence = batch["match_presence"][:r]
            logits = model.matching_head(fused[:r, 0], *chosen, presence)
            losses["matching"] = cross_entropy(logits, batch["match_case"][:r], valid * (presence.sum(1) > 1))
            fused, mask = fused[r:], mask[r:]
        if "denoise_text" in self.names:
            losses["denoise_text"] = self.denoise_text(batch, fused[:w], mask[:w])
        if "denoise_image" in self.names:
            codes = batch["image_codes"][self.image_from : self.image_from + d]
            logits = model.image_decoder(codes, fused[-d:], mask[-d:])
            known = (codes >= 0).float().flatten()
            losses["denoise_image"] = cross_entropy(logits, codes.clamp(min=0).flatten(), known)
        return sum(getattr(self.config.weights, name) * loss for name, loss in losses.items())

    def contrastive(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scale, presence = self.model.scale(), batch["presence"]
        same_text = batch["text_id"][:, None] == batch["text_id"][None]
        together = same_text | (batch["image_id"][:, None] == batch["image_id"][None])
        embeddings = (*embeddings, F.normalize(embeddings[TEXT] + embeddings[AUDIO], dim=1))
        presence = torch.cat([presence, presence[:, [TEXT]] * presence[:, [AUDIO]]], 1)
        total, queries = 0.0, 0
        for x, y in (*COUPLES, *(couple[::-1] for couple in COUPLES)):
            candidate = presence[None, :, y].float()
            logits = embeddings[x] @ embeddings[y].T * scale + (1 - candidate) * MASKED
            positive = (together if IMAGE in (x, y) else same_text).float() * candidate
            target = positive / positive.sum(1, keepdim=True).clamp(min=1)
            losses = -(target * logits.log_softmax(1)).sum(1)
            asked = (presence[:, x] * presence[:, y]).float()
            total, queries = total + (losses * asked).sum(), queries + asked.sum()
        return total / queries.clamp(min=1)

    def match_rows(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """As :func:`src.objectives.hard_negatives.build_rows`."""
        n, have = self.sample_rows, batch["presence"].float()
        images, texts = batch["image_id"], batch["text_id"]
        other = ((images[:, None] != images[None]) & (texts[:, None] != texts[None])).float()
        case, shown, noise = batch["match_case"][:n], batch["match_presence"][:n], batch["match_noise"][:n]
        scale = self.model.scale().detach() ** 0.5
        text, image, audio = (x.detach() * scale for x in embeddings)

        def sample(similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
            return (similarity + noise + (1 - allowed) * FORBIDDEN).argmax(1), (allowed.sum(1) > 0).float()

        none = case == MATCH_CASES.index("none")
        other_text = sample(image[:n] @ text.T, other[:n] * have[:, TEXT])
        other_image = sample(text[:n] @ image.T, other[:n] * have[:, IMAGE])
        reads = shown[:, TEXT] > 0
        third = torch.where((none & reads & (shown[:, IMAGE] > 0))[:, None], other[other_image[0]], 1.0)
        resembled = torch.where(reads[:, None], text[:n], image[:n])
        other_audio = sample(resembled @ audio.T, other[:n] * third * have[:, AUDIO])
        own, valid, rows = torch.arange(n, device=none.device), torch.ones(n, device=none.device), []
        swaps = (
            (other_text, case == MATCH_CASES.index("image+audio"), TEXT),
            (other_image, none & reads | (case == MATCH_CASES.index("text+audio")), IMAGE),
            (other_audio, none | (case == MATCH_CASES.index("text+image")), AUDIO),
        )
        for (index, found), swapped, which in swaps:
            swap = swapped & (shown[:, which] > 0)
            rows.append(torch.where(swap, index, own))
            valid = valid * torch.where(swap, found, 1.0)
        return [*rows, valid]

    def masked_view(self, batch: Batch, clean: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The token level's rows with words, patches and audio tokens masked where a loss asks for it."""
        n, model, names = self.token_rows, self.model, self.names
        text, image, audio, text_mask, audio_mask = (x[:n] for x in clean)
        if "mlm" in names:
            text = model.text_encoder(batch["mlm_ids"][:n], text_mask)
        if "mvm_code" in names or "mvm_feature" in names:
            masked = slots_to_mask(batch["mvm_positions"][:n], batch["mvm_weights"][:n], image.shape[1])
            image = model.image_encoder(batch["image"][:n], masked, model.masked_image_head.vector)
        if "mam_feature" in names or "mam_contrastive" in names:
            masked = slots_to_mask(batch["mam_positions"][:n], batch["mam_weights"][:n], audio.shape[1])
            mask_token = model.masked_audio_head.vector
            audio, _ = model.audio_encoder(batch["audio"][:n], batch["audio_frames"][:n], masked, mask_token)
        return text, image, audio, text_mask, audio_mask

    def masked_losses(self, batch: Batch, clean: tuple[Tensor, ...], fused: Tensor) -> dict[str, Tensor]:
        """The token level's losses by name."""
        n, model, losses = self.token_rows, self.model, {}
        if "mlm" in self.names:
            hidden = at(fused, batch["mlm_positions"][:n] + 1).flatten(0, 1)  # the text follows the [CLS]
            logits = model.masked_text_head(hidden, model.text_encoder.tokens)
            labels, weights = batch["mlm_labels"][:n].flatten(), batch["mlm_weights"][:n].flatten()
            losses["mlm"] = cross_entropy(logits, labels, weights)
        if "mvm_code" in self.names or "mvm_feature" in self.names:
            places, weights = batch["mvm_positions"][:n], batch["mvm_weights"][:n]
            hidden = at(fused, places + model.first_image)
            if "mvm_code" in self.names:
                codes = batch["image_codes"][:n].gather(1, places.long()).flatten()
                known = weights.flatten() * (codes >= 0)
                logits = model.masked_code_head(hidden.flatten(0, 1))
                losses["mvm_code"] = cross_entropy(logits, codes.clamp(min=0), known)
            if "mvm_feature" in self.names:
                target = normalised(at(clean[1][:n], places))
                losses["mvm_feature"] = regression(model.masked_image_head(hidden), target, weights)
        if "mam_feature" in self.names or "mam_contrastive" in self.names:
            places, weights = batch["mam_positions"][:n], batch["mam_weights"][:n]
            predicted = model.masked_audio_head(at(fused, places + model.first_audio))
            target = normalised(at(clean[2][:n], places))
            if "mam_feature" in self.names:
                losses["mam_feature"] = regression(predicted, target, weights)
            if "mam_contrastive" in self.names:
                cosine = F.normalize(predicted, dim=-1) @ F.normalize(target, dim=-1).transpose(1, 2)
                logits = cosine / self.config.masking.temperature + (1 - weights[:, None]) * MASKED
                costs = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2)
                counted = weights * (weights.sum(1, keepdim=True) > 1)
                losses["mam_contrastive"] = (costs * counted).sum() / counted.sum().clamp(min=1)
        return losses

    def denoise_text(self, batch: Batch, fused: Tensor, mask: Tensor) -> Tensor:
        n = self.text_from
        ids, text_mask = batch["text_ids"][n:], batch["text_mask"][n:]
        given = (batch["denoise_text_presence"][n:].sum(1, keepdim=True) > 0).float()
        logits = self.model.text_decoder(ids[:, :-1], fused, mask)
        weights = (text_mask[:, 1:] * given).flatten()
        return cross_entropy(logits, ids[:, 1:].flatten(), weights, self.config.denoise_text.label_smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    losses = F.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def at(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions.long()[..., None].expand(-1, -1, tokens.shape[2]))  # (B, K, D)


def slots_to_mask(positions: Tensor, weights: Tensor, length: int) -> Tensor:
    return weights.new_zeros(len(positions), length).scatter_add_(1, positions.long(), weights)


def normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features.detach(), features.shape[-1:], eps=1e-6)


def regression(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    return (((predicted - target) ** 2).mean(-1) * weights).sum() / weights.sum().clamp(min=1)

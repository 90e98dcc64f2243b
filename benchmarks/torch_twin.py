"""The same network and losses in PyTorch: the yardstick of :mod:`benchmarks.train_step`.

Modules and parameters bear the names of :class:`src.models.opt.OPT`, so that its weights load as they are and the
losses can be compared. Letters as there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.config import Config, ModelConfig
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.tasks.levels import level_rows
from src.tasks.objectives import COUPLES, active_objectives

MASKED, FORBIDDEN = -1e4, -1e9
Batch = dict[str, Tensor]


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = table(width), table(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gain, self.shift)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(memory_width, width), nn.Linear(memory_width, width)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(memory), self.value(memory))
        )  # (B, H, L, D/H)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, config, memory_width: int | None) -> None:
        super().__init__()
        width = config.width
        self.attention, self.attention_norm = Attention(width, config.heads, width), LayerNorm(width)
        self.crosses = memory_width is not None
        if self.crosses:
            self.cross_attention = Attention(width, config.heads, memory_width)
            self.cross_norm = LayerNorm(width)
        self.ffn, self.ffn_norm = FeedForward(width, config.ffn), LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor | None, memory: Tensor | None, memory_bias: Tensor | None) -> Tensor:
        normal = self.attention_norm(x)
        x = x + self.attention(normal, normal, bias)
        if self.crosses:
            x = x + self.cross_attention(self.cross_norm(x), memory, memory_bias)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, config, memory_width: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, memory_width) for _ in range(config.layers))
        self.final_norm = LayerNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor | None, memory=None, memory_bias=None) -> Tensor:
        for block in self.blocks:
            x = block(x, bias, memory, memory_bias)
        return self.final_norm(x)


def padding_bias(mask: Tensor) -> Tensor:
    return ((1.0 - mask.float()) * MASKED)[:, None, None]  # (B, 1, 1, L)


class TextEncoder(nn.Module):
    def __init__(self, config, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = table(vocab_size, config.width), table(1, config.max_len, config.width)
        self.norm, self.transformer = LayerNorm(config.width), Transformer(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.transformer(self.norm(F.embedding(ids, self.tokens) + self.positions), padding_bias(mask))


class ImageEncoder(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.patch, self.side = config.patch, config.size // config.patch
        self.project = nn.Linear(config.patch**2 * 3, config.width)
        self.positions, self.transformer = table(1, self.side**2, config.width), Transformer(config)

    def forward(self, image: Tensor, hidden: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        x = image.float() / 127.5 - 1.0
        x = x.view(-1, self.side, self.patch, self.side, self.patch, 3).transpose(2, 3)
        x = self.project(x.reshape(-1, self.side**2, self.patch**2 * 3))  # (B, P, D)
        if hidden is not None:
            x = torch.where(hidden[..., None] > 0, vector, x)
        return self.transformer(x + self.positions, None)


class AudioEncoder(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.stride, self.tokens = config.stride, config.max_frames // config.stride
        self.project = nn.Linear(config.stride * config.mels, config.width)
        self.positions, self.transformer = table(1, self.tokens, config.width), Transformer(config)

    def forward(
        self, audio: Tensor, frames: Tensor, hidden: Tensor | None = None, vector: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(self.tokens)[None] * self.stride < frames[:, None]).int()
        x = self.project((audio.float() / 127.5 - 1.0).view(len(audio), self.tokens, -1))
        if hidden is not None:
            x = torch.where(hidden[..., None] > 0, vector, x)
        return self.transformer(x + self.positions, padding_bias(mask)), mask


class CrossEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.cross.width
        self.text_project = nn.Linear(config.text.width, width)
        self.image_project = nn.Linear(config.image.width, width)
        self.audio_project = nn.Linear(config.audio.width, width)
        self.cls, self.modality, self.absent = table(1, 1, width), table(3, 1, 1, width), table(3, 1, 1, width)
        self.transformer = Transformer(config.cross)

    def place(self, tokens: Tensor, mask: Tensor, presence: Tensor, which: int) -> tuple[Tensor, Tensor]:
        here = presence[:, which, None]  # (B, 1)
        first = torch.zeros_like(mask)
        first[:, 0] = 1
        missing = (first * (1 - here))[..., None] * self.absent[which]
        return (tokens + self.modality[which]) * here[..., None] + missing, mask * here + first * (1 - here)

    def forward(self, text, image, audio, text_mask, audio_mask, presence) -> tuple[Tensor, Tensor]:
        ones = torch.ones(image.shape[:2], dtype=torch.int32)
        placed = [
            self.place(self.text_project(text), text_mask, presence, TEXT),
            self.place(self.image_project(image), ones, presence, IMAGE),
            self.place(self.audio_project(audio), audio_mask, presence, AUDIO),
        ]
        tokens = torch.cat([self.cls.expand(len(text), -1, -1), *(x for x, _ in placed)], 1)
        mask = torch.cat([ones[:, :1], *(x for _, x in placed)], 1)
        return self.transformer(tokens, padding_bias(mask)), mask


class EmbeddingHead(nn.Module):
    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask.float()[..., None]
        x = self.project((tokens * weights).sum(1) / weights.sum(1).clamp(min=1))
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = table()

    def forward(self) -> Tensor:
        return self.log_scale.clamp(0, 4.6051702).exp()


class MaskedTextHead(nn.Module):
    def __init__(self, width: int, text_width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform, self.norm = nn.Linear(width, text_width), LayerNorm(text_width)
        self.bias = table(vocab_size)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(hidden))), tokens, self.bias)


class MaskedFeatureHead(nn.Module):
    def __init__(self, width: int, encoder_width: int) -> None:
        super().__init__()
        self.vector = table(1, 1, encoder_width)
        self.transform, self.project = nn.Linear(width, width), nn.Linear(width, encoder_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.project(F.gelu(self.transform(hidden)))


class MaskedCodeHead(nn.Module):
    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.transform, self.norm, self.classify = nn.Linear(width, width), LayerNorm(width), nn.Linear(width, codes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.classify(self.norm(F.gelu(self.transform(hidden))))


class MatchingHead(nn.Module):
    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.join, self.classify = nn.Linear(width + 3 * embed_dim, width), nn.Linear(width, len(MATCH_CASES))

    def forward(self, cls: Tensor, text: Tensor, image: Tensor, audio: Tensor, presence: Tensor) -> Tensor:
        text, image, audio = (x * presence[:, i : i + 1] for i, x in enumerate((text, image, audio)))
        pairs = torch.cat((text * image, text * audio, image * audio), 1).detach() * text.shape[1] ** 0.5
        return self.classify(F.gelu(self.join(torch.cat((cls, pairs), 1))))


class TextDecoder(nn.Module):
    def __init__(self, config: ModelConfig, vocab_size: int, memory_len: int) -> None:
        super().__init__()
        width, memory_width = config.text_decoder.width, config.cross.width
        self.tokens, self.positions = table(vocab_size, width), table(1, config.text.max_len, width)
        self.memory_positions = table(1, memory_len, memory_width)
        self.transformer = Transformer(config.text_decoder, memory_width)
        self.output_bias = table(vocab_size)

    def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        causal = torch.full((length, length), MASKED).triu(1)[None, None]
        x = F.embedding(ids, self.tokens) + self.positions[:, :length]
        x = self.transformer(x, causal, memory + self.memory_positions, padding_bias(mask))
        return F.linear(x, self.tokens, self.output_bias).flatten(0, 1)  # (B·T', V)


class ImageDecoder(nn.Module):
    def __init__(self, config: ModelConfig, memory_len: int) -> None:
        super().__init__()
        width, side, self.codes = config.image_decoder.width, config.tokenizer.side, config.tokenizer.codes
        self.tokens, self.output_bias = table(self.codes + 1, width), table(self.codes)
        self.row_positions, self.column_positions = table(side, 1, width), table(1, side, width)
        self.memory_positions = table(1, memory_len, config.cross.width)
        self.transformer = Transformer(config.image_decoder, config.cross.width)

    def forward(self, codes: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        length = codes.shape[1]
        ids = torch.cat((torch.full_like(codes[:, :1], self.codes), codes[:, :-1].clamp(min=0)), 1)
        causal = torch.full((length, length), MASKED).triu(1)[None, None]
        x = F.embedding(ids, self.tokens) + (self.row_positions + self.column_positions).flatten(0, 1)
        x = self.transformer(x, causal, memory + self.memory_positions, padding_bias(mask))
        return F.linear(x, self.tokens[: self.codes], self.output_bias).flatten(0, 1)  # (B·P', K)


class OPT(nn.Module):
    """The network; only pre-norm without dropout, which is what the benchmark measures."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        text, image, audio, cross = config.text, config.image, config.audio, config.cross
        length = 1 + text.max_len + (image.size // image.patch) ** 2 + audio.max_frames // audio.stride
        self.text_encoder = TextEncoder(text, vocab_size)
        self.image_encoder = ImageEncoder(image)
        self.audio_encoder = AudioEncoder(audio)
        self.text_head = EmbeddingHead(text.width, config.embed_dim)
        self.image_head = EmbeddingHead(image.width, config.embed_dim)
        self.audio_head = EmbeddingHead(audio.width, config.embed_dim)
        self.scale = Scale()
        self.cross_encoder = CrossEncoder(config)
        self.masked_text_head = MaskedTextHead(cross.width, text.width, vocab_size)
        if config.masked_features:
            self.masked_image_head = MaskedFeatureHead(cross.width, image.width)
            self.masked_audio_head = MaskedFeatureHead(cross.width, audio.width)
        if config.image_codes:
            self.masked_code_head = MaskedCodeHead(cross.width, config.tokenizer.codes)
            self.image_decoder = ImageDecoder(config, length)
        # where pictures and sounds begin in the fused tokens
        self.first_image = 1 + text.max_len
        self.first_audio = self.first_image + (image.size // image.patch) ** 2
        self.matching_head = MatchingHead(cross.width, config.embed_dim)
        self.text_decoder = TextDecoder(config, vocab_size, length)


class Objectives(nn.Module):
    """As :class:`src.tasks.objectives.Objectives` on one device: batch → total loss."""

    def __init__(self, model: OPT, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config.objectives
        self.names = active_objectives(config.objectives)
        size = config.data.batch_size
        self.token_rows = level_rows(size, self.config.token_fraction)
        self.sample_rows = level_rows(size, self.config.sample_fraction)
        self.write_rows = level_rows(size, self.config.modality_fraction)
        self.draw_rows = level_rows(size, self.config.draw_fraction)
        self.write_from = size - self.write_rows
        self.draw_from = max(0, self.write_from - self.draw_rows)

    def forward(self, batch: Batch) -> Tensor:
        model = self.model
        text = model.text_encoder(batch["text_ids"], batch["text_mask"])
        image = model.image_encoder(batch["image"])
        audio, audio_mask = model.audio_encoder(batch["audio"], batch["audio_frames"])
        clean = (text, image, audio, batch["text_mask"], audio_mask)
        embeddings = (
            model.text_head(text, batch["text_mask"]),
            model.image_head(image, torch.ones(image.shape[:2])),
            model.audio_head(audio, audio_mask),
        )
        stacks, losses, indices = [], {}, ()
        n, w, d = self.token_rows, self.write_rows, self.draw_rows
        token_level = {"mlm", "mvm_code", "mvm_feature", "mam_feature", "mam_contrastive"} & set(self.names)
        if token_level:
            stacks.append((*self.masked_view(batch, clean), batch["presence"][:n]))
        if "matching" in self.names:
            *indices, valid = self.match_rows(batch, embeddings)
            rows = (x[i] for x, i in zip(clean, [*indices, indices[0], indices[2]], strict=True))
            stacks.append((*rows, batch["match_presence"][: self.sample_rows]))
        for name, first, rows, shown in (
            ("denoise_text", self.write_from, w, "denoise_presence"),
            ("denoise_image", self.draw_from, d, "draw_presence"),
        ):
            if name in self.names:
                stacks.append((*(x[first : first + rows] for x in clean), batch[shown][first : first + rows]))
        if stacks:
            fused, mask = model.cross_encoder(*(torch.cat(parts) for parts in zip(*stacks, strict=True)))
        if "contrastive" in self.names:
            losses["contrastive"] = self.contrastive(batch, embeddings)
        if token_level:
            losses |= self.hidden_content(batch, clean, fused[:n])
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
            codes = batch["image_codes"][self.draw_from : self.draw_from + d]
            logits = model.image_decoder(codes, fused[-d:], mask[-d:])
            known = (codes >= 0).float().flatten()
            losses["denoise_image"] = cross_entropy(logits, codes.clamp(min=0).flatten(), known)
        return sum(getattr(self.config, name) * loss for name, loss in losses.items())

    def contrastive(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scale, ids, presence = self.model.scale(), batch["image_id"], batch["presence"]
        embeddings = (*embeddings, F.normalize(embeddings[TEXT] + embeddings[AUDIO], dim=1))
        presence = torch.cat([presence, presence[:, [TEXT]] * presence[:, [AUDIO]]], 1)
        total, directions = 0.0, 0
        for x, y in (*COUPLES, *(couple[::-1] for couple in COUPLES)):
            directions += bool((presence[:, x] * presence[:, y]).any())
            candidate = presence[None, :, y].float()
            logits = embeddings[x] @ embeddings[y].T * scale + (1 - candidate) * MASKED
            positive = (ids[:, None] == ids[None]).float() * candidate
            target = positive / positive.sum(1, keepdim=True).clamp(min=1)
            losses = -(target * logits.log_softmax(1)).sum(1)
            weights = (presence[:, x] * presence[:, y]).float() * positive.sum(1).clamp(max=1)
            total = total + (losses * weights).sum() / weights.sum().clamp(min=1)
        return total / max(directions, 1)

    def match_rows(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """As :func:`src.losses.matching.build_rows`."""
        n, ids, have = self.sample_rows, batch["image_id"], batch["presence"].float()
        case, shown, noise = batch["match_case"][:n], batch["match_presence"][:n], batch["match_noise"][:n]
        scale = self.model.scale().detach() ** 0.5
        text, image, audio = (x.detach() * scale for x in embeddings)
        other = (ids[:n, None] != ids[None]).float()

        def draw(similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
            return (similarity + noise + (1 - allowed) * FORBIDDEN).argmax(1), (allowed.sum(1) > 0).float()

        none = case == MATCH_CASES.index("none")
        other_text = draw(image[:n] @ text.T, other * have[:, TEXT])
        other_image = draw(text[:n] @ image.T, other * have[:, IMAGE])
        third = torch.where(none[:, None], (ids[other_image[0], None] != ids[None]).float(), 1.0)
        other_audio = draw(text[:n] @ audio.T, other * third * have[:, AUDIO])
        own, valid, rows = torch.arange(n), torch.ones(n), []
        swaps = (
            (other_text, case == MATCH_CASES.index("image+audio"), TEXT),
            (other_image, none | (case == MATCH_CASES.index("text+audio")), IMAGE),
            (other_audio, none | (case == MATCH_CASES.index("text+image")), AUDIO),
        )
        for (index, found), swapped, which in swaps:
            swap = swapped & (shown[:, which] > 0)
            rows.append(torch.where(swap, index, own))
            valid = valid * torch.where(swap, found, 1.0)
        return [*rows, valid]

    def masked_view(self, batch: Batch, clean: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The token level's rows with words, patches and frames hidden where a loss asks for them."""
        n, model, names = self.token_rows, self.model, self.names
        text, image, audio, text_mask, audio_mask = (x[:n] for x in clean)
        if "mlm" in names:
            text = model.text_encoder(batch["mlm_ids"][:n], text_mask)
        if "mvm_code" in names or "mvm_feature" in names:
            hidden = slots_to_mask(batch["mvm_positions"][:n], batch["mvm_weights"][:n], image.shape[1])
            image = model.image_encoder(batch["image"][:n], hidden, model.masked_image_head.vector)
        if "mam_feature" in names or "mam_contrastive" in names:
            hidden = slots_to_mask(batch["mam_positions"][:n], batch["mam_weights"][:n], audio.shape[1])
            vector = model.masked_audio_head.vector
            audio, _ = model.audio_encoder(batch["audio"][:n], batch["audio_frames"][:n], hidden, vector)
        return text, image, audio, text_mask, audio_mask

    def hidden_content(self, batch: Batch, clean: tuple[Tensor, ...], fused: Tensor) -> dict[str, Tensor]:
        """The token level's losses by name."""
        n, model, losses = self.token_rows, self.model, {}
        if "mlm" in self.names:
            hidden = at(fused, batch["mlm_positions"][:n] + 1).flatten(0, 1)  # the text stands behind the [CLS]
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
                logits = cosine / self.config.mam_temperature + (1 - weights[:, None]) * MASKED
                costs = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2)
                counted = weights * (weights.sum(1, keepdim=True) > 1)
                losses["mam_contrastive"] = (costs * counted).sum() / counted.sum().clamp(min=1)
        return losses

    def denoise_text(self, batch: Batch, fused: Tensor, mask: Tensor) -> Tensor:
        n = self.write_from
        ids, text_mask = batch["text_ids"][n:], batch["text_mask"][n:]
        given = (batch["denoise_presence"][n:].sum(1, keepdim=True) > 0).float()
        logits = self.model.text_decoder(ids[:, :-1], fused, mask)
        weights = (text_mask[:, 1:] * given).flatten()
        return cross_entropy(logits, ids[:, 1:].flatten(), weights, self.config.label_smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    losses = F.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def at(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens.gather(1, positions.long()[..., None].expand(-1, -1, tokens.shape[2]))  # (B, K, D)


def slots_to_mask(positions: Tensor, weights: Tensor, length: int) -> Tensor:
    return torch.zeros(len(positions), length).scatter_add_(1, positions.long(), weights)


def normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features.detach(), features.shape[-1:], eps=1e-6)


def regression(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    return (((predicted - target) ** 2).mean(-1) * weights).sum() / weights.sum().clamp(min=1)

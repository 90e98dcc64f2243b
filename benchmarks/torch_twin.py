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
from src.tasks.objectives import active_objectives

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

    def forward(self, image: Tensor) -> Tensor:
        x = image.float() / 127.5 - 1.0
        x = x.view(-1, self.side, self.patch, self.side, self.patch, 3).transpose(2, 3)
        x = x.reshape(-1, self.side**2, self.patch**2 * 3)  # (B, P, patch·patch·3)
        return self.transformer(self.project(x) + self.positions, None)


class AudioEncoder(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.stride, self.tokens = config.stride, config.max_frames // config.stride
        self.project = nn.Linear(config.stride * config.mels, config.width)
        self.positions, self.transformer = table(1, self.tokens, config.width), Transformer(config)

    def forward(self, audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(self.tokens)[None] * self.stride < frames[:, None]).int()
        x = self.project((audio.float() / 127.5 - 1.0).view(len(audio), self.tokens, -1))
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
        self.first_modality_row = size - level_rows(size, self.config.modality_fraction)

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
        if "mlm" in self.names:
            n = self.token_rows
            hidden = model.text_encoder(batch["mlm_ids"][:n], batch["text_mask"][:n])
            stacks.append((hidden, *(x[:n] for x in clean[1:]), batch["presence"][:n]))
        if "matching" in self.names:
            *indices, valid = self.match_rows(batch, embeddings)
            rows = (x[i] for x, i in zip(clean, [*indices, indices[0], indices[2]], strict=True))
            stacks.append((*rows, batch["match_presence"][: self.sample_rows]))
        if "denoise_text" in self.names:
            n = self.first_modality_row
            stacks.append((*(x[n:] for x in clean), batch["denoise_presence"][n:]))
        if stacks:
            fused, mask = model.cross_encoder(*(torch.cat(parts) for parts in zip(*stacks, strict=True)))
        if "contrastive" in self.names:
            losses["contrastive"] = self.contrastive(batch, embeddings)
        row = 0
        if "mlm" in self.names:
            losses["mlm"] = self.mlm(batch, fused[: self.token_rows])
            row += self.token_rows
        if "matching" in self.names:
            chosen = (x[i] for x, i in zip(embeddings, indices, strict=True))
            presence = batch["match_presence"][: self.sample_rows]
            logits = model.matching_head(fused[row : row + self.sample_rows, 0], *chosen, presence)
            weights = valid * (presence.sum(1) > 1)
            losses["matching"] = cross_entropy(logits, batch["match_case"][: self.sample_rows], weights)
            row += self.sample_rows
        if "denoise_text" in self.names:
            losses["denoise_text"] = self.denoise_text(batch, fused[row:], mask[row:])
        return sum(getattr(self.config, name) * loss for name, loss in losses.items())

    def contrastive(self, batch: Batch, embeddings: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scale, ids, presence = self.model.scale(), batch["image_id"], batch["presence"]
        total = 0.0
        for x, y in ((TEXT, IMAGE), (IMAGE, TEXT), (TEXT, AUDIO), (AUDIO, TEXT), (IMAGE, AUDIO), (AUDIO, IMAGE)):
            candidate = presence[None, :, y].float()
            logits = embeddings[x] @ embeddings[y].T * scale + (1 - candidate) * MASKED
            positive = (ids[:, None] == ids[None]).float() * candidate
            target = positive / positive.sum(1, keepdim=True).clamp(min=1)
            losses = -(target * logits.log_softmax(1)).sum(1)
            weights = (presence[:, x] * presence[:, y]).float() * positive.sum(1).clamp(max=1)
            total = total + (losses * weights).sum() / weights.sum().clamp(min=1)
        return total / 6

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

    def mlm(self, batch: Batch, fused: Tensor) -> Tensor:
        n = self.token_rows
        places = batch["mlm_positions"][:n].long() + 1  # the text stands behind the [CLS]
        hidden = fused.gather(1, places[..., None].expand(-1, -1, fused.shape[2])).flatten(0, 1)
        logits = self.model.masked_text_head(hidden, self.model.text_encoder.tokens)
        return cross_entropy(logits, batch["mlm_labels"][:n].flatten(), batch["mlm_weights"][:n].flatten())

    def denoise_text(self, batch: Batch, fused: Tensor, mask: Tensor) -> Tensor:
        n = self.first_modality_row
        ids, text_mask = batch["text_ids"][n:], batch["text_mask"][n:]
        given = (batch["denoise_presence"][n:].sum(1, keepdim=True) > 0).float()
        logits = self.model.text_decoder(ids[:, :-1], fused, mask)
        weights = (text_mask[:, 1:] * given).flatten()
        return cross_entropy(logits, ids[:, 1:].flatten(), weights, self.config.label_smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    losses = F.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)
    return (losses * weights).sum() / weights.sum().clamp(min=1)

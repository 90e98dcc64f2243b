"""The network in PyTorch, for :mod:`benchmarks.torch_twin`.

Modules and parameters bear the names of :class:`src.models.opt.OPT`, so that its weights load as they are and the
losses can be compared. Letters as there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.config import ModelConfig
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT

MASKED = -1e4


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
        mask = (torch.arange(self.tokens, device=audio.device)[None] * self.stride < frames[:, None]).int()
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
        ones = torch.ones(image.shape[:2], dtype=torch.int32, device=image.device)
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


class LogitScale(nn.Module):
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
        causal = torch.full((length, length), MASKED, device=ids.device).triu(1)[None, None]
        x = F.embedding(ids, self.tokens) + self.positions[:, :length]
        x = self.transformer(x, causal, memory + self.memory_positions, padding_bias(mask))
        return F.linear(x, self.tokens, self.output_bias).flatten(0, 1)  # (B·T', V)


class ImageDecoder(nn.Module):
    def __init__(self, config: ModelConfig, memory_len: int) -> None:
        super().__init__()
        width, side, self.codes = config.image_decoder.width, config.image_tokenizer.side, config.image_tokenizer.codes
        self.tokens, self.output_bias = table(self.codes + 1, width), table(self.codes)
        self.row_positions, self.column_positions = table(side, 1, width), table(1, side, width)
        self.memory_positions = table(1, memory_len, config.cross.width)
        self.transformer = Transformer(config.image_decoder, config.cross.width)

    def forward(self, codes: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        length = codes.shape[1]
        ids = torch.cat((torch.full_like(codes[:, :1], self.codes), codes[:, :-1].clamp(min=0)), 1)
        causal = torch.full((length, length), MASKED, device=ids.device).triu(1)[None, None]
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
        self.scale = LogitScale()
        self.cross_encoder = CrossEncoder(config)
        self.masked_text_head = MaskedTextHead(cross.width, text.width, vocab_size)
        if config.masked_features:
            self.masked_image_head = MaskedFeatureHead(cross.width, image.width)
            self.masked_audio_head = MaskedFeatureHead(cross.width, audio.width)
        if config.image_codes:
            self.masked_code_head = MaskedCodeHead(cross.width, config.image_tokenizer.codes)
            self.image_decoder = ImageDecoder(config, length)
        # where images and audio clips begin in the fused tokens
        self.first_image = 1 + text.max_len
        self.first_audio = self.first_image + (image.size // image.patch) ** 2
        self.matching_head = MatchingHead(cross.width, config.embed_dim)
        self.text_decoder = TextDecoder(config, vocab_size, length)

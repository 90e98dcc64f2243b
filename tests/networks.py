"""Networks of transformers at tiny sizes, and our encoders of the same sizes that read them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from mindspore import nn

from src.checkpoints.pretrained import init_encoder
from src.config import AudioEncoderConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig
from src.models.audio_encoder import AUDIO_ENCODERS
from src.models.image_encoder import ImageEncoder
from src.models.text_encoder import TextEncoder

VOCAB = 31
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
OURS: dict[str, Any] = {"width": 16, "layers": 2, "heads": 4, "ffn": 20}
POST: dict[str, Any] = {"norm": "post", "eps": 1e-12}
WAVE = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2}
TEXT = TextEncoderConfig(max_len=9, **OURS, **POST)
IMAGE = ImageEncoderConfig(size=16, patch=4, cls_token=True, eps=1e-12, **OURS)
AUDIO = AudioEncoderConfig(
    input="wav2vec2", max_frames=8, norm="post", conv_width=8, position_kernel=6, position_groups=2, **OURS
)


def scrambled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter moved: a gain of one or a bias of zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def bert(head: bool = False, **sizes: Any) -> torch.nn.Module:
    kind = transformers.BertForPreTraining if head else transformers.BertModel
    return kind(transformers.BertConfig(**{"vocab_size": VOCAB, "max_position_embeddings": 12, **SIZES, **sizes}))


def vit(head: bool = False, **sizes: Any) -> torch.nn.Module:
    kind = transformers.ViTForImageClassification if head else transformers.ViTModel
    return kind(transformers.ViTConfig(**{"image_size": 16, "patch_size": 4, **SIZES, **sizes}))


def wav2vec2(head: bool = False, **sizes: Any) -> torch.nn.Module:
    kind = transformers.Wav2Vec2ForPreTraining if head else transformers.Wav2Vec2Model
    return kind(transformers.Wav2Vec2Config(**{**SIZES, **WAVE, **sizes}))


MAKERS = {"text": bert, "image": vit, "audio": wav2vec2}
CONFIGS = {"text": TEXT, "image": IMAGE, "audio": AUDIO}


def model_config(section: str, path: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(**{section: replace(CONFIGS[section], init_from=str(path), **changes)})


def build(section: str, config: ModelConfig, vocab: int = VOCAB) -> nn.Cell:
    part = getattr(config, section)
    return {
        "text": lambda: TextEncoder(part, vocab),
        "image": lambda: ImageEncoder(part),
        "audio": lambda: AUDIO_ENCODERS["wav2vec2"](part),
    }[section]()


def loaded(section: str, path: Path, **changes: Any) -> nn.Cell:
    config = model_config(section, path, **changes)
    encoder = build(section, config)
    init_encoder(encoder, config, section)
    return encoder

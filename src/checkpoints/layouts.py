"""How Hugging Face names the networks that our encoders can be: BERT, ViT and wav2vec 2.0.

A table for each says which of its modules is which of ours; what a table cannot say (two tensors summed, another order
of axes, a table of positions of another length) is a function.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.checkpoints.positions import resize_grid

LEAVES = {"weight": "weight", "bias": "bias", "gain": "weight", "shift": "bias"}  # our parameters → theirs
OUR_LAYER = re.compile(r"transformer\.blocks\.(\d+)\.(.+)")

Convert = Callable[[list[np.ndarray], tuple[int, ...]], np.ndarray]  # their arrays and our shape → our array


def first(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return arrays[0]


def text_positions(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """BERT's first positions, with the embedding that says «first sentence» added to each."""
    table, sentences = arrays
    return (table[: shape[1]] + sentences[0])[None]


def patch_matrix(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A convolution over patches (D, 3, p, p) as the matrix (D, p·p·3) of our order: rows, columns, colours."""
    return arrays[0].transpose(0, 2, 3, 1).reshape(len(arrays[0]), -1)


def cls_vector(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """ViT's [CLS] with its position."""
    token, table = arrays
    return token + table[:, :1]


def image_positions(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """ViT's positions without the [CLS]'s, on a grid of another side if need be."""
    grid = arrays[0][0, 1:]
    if math.isqrt(len(grid)) ** 2 != len(grid):  # does not fit, and is named
        return grid[None]
    return resize_grid(grid, shape[1])[None]


@dataclass(frozen=True)
class Layout:
    """How another library names a network that one of our encoders can be.

    ``modules`` and ``layer`` are the rename tables, ours → theirs, outside the layers and within one; ``special`` maps
    our parameter to the tensors it is made of and how.
    """

    prefix: str  # of the names in a file that holds heads as well
    layers: str  # what a layer's number stands behind
    modules: dict[str, str]
    layer: dict[str, str]
    special: dict[str, tuple[tuple[str, ...], Convert]]
    settings: dict[str, str]  # key of its config.json → field of our section that must be equal
    fixed: dict[str, Any]  # key of its config.json → the only value that our encoder computes
    spellings: tuple[tuple[str, str], ...] = ()  # end of a name as some files have it → as the tables have it

    def sources(self, parameter: str) -> tuple[tuple[str, ...], Convert]:
        """The tensors that one of our parameters is made of; none if the network has no such part."""
        if parameter in self.special:
            return self.special[parameter]
        found = OUR_LAYER.fullmatch(parameter)
        table, start = (self.layer, f"{self.layers}.{found[1]}.") if found else (self.modules, "")
        module, _, leaf = (found[2] if found else parameter).rpartition(".")
        return ((f"{start}{table[module]}.{LEAVES[leaf]}",) if module in table else ()), first

    def plain(self, name: str) -> str:
        """A name of a file as the tables spell it."""
        name = name.removeprefix(f"{self.prefix}.")
        for end, usual in self.spellings:
            if name.endswith(end):
                return name.removesuffix(end) + usual
        return name


BERT = Layout(
    prefix="bert",
    layers="encoder.layer",
    modules={"norm": "embeddings.LayerNorm"},
    layer={
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn.up": "intermediate.dense",
        "ffn.down": "output.dense",
        "ffn_norm": "output.LayerNorm",
    },
    special={
        "tokens": (("embeddings.word_embeddings.weight",), first),
        "positions": (
            ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
            text_positions,
        ),
    },
    settings={"num_attention_heads": "heads", "layer_norm_eps": "eps"},
    fixed={"model_type": "bert", "hidden_act": "gelu"},
    spellings=((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
)
VIT = Layout(
    prefix="vit",
    layers="encoder.layer",
    modules={"transformer.final_norm": "layernorm"},
    layer={
        "attention.query": "attention.attention.query",
        "attention.key": "attention.attention.key",
        "attention.value": "attention.attention.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "ffn.up": "intermediate.dense",
        "ffn.down": "output.dense",
        "ffn_norm": "layernorm_after",
    },
    special={
        "project.weight": (("embeddings.patch_embeddings.projection.weight",), patch_matrix),
        "project.bias": (("embeddings.patch_embeddings.projection.bias",), first),
        "cls": (("embeddings.cls_token", "embeddings.position_embeddings"), cls_vector),
        "positions": (("embeddings.position_embeddings",), image_positions),
    },
    settings={"num_attention_heads": "heads", "layer_norm_eps": "eps"},
    fixed={"model_type": "vit", "hidden_act": "gelu", "num_channels": 3},
)
WAV2VEC2 = Layout(
    prefix="wav2vec2",
    layers="encoder.layers",
    modules={
        "wave_norm": "feature_extractor.conv_layers.0.layer_norm",
        "feature_norm": "feature_projection.layer_norm",
        "project": "feature_projection.projection",
        "norm": "encoder.layer_norm",
    },
    layer={
        "attention.query": "attention.q_proj",
        "attention.key": "attention.k_proj",
        "attention.value": "attention.v_proj",
        "attention.output": "attention.out_proj",
        "attention_norm": "layer_norm",
        "ffn.up": "feed_forward.intermediate_dense",
        "ffn.down": "feed_forward.output_dense",
        "ffn_norm": "final_layer_norm",
    },
    special={
        **{f"convolutions.{i}.weight": ((f"feature_extractor.conv_layers.{i}.conv.weight",), first) for i in range(7)},
        "positions.direction": (("encoder.pos_conv_embed.conv.weight_v",), first),
        "positions.length": (("encoder.pos_conv_embed.conv.weight_g",), first),
        "positions.bias": (("encoder.pos_conv_embed.conv.bias",), first),
    },
    settings={
        "num_attention_heads": "heads",
        "layer_norm_eps": "eps",
        "num_conv_pos_embedding_groups": "position_groups",
    },
    fixed={
        "model_type": "wav2vec2",
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "do_stable_layer_norm": False,
        "conv_bias": False,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    },
    spellings=(
        (".parametrizations.weight.original0", ".weight_g"),
        (".parametrizations.weight.original1", ".weight_v"),
    ),
)
LAYOUTS = {"text": BERT, "image": VIT, "audio": WAV2VEC2}  # by section of the model's configuration

"""The model cut into graphs for deployment, with named inputs and outputs.

    text_encoder     text_ids, text_mask                → text_embedding, text_tokens
    image_encoder    image, or regions, boxes and mask  → image_embedding, image_tokens, image_mask
    audio_encoder    audio, audio_frames                → audio_embedding, audio_tokens, audio_mask
    cross_encoder    tokens, masks and presence         → fused, fused_mask, match_logits
    text_decoder     text_ids, fused, fused_mask        → text_logits
    answer_head      fused, fused_mask, tokens, …       → answer_logits   (where answers are chosen of a list)

The image decoder has no graph (:func:`without_graph`).

Equal names fit together: the encoders feed the cross-modal encoder, which feeds the decoder. Images and log-mel
frames enter as bytes and are scaled inside the graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from mindspore import nn

from src.config import ModelConfig
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT, Field, batch_fields
from src.models.encoding import EncodeAudio, EncodeImage, EncodeText
from src.models.opt import OPT


class CrossGraph(nn.Cell):
    """Inputs of :class:`src.models.cross_encoder.CrossEncoder` → fused (B, L, D), mask (B, L), matching logits (B, 5).

    The embeddings that matching reads are made from the tokens, so that they cannot contradict them.
    """

    def __init__(self, model: OPT) -> None:
        super().__init__()
        self.model = model

    def construct(self, text_tokens, image_tokens, audio_tokens, text_mask, image_mask, audio_mask, presence):
        model = self.model
        tokens = (text_tokens, image_tokens, audio_tokens)
        fused, mask = model.cross_encoder(*tokens, text_mask, image_mask, audio_mask, presence)
        text = model.embed_text(text_tokens, text_mask)
        image = model.embed_image(image_tokens, image_mask)
        audio = model.embed_audio(audio_tokens, audio_mask)
        return fused, mask, model.matching_head(fused[:, 0], text, image, audio, presence)


class DecoderGraph(nn.Cell):
    """text_ids (B, T) int32, fused (B, L, D), fused_mask (B, L) int32 → logits (B, T, V).

    Position i sees the tokens up to i: what stands behind the part that is written so far does no harm.
    """

    def __init__(self, model: OPT) -> None:
        super().__init__()
        self.decoder, self.vocab_size = model.text_decoder, model.vocab_size

    def construct(self, text_ids, fused, fused_mask):
        logits = self.decoder(text_ids, fused, fused_mask)
        return logits.reshape(-1, text_ids.shape[1], self.vocab_size)  # (B, T, V)


class AnswerGraph(nn.Cell):
    """fused (B, L, D), fused_mask (B, L), and what was fused: tokens, masks and presence → logits (B, A).

    Args:
        reads_images: whether questions are answered from images; otherwise the tokens, masks and presence are left out.
    """

    def __init__(self, model: OPT, reads_images: bool) -> None:
        super().__init__()
        self.model, self.reads_images = model, reads_images

    def construct(self, fused, fused_mask, *given):
        points = None
        if self.reads_images:
            text, image, audio, text_mask, image_mask, audio_mask, presence = given
            text, image, audio = (
                (text, text_mask * presence[:, TEXT : TEXT + 1]),
                (image, image_mask * presence[:, IMAGE : IMAGE + 1]),
                (audio, audio_mask * presence[:, AUDIO : AUDIO + 1]),
            )
            points = self.model.points((text, image, audio), (TEXT, IMAGE, AUDIO))
        return self.model.answer_head(fused, fused_mask, points)


@dataclass(frozen=True)
class Graph:
    """A network to export; ``outputs`` says the meaning of what comes out, by name and in order."""

    cell: nn.Cell
    inputs: dict[str, Field]
    outputs: dict[str, str]


def build_graphs(model: OPT, config: ModelConfig, answers_from: Sequence[str] = ()) -> dict[str, Graph]:
    """The graphs by the name of their file.

    Args:
        answers_from: objectives.answer.given, of a model that chooses answers.
    """
    handed = _handed_fields(model, config)
    fields = batch_fields(config, 1, 0.5) | handed
    meanings = {name: field.meaning for name, field in handed.items()}
    meanings |= {
        f"{name}_embedding": "unit vector: dot products are similarities" for name in ("text", "image", "audio")
    }
    meanings["match_logits"] = f"which belong together: {', '.join(MATCH_CASES)}"
    meanings["text_logits"] = "of the token behind each input token"
    meanings["answer_logits"] = "of each line of answers.txt: the largest is the answer"
    cross = ("text_tokens", "image_tokens", "audio_tokens", "text_mask", "image_mask", "audio_mask", "presence")
    plan: dict[str, tuple[Callable[[OPT], nn.Cell], tuple[str, ...], tuple[str, ...]]] = {
        "text_encoder": (EncodeText, ("text_ids", "text_mask"), ("text_embedding", "text_tokens")),
        "image_encoder": (EncodeImage, model.image_fields, ("image_embedding", "image_tokens", "image_mask")),
        "audio_encoder": (EncodeAudio, ("audio", "audio_frames"), ("audio_embedding", "audio_tokens", "audio_mask")),
        "cross_encoder": (CrossGraph, cross, ("fused", "fused_mask", "match_logits")),
        "text_decoder": (DecoderGraph, ("text_ids", "fused", "fused_mask"), ("text_logits",)),
    }
    if answers_from and getattr(model, "answer_head", None) is not None:
        reads_images = any("image" in choice for choice in answers_from)
        inputs = ("fused", "fused_mask", *(cross if reads_images else ()))
        plan["answer_head"] = (partial(AnswerGraph, reads_images=reads_images), inputs, ("answer_logits",))
    return {
        name: Graph(
            kind(model).set_train(False),
            {key: fields[key] for key in inputs},
            {key: meanings[key] for key in outputs},
        )
        for name, (kind, inputs, outputs) in plan.items()
    }


def without_graph(model: OPT) -> list[str]:
    """Parts of a network that generate, and that only Python can use."""
    return [part for part in ("image_decoder",) if getattr(model, part, None) is not None]


def _handed_fields(model: OPT, config: ModelConfig) -> dict[str, Field]:
    """What the graphs hand to each other."""
    length = model.cross_encoder.length
    shapes = {"text": (model.text_len, config.text.width), "image": model.image_shape, "audio": model.audio_shape}
    tokens = {
        f"{name}_tokens": Field(np.float32, shape, f"{name} encoder's; where presence is 0, any finite numbers")
        for name, shape in shapes.items()
    }
    return tokens | {
        "image_mask": Field(np.int32, model.image_shape[:1], "1 on patches or regions"),
        "audio_mask": Field(np.int32, model.audio_shape[:1], "1 on tokens that hold audio"),
        "fused": Field(np.float32, (length, config.cross.width), "[CLS], text, image and audio, fused"),
        "fused_mask": Field(np.int32, (length,), "1 where fused may be attended"),
    }

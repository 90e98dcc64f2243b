"""The batch contract: names, types and shapes of the tensors that the data pipeline hands to the model.

Letters: ``B`` batch, ``T`` text tokens, ``S`` image side in pixels, ``P`` patches or regions, ``M`` audio frames,
``N`` mel bands, ``D`` width of a feature, ``F`` audio tokens, ``K`` masked tokens, ``C`` codes of an image.

A batch is a plain ``dict[str, numpy.ndarray]`` with exactly the fields of :func:`batch_fields`.
"""

import math
from dataclasses import dataclass

import numpy as np

from src.config import AudioEncoderConfig, ModelConfig

TEXT, IMAGE, AUDIO = range(3)  # columns of every presence table
MODALITIES = ("text", "image", "audio")
JOINT = 3  # a text and its speech as one embedding; follows the columns of a presence table
# what retrieval and the contrastive loss compare, each both ways
COUPLES = ((TEXT, IMAGE), (TEXT, AUDIO), (IMAGE, AUDIO), (JOINT, IMAGE))
WORD = 4  # tokens of a long word, for which a text's masked slots have room: jieba's words are seldom longer
# what an image encoder reads, by model.image.input
IMAGE_FIELDS = {"patch": ("image",), "region": ("regions", "region_boxes", "region_mask")}
# kernel and stride of wav2vec 2.0's convolutions over the waveform, the same in all its sizes
WAVE_CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


@dataclass(frozen=True)
class Field:
    """One tensor of a batch: its numpy type and its shape without the batch axis."""

    dtype: type
    shape: tuple[int, ...]
    meaning: str


def masked_slots(max_len: int, mask_ratio: float) -> int:
    """``K``: how many slots for masked positions a row of ``max_len`` tokens has (at least one)."""
    return max(1, round(max_len * mask_ratio))


def masked_word_slots(max_len: int, mask_ratio: float) -> int:
    """``K`` of a text, of which whole words are masked: the last of them may go beyond the ratio of the tokens."""
    return min(max_len, math.ceil(max_len * mask_ratio) + WORD - 1)


def audio_layout(kind: str, mels: int, feature_dim: int) -> tuple[type, tuple[int, ...]]:
    """Type of a stored audio clip and shape of one of its frames, by model.audio.input."""
    layouts = {
        "fbank": (np.uint8, (mels,)),
        "feature": (np.float16, (feature_dim,)),
        "wav2vec2": (np.int16, ()),  # a frame is a sample
    }
    return layouts[kind]


def audio_tokens(audio: AudioEncoderConfig, length: int) -> int:
    """How many tokens an audio clip of ``length`` frames (or samples of a waveform) becomes."""
    if audio.input != "wav2vec2":
        return -(-length // audio.stride)
    for kernel, stride in WAVE_CONVOLUTIONS:
        length = max(0, (length - kernel) // stride + 1)
    return length


def image_fields(model: ModelConfig) -> dict[str, Field]:
    """The fields of an image: pixels, or a detector's regions."""
    image = model.image
    if image.input == "patch":
        return {"image": Field(np.uint8, (image.size, image.size, 3), "RGB, normalised on the device")}
    return {
        "regions": Field(np.float16, (image.regions, image.region_dim), "features of the detector, 0 after the last"),
        "region_boxes": Field(np.float32, (image.regions, 7), "x1, y1, x2, y2, width, height, area; shares of 1"),
        "region_mask": Field(np.int32, (image.regions,), "1 on regions, 0 on padding"),
        "region_classes": Field(np.int32, (image.regions,), "the detector's; −1: unknown"),
    }


AUDIO_MEANING = {
    "fbank": "quantised log-mel frames, 0 after the end",
    "feature": "features of frames, 0 after the end",
    "wav2vec2": "the waveform, 0 after the end",
}


def batch_fields(model: ModelConfig, batch_size: int, mask_ratio: float) -> dict[str, Field]:
    """The fields of a training batch, by name."""
    text, audio = model.text, model.audio
    slots = masked_word_slots(text.max_len, mask_ratio)
    patches = masked_slots(model.image.tokens, mask_ratio)
    frames = masked_slots(audio_tokens(audio, audio.length), mask_ratio)
    dtype, frame = audio_layout(audio.input, audio.mels, audio.feature_dim)
    return {
        "sample_id": Field(np.int32, (), "position of the sample in its split"),
        "image_id": Field(np.int32, (), "equal for samples of the same image, which are never negatives"),
        "text_id": Field(np.int32, (), "equal for samples of equal text (without: of equal audio); 0: neither"),
        "presence": Field(np.int32, (3,), "1 where the sample has text, image, audio"),
        "text_ids": Field(np.int32, (text.max_len,), "[CLS] … [SEP] [PAD] …; a text that is cut has no [SEP]"),
        "text_mask": Field(np.int32, (text.max_len,), "1 on tokens, 0 on padding"),
        **image_fields(model),
        "image_codes": Field(np.int32, (model.image_tokenizer.side**2,), "−1: no image, or no data.codes"),
        "audio": Field(dtype, (audio.length, *frame), AUDIO_MEANING[audio.input]),
        "audio_frames": Field(np.int32, (), "frames (of a waveform: samples) before the padding"),
        "mlm_ids": Field(np.int32, (text.max_len,), "text_ids with whole words masked"),
        "mlm_positions": Field(np.int32, (slots,), "where the masked tokens are; 0 in unused slots"),
        "mlm_labels": Field(np.int32, (slots,), "the tokens that were masked"),
        "mlm_weights": Field(np.float32, (slots,), "1 for a used slot, 0 for an unused one"),
        "mvm_positions": Field(np.int32, (patches,), "masked patches or regions; 0 in unused slots"),
        "mvm_weights": Field(np.float32, (patches,), "1 for a used slot, 0 for an unused one"),
        "mam_positions": Field(np.int32, (frames,), "masked audio tokens; 0 in unused slots"),
        "mam_weights": Field(np.float32, (frames,), "1 for a used slot, 0 for an unused one"),
        "denoise_text_presence": Field(np.int32, (3,), "what text denoising is given; never the text"),
        "denoise_image_presence": Field(np.int32, (3,), "what image denoising is given; never the image"),
        "match_case": Field(np.int32, (), "column of MATCH_CASES"),
        "match_presence": Field(np.int32, (3,), "modalities of the matching row: two or three"),
        "match_noise": Field(np.float32, (batch_size,), "Gumbel noise that samples the hard negatives"),
    }


ANSWER_SLOTS = 10  # different answers to a question that a batch holds: ten people are asked


def answer_fields(model: ModelConfig) -> dict[str, Field]:
    """What a batch of questions with answers has beside :func:`batch_fields`."""
    length = model.text.max_len
    return {
        "answer_given": Field(np.int32, (3,), "what a question is answered from: its text or audio, the image"),
        "answer_classes": Field(np.int32, (ANSWER_SLOTS,), "lines of model.answers; 0 in unused slots"),
        "answer_values": Field(np.float32, (ANSWER_SLOTS,), "what each of them is worth; 0 in unused slots"),
        "answer_ids": Field(np.int32, (length,), "one of the answers, as text_ids"),
        "answer_mask": Field(np.int32, (length,), "1 on tokens, 0 on padding; 0 everywhere without an answer"),
    }


# The five classes of the matching loss: which modalities of a sample belong together.
MATCH_CASES = ("all", "image+audio", "text+audio", "text+image", "none")


def check_batch(batch: dict[str, np.ndarray], fields: dict[str, Field]) -> None:
    """Raises ValueError that names the first field that is missing, unknown, or of another type or shape."""
    for name in fields.keys() ^ batch.keys():
        raise ValueError(f"batch field {name!r} is {'missing' if name in fields else 'not in the schema'}")
    for name, spec in fields.items():
        value = batch[name]
        if value.dtype != spec.dtype or value.shape[1:] != spec.shape:
            raise ValueError(
                f"batch field {name!r} is {value.dtype}{list(value.shape[1:])}, "
                f"the schema says {np.dtype(spec.dtype)}{list(spec.shape)}"
            )

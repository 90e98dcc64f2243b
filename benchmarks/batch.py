"""A batch of a pre-training step, and the larger of the sizes that are timed; no framework is loaded."""

import numpy as np

from src.config import Config, ModelConfig
from src.data.schema import AUDIO, MATCH_CASES, batch_fields, masked_slots
from src.data.tokenizer import Tokenizer

PARTS = ("text", "image", "audio", "cross", "text_decoder", "image_decoder")
LARGER = tuple(f"model.{part}.{size}" for part in PARTS for size in ("width=256", "ffn=1024", "layers=4"))
LARGER += ("model.embed_dim=256", "data.batch_size=32")
Batch = dict[str, np.ndarray]


def make_batch(config: Config, seed: int = 0, audio: bool = True) -> Batch:
    """Samples with all modalities (or no audio): texts and audio clips of half to full length, every level sampled."""
    rng = np.random.default_rng(seed)
    size, model = config.data.batch_size, config.model
    fields = batch_fields(model, size, config.objectives.masking.ratio)
    batch = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in fields.items()}
    shortest = model.text.max_len // 2
    lengths = rng.integers(shortest, model.text.max_len + 1, (size, 1))
    places = np.arange(model.text.max_len)
    batch["text_mask"][:] = places < lengths
    batch["text_ids"][:] = rng.integers(5, Tokenizer(model.text.vocab).size, batch["text_ids"].shape)
    batch["text_ids"] *= batch["text_mask"]
    masked = masked_slots(model.text.max_len, config.objectives.masking.ratio)  # of the slots; the others stay empty
    chosen = 1 + np.argsort(rng.random((size, shortest - 2)), axis=1)[:, :masked]
    batch["mlm_positions"][:, :masked] = chosen
    batch["mlm_labels"][:, :masked] = np.take_along_axis(batch["text_ids"], chosen, 1)
    batch["mlm_ids"][:] = batch["text_ids"]
    np.put_along_axis(batch["mlm_ids"], chosen, 4, 1)
    batch["mlm_weights"][:, :masked] = 1
    batch["image"][:] = rng.integers(0, 256, batch["image"].shape)
    batch["audio_frames"][:] = rng.integers(model.audio.max_frames // 2, model.audio.max_frames + 1, size)
    batch["audio"][:] = rng.integers(0, 256, batch["audio"].shape)
    batch["image_id"][:] = batch["sample_id"][:] = np.arange(size)
    batch["text_id"][:] = 1 + np.arange(size)
    batch["presence"][:] = batch["match_presence"][:] = 1
    batch["denoise_text_presence"][:] = np.array([(0, 1, 1), (0, 1, 0), (0, 0, 1)])[np.arange(size) % 3]
    batch["denoise_image_presence"][:] = np.array([(1, 0, 1), (1, 0, 0), (0, 0, 1)])[np.arange(size) % 3]
    for name, places in (("mvm", (model.image.size // model.image.patch) ** 2), ("mam", shortest_audio(model))):
        slots = batch[f"{name}_positions"].shape[1]
        batch[f"{name}_positions"][:] = np.argsort(rng.random((size, places)), axis=1)[:, :slots]
        batch[f"{name}_weights"][:] = 1
    batch["image_codes"][:] = rng.integers(0, model.image_tokenizer.codes, batch["image_codes"].shape)
    batch["match_case"][:] = np.arange(size) % len(MATCH_CASES)
    batch["match_noise"][:] = rng.gumbel(size=batch["match_noise"].shape)
    if not audio:
        batch["audio_frames"][:] = batch["audio"][:] = batch["presence"][:, AUDIO] = 0
    return batch


def shortest_audio(model: ModelConfig) -> int:
    """Audio tokens that every sample of :func:`make_batch` has."""
    return model.audio.max_frames // 2 // model.audio.stride

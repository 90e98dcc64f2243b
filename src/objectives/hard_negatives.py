"""Sample-level rows: mismatched triplets by permuting the batch's encodings."""

import mindspore as ms
from mindspore import Tensor, ops

from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.losses.positives import alike

FORBIDDEN = -1e9  # added to the score of a candidate that must not be sampled
CASE = {name: number for number, name in enumerate(MATCH_CASES)}


def sample_negative(similarity: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Samples one candidate per row with probability ∝ exp(similarity) among the allowed (the Gumbel-max trick).

    Args:
        similarity: (R, B) float32, scaled; without gradient.
        allowed: (R, B) float32, 1 where the candidate may be sampled.
        noise: (R, B) float32, Gumbel.

    Returns:
        index (R,) int32 and valid (R,) float32, 0 where nothing was allowed.
    """
    scores = similarity + noise + (1.0 - allowed) * FORBIDDEN
    return ops.argmax(scores, 1).astype(ms.int32), (allowed.sum(1) > 0).astype(ms.float32)


def build_rows(
    case: Tensor,
    row_presence: Tensor,
    images: Tensor,
    texts: Tensor,
    presence: Tensor,
    text: Tensor,
    image: Tensor,
    audio: Tensor,
    scale: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which text, image and audio each sample-level row is made of.

    A row starts from its own triplet; what does not belong, by its case, is replaced by a hard negative: a text
    that resembles the row's image, an image or an audio clip that resembles its text. Samples of the same image or of
    equal text are never negatives. In the case ``none`` the text stays, and the three come from three images and have
    three texts. Of image and audio without a text the image stays, and the clip resembles it.

    Args:
        case: (R,) int32, a column of ``schema.MATCH_CASES``.
        row_presence: (R, 3) int32: the modalities that the row shows.
        images, texts: (B,) int32, ``image_id`` and ``text_id``; the rows are the first R samples of the batch.
        presence: (B, 3) int32: what the samples have, so that absent content is never sampled.
        text, image, audio: (B, E) embeddings.
        scale: () logit scale.
        noise: (R, B) Gumbel noise.

    Returns:
        text, image and audio index (R,) int32, and the row's weight (R,) float32: 0 where the batch held no negative.
    """
    rows = case.shape[0]
    have = presence.astype(ms.float32)
    text, image, audio = (ops.stop_gradient(x * scale**0.5) for x in (text, image, audio))
    own = ops.arange(rows).astype(ms.int32)
    other = ops.logical_not(alike(images[:rows], texts[:rows], images, texts)).astype(ms.float32)  # (R, B)

    to_text = ops.matmul(image[:rows], text.T)  # (R, B)
    to_image = ops.matmul(text[:rows], image.T)
    reads = row_presence[:, TEXT].astype(ms.float32).reshape(-1, 1)  # (R, 1)
    to_audio = ops.matmul(text[:rows] * reads + image[:rows] * (1.0 - reads), audio.T)
    other_text, text_valid = sample_negative(to_text, other * have[:, TEXT].reshape(1, -1), noise)
    other_image, image_valid = sample_negative(to_image, other * have[:, IMAGE].reshape(1, -1), noise)
    none = ops.equal(case, CASE["none"]).astype(ms.int32)
    swap_text = ops.equal(case, CASE["image+audio"]).astype(ms.int32) * row_presence[:, TEXT]
    apart_from_text = none * row_presence[:, TEXT]
    swap_image = (ops.equal(case, CASE["text+audio"]).astype(ms.int32) + apart_from_text) * row_presence[:, IMAGE]
    swap_audio = (ops.equal(case, CASE["text+image"]).astype(ms.int32) + none) * row_presence[:, AUDIO]
    # the audio of a row that shows three, none of which match, differs from the replaced image as well
    seen = alike(ops.gather(images, other_image, 0), ops.gather(texts, other_image, 0), images, texts)
    third = 1.0 - seen.astype(ms.float32) * (swap_image * swap_audio).astype(ms.float32).reshape(-1, 1)
    other_audio, audio_valid = sample_negative(to_audio, other * third * have[:, AUDIO].reshape(1, -1), noise)

    valid = _kept(swap_text, text_valid) * _kept(swap_image, image_valid) * _kept(swap_audio, audio_valid)
    return (
        own * (1 - swap_text) + other_text * swap_text,
        own * (1 - swap_image) + other_image * swap_image,
        own * (1 - swap_audio) + other_audio * swap_audio,
        valid,
    )


def _kept(swap: Tensor, valid: Tensor) -> Tensor:
    """1 unless the row needs a negative that the batch does not hold."""
    return 1.0 - swap.astype(ms.float32) * (1.0 - valid)

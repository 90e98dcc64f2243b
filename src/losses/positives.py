"""Which samples of a batch belong together: those of the same image, and those of equal text."""

from mindspore import Tensor, ops


def same(ids: Tensor, others: Tensor) -> Tensor:
    """(A,), (B,) int32 → (A, B) bool, True where the ids are equal."""
    return ops.equal(ids.reshape(-1, 1), others.reshape(1, -1))


def alike(images: Tensor, texts: Tensor, other_images: Tensor, other_texts: Tensor) -> Tensor:
    """(A, B) bool: the same image, or equal text.

    A text id of 0 (neither text nor audio) equals another 0. That does no harm: one of the two compared is always a
    text or an audio clip, whose id is not 0.

    Args:
        images, texts: (A,) int32, the batch's ``image_id`` and ``text_id``.
        other_images, other_texts: (B,) int32.
    """
    return ops.logical_or(same(images, other_images), same(texts, other_texts))

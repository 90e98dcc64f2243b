"""Images as squares of pixels."""

import mindspore as ms


def split_patches(image, side: int, patch: int):
    """(B, S, S, 3) uint8, S = side·patch → (B, side², patch·patch·3) float32 in [−1, 1], row by row from the top."""
    x = image.astype(ms.float32) / 127.5 - 1.0
    x = x.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side**2, patch**2 * 3)

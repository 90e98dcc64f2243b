"""Tables of learned positions at another length, as fine-tuning and pretrained weights need them."""

import math

import numpy as np


def resize_grid(table: np.ndarray, length: int) -> np.ndarray:
    """Positions [S², D] of a square grid, row by row, on a grid of ``length`` places: bicubic along both axes.

    As ViT (Dosovitskiy et al. 2020) and BEiT are fine-tuned with larger images. The table itself if the lengths agree.
    """
    theirs, ours = math.isqrt(len(table)), math.isqrt(length)
    if theirs == ours:
        return table
    matrix = cubic_matrix(theirs, ours)
    grid = table.reshape(theirs, theirs, -1)
    return np.einsum("ij,kl,jld->ikd", matrix, matrix, grid, optimize=True).reshape(length, -1)


def resize_line(table: np.ndarray, length: int) -> np.ndarray:
    """Positions [S, D] along one axis of a grid, at another number of places: cubic."""
    return table if len(table) == length else cubic_matrix(len(table), length) @ table


def cubic_matrix(theirs: int, ours: int) -> np.ndarray:
    """[ours, theirs]: bicubic interpolation along an axis (Keys 1981 with a = −0.75, half-pixel centres)."""
    a = -0.75
    places = (np.arange(ours) + 0.5) * theirs / ours - 0.5
    matrix = np.zeros((ours, theirs))
    for tap in range(-1, 3):
        near = np.floor(places) + tap
        d = np.abs(places - near)
        inner, outer = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
        # what lies beyond the edge is the edge
        np.add.at(matrix, (np.arange(ours), np.clip(near, 0, theirs - 1).astype(int)), np.where(d <= 1, inner, outer))
    return matrix

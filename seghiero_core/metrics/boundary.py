"""The pixels near the contours of a class map, for boundary IoU."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

BAND_WIDTH = 0.02
"""The width of the band along a contour, as a fraction of the image's diagonal; that of the paper."""


def boundary_band(classes: Tensor) -> Tensor:
    """Select the pixels of each class that lie within a band along the contour of their region.

    The band of Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021): d is
    2 % of the image's diagonal, at least 1 px, distances are chessboard distances, and the edge of the image is a
    contour.

    Args:
        classes: B,H,W int16, at least 0.

    Returns:
        B,H,W bool: whether another class, or the outside of the image, is at most d px away.
    """
    height, width = classes.shape[-2:]
    reach = max(1, round(BAND_WIDTH * math.hypot(height, width)))
    padded = F.pad(classes, (reach,) * 4, value=-1)
    across, down = padded[..., 1:] != padded[..., :-1], padded[..., 1:, :] != padded[..., :-1, :]
    # A window holds two classes if and only if two neighbors in it differ.
    across = _any_in_window(_any_in_window(across, -2, 2 * reach + 1), -1, 2 * reach)
    down = _any_in_window(_any_in_window(down, -2, 2 * reach), -1, 2 * reach + 1)
    return across | down


def _any_in_window(flags: Tensor, dim: int, size: int) -> Tensor:
    """Whether a flag is set among the `size` that begin at each place along a dimension, by doubling the window."""
    done = 1
    while done < size:
        step = min(done, size - done)
        kept = flags.shape[dim] - step
        flags = flags.narrow(dim, 0, kept) | flags.narrow(dim, step, kept)
        done += step
    return flags

"""The input range of all networks: pixels 0…255 as -1…1."""

from __future__ import annotations

from torch import Tensor

MIDDLE = 127.5
"""The pixel value, in 0…255, that is 0 for a network."""


def normalize_pixels(pixels: Tensor) -> Tensor:
    """Map values in 0…255 to float32 in [-1, 1]."""
    return pixels.float() / MIDDLE - 1.0

"""Orientation tokens of views in 8 bits on CPU, by OpenCV's kernels.

The readable definition is `models.orientation_tokens`; tests hold this one to a few steps of 8 bits from it. Each view
is processed by itself, so nothing depends on its batch. Shape letters: M views, S their side, n landmarks, p patch
side.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.models.landmark_cnn import MIDDLE
from lafs_ray.models.orientation_tokens import (
    CELLS_PER_SIDE,
    GAIN,
    MIDDLE_ROOT,
    NUM_DIRECTIONS,
    ORIENTATION_DIM,
    ROOT_OFFSET,
    SMALLEST_SQUARE,
    SMALLEST_SUM,
)

# Half of the directions; the others are opposite to them. OpenCV interpolates at most four channels.
_ANGLES = np.arange(NUM_DIRECTIONS // 2) * (2 * math.pi / NUM_DIRECTIONS)
_DIRECTIONS = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1).astype(np.float32)


def sample_orientations(views: NDArray[np.uint8], landmarks: NDArray[np.float32], patch_size: int) -> NDArray[np.uint8]:
    """Describe the patches around landmarks.

    Args:
        views: uint8 [M, S, S, 3].
        landmarks: float32 [M, n, 2], pixels, (x, y); positions outside the view are allowed.
        patch_size: p, in pixels, even.

    Returns:
        uint8 [M, n, 32]: u stands for u / 127.5 - 1, as in tokens of pixels.
    """
    cell = patch_size // CELLS_PER_SIDE
    starts = np.arange(CELLS_PER_SIDE, dtype=np.float32) * np.float32(cell)
    shift = np.float32(cell - patch_size / 2 - 0.5)
    columns = landmarks[..., 0, None] + (np.tile(starts, CELLS_PER_SIDE) + shift)
    rows = landmarks[..., 1, None] + (np.repeat(starts, CELLS_PER_SIDE) + shift)
    cells = np.empty((*columns.shape, NUM_DIRECTIONS), dtype=np.float32)
    half = NUM_DIRECTIONS // 2
    for view, x, y, target in zip(views, columns, rows, cells, strict=True):
        for part, maps in enumerate(_direction_maps(view)):
            padded = cv2.copyMakeBorder(maps, cell, cell, cell, cell, cv2.BORDER_CONSTANT)
            means = cv2.blur(padded, (cell, cell), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
            target[..., part * half : (part + 1) * half] = cv2.remap(
                means, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT
            )
    histograms = np.maximum(cells.reshape(*landmarks.shape[:2], ORIENTATION_DIM), 0)
    shares = histograms / (histograms.sum(axis=-1, keepdims=True) + np.float32(SMALLEST_SUM))
    roots = np.sqrt(shares + np.float32(ROOT_OFFSET)) - np.float32(math.sqrt(ROOT_OFFSET))
    scaled = (roots - np.float32(MIDDLE_ROOT)) * np.float32(GAIN * MIDDLE) + np.float32(MIDDLE)
    tokens: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return tokens


def _direction_maps(view: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the maps of directions 0…3 and 4…7 of a view, float32 [S, S, 4] each."""
    gray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    slopes = [
        cv2.Sobel(gray, cv2.CV_32F, *order, ksize=3, borderType=cv2.BORDER_REPLICATE) for order in ((1, 0), (0, 1))
    ]
    along = np.asarray(cv2.transform(cv2.merge(slopes), _DIRECTIONS), dtype=np.float32)
    squares = slopes[0] * slopes[0] + slopes[1] * slopes[1] + np.float32(SMALLEST_SQUARE)
    cubes = along * along
    cubes *= along
    cubes *= (1 / squares)[..., None]
    forward = np.maximum(cubes, 0)
    np.subtract(forward, cubes, out=cubes)
    return forward, cubes

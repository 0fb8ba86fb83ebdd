"""Smooth random images for the view tests: like photographs, neighbours resemble each other."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth_images(count: int, seed: int = 0, size: int = 112) -> NDArray[np.uint8]:
    """Uint8 [count, size, size, 3] with the full range of values and all hues."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-40, 295, (count, 9, 9, 3)).astype(np.float32)
    images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]
    return np.stack(images).clip(0, 255).astype(np.uint8)

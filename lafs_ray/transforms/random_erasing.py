"""Random erasing: a black rectangle on a labeled face, a function of seed and record."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lafs_ray.transforms.params import Records

_STREAM = 0x65726173
_ATTEMPTS = 10
_ASPECT = (0.3, 3.3)


def erase_(
    images: NDArray[np.uint8],
    probability: float,
    area: tuple[float, float],
    seed: int,
    *,
    epoch: Records,
    shard: Records,
    key: Records,
) -> None:
    """Blacken a rectangle in some of the images, in place, with torchvision's distribution.

    The area is uniform, the aspect log-uniform in 0.3…3.3, the position uniform; a function of (seed, epoch, shard,
    key). Reference: `RandomErasing` in torchvision.

    Args:
        images: uint8 [B, S, S, 3].
        probability: of a rectangle.
        area: its fraction of the image, least and greatest.
        seed: the run's seed.
        epoch: [B], ≥ 0.
        shard: [B], number of the record's file, ≥ 0.
        key: [B], number of the record in its file, ≥ 0.
    """
    size = images.shape[1]
    low, high = (math.log(bound) for bound in _ASPECT)
    records = zip(epoch.tolist(), shard.tolist(), key.tolist(), strict=True)
    for image, record in zip(images, records, strict=True):
        generator = np.random.default_rng([_STREAM, seed, *record])
        if generator.random() >= probability:
            continue
        for _ in range(_ATTEMPTS):
            pixels = generator.uniform(*area) * size**2
            aspect = math.exp(generator.uniform(low, high))
            height, width = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if height < size and width < size:
                top = generator.integers(size - height + 1)
                left = generator.integers(size - width + 1)
                image[top : top + height, left : left + width] = 0
                break

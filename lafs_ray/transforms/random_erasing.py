"""Random erasing: a black rectangle over part of a labeled face, drawn record by record."""

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
    """Blacken one rectangle of each image drawn, in place, as torchvision's RandomErasing draws it.

    The area is uniform, the aspect log-uniform in 0.3…3.3, the place uniform. What an image gets
    depends on (seed, epoch, shard, key) alone. Source: METHOD.md, "Margin softmax and finetuning".

    Args:
        images: uint8 [B, S, S, 3].
        probability: of a rectangle.
        area: its share of the image, least and greatest.
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

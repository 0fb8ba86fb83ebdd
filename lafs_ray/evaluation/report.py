"""Pair accuracy of several embeddings side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.faces import decode_image
from lafs_ray.data.pairs import read_pairs
from lafs_ray.errors import DataError
from lafs_ray.evaluation.verification import (
    flip_embedding,
    kfold_accuracy,
    pair_distances,
    raw_pixel_embeddings,
)

Embed = Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]

RAW_PIXELS = "raw pixels"


@dataclass(frozen=True)
class PairAccuracy:
    """10-fold accuracy of one embedding.

    Args:
        name: of the embedding.
        mean: over the folds, 0 … 1.
        std: over the folds.
    """

    name: str
    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.name:<24} {self.mean:.4f} ± {self.std:.4f}"


def decode_pairs(
    uri: str, colour_order: Literal["rgb", "bgr"] = "rgb"
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images uint8 [2P, 112, 112, 3] RGB and whether each pair shows one person, bool [P].

    Raises:
        DataError: the file is no pair file, or an image does not decode to 112×112.
    """
    pairs = read_pairs(uri)
    images = []
    for number, data in enumerate(pairs.images):
        try:
            images.append(decode_image(data, colour_order=colour_order))
        except DataError as error:
            where = f"{uri}, image {number} of pair {number // 2}"
            raise DataError(
                where, found=error.found, expected=error.expected, fix=error.fix
            ) from None
    return np.stack(images), pairs.same


def pair_accuracies(
    images: NDArray[np.uint8], same: NDArray[np.bool_], embeddings: Mapping[str, Embed]
) -> list[PairAccuracy]:
    """Accuracy of mean-removed raw pixels, then of each embedding with flip test.

    Args:
        images: uint8 [2P, 112, 112, 3] RGB.
        same: bool [P].
        embeddings: name to a function from images to embeddings [B, D].
    """
    rows = {RAW_PIXELS: raw_pixel_embeddings(images)}
    rows |= {name: flip_embedding(embed, images) for name, embed in embeddings.items()}
    accuracies = {name: kfold_accuracy(pair_distances(row), same) for name, row in rows.items()}
    return [PairAccuracy(name, found.mean, found.std) for name, found in accuracies.items()]

"""Embeddings before they are compared: sum over the flip test, mean removal, L2 norm.

Letters: N images, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]


def flip_sum(embeddings: Floats) -> Float64s:
    """Embedding of each image plus that of its mirror, not normalised: float64 [N, D].

    Args:
        embeddings: of the image and of its mirror, [N, 2, D].
    """
    # Reference: the sum is made in float64.
    total: Float64s = embeddings.astype(np.float64).sum(axis=1)
    return total


def centre(rows: Floats) -> Float64s:
    """The rows less their mean over all images: float64 [N, D]; no label is used.

    Ours. Self-supervised embeddings share a large common part: after normalisation they lie in a
    narrow cone, whose distances the protocol's grid of thresholds (steps of 0.01) cannot tell
    apart. Of flip-test sums, this removes the mean embedding over images and mirror images.
    """
    values = rows.astype(np.float64)
    centred: Float64s = values - values.mean(axis=0)
    return centred


def normalise(rows: Floats) -> Float64s:
    """The rows at length 1: float64 [N, D]. A row of zeros stays zero.

    Raises:
        DataError: an embedding is not finite; a metric over it would be a lie.
    """
    assert rows.ndim == 2, "embeddings are rows"
    values = rows.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"embedding of image {bad[0]}",
            found=f"nan or infinity, in {len(bad)} of {len(values)} rows",
            expected="finite numbers",
            fix="the network has diverged: evaluate an earlier checkpoint",
        )
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Float64s = values / np.where(norms == 0, 1, norms)
    return unit

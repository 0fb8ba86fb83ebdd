"""Leave-one-out k-nearest-neighbor accuracy of embeddings on a labeled set.

Costs N²·D multiplications, in blocks of queries, so memory is that of the embeddings and 64 MB. Letters: N images, D
width, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import normalize

_SIMILARITIES_AT_ONCE = 1 << 24


def neighbor_accuracies(
    embeddings: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    ks: Sequence[int],
    *,
    similarities_at_once: int = _SIMILARITIES_AT_ONCE,
) -> tuple[list[float], dict[str, int]]:
    """Compute leave-one-out k-NN accuracy by cosine similarity, for each k.

    Majority vote of the k nearest; ties go to the identity with the nearest image.

    Args:
        embeddings: [N, D], of any length.
        labels: identity of each image, int64 [N].
        ks: numbers of neighbors.
        similarities_at_once: bounds the memory; does not change the result.

    Returns:
        The accuracy for each k, 0 … 1, and counts: images of identities with two or more, these identities, and images
        excluded, the only one of their identity.

    Raises:
        DataError: no identity has two images, a k is impossible, or an embedding is not finite.
    """
    kept = check_possible(labels, ks)
    num_kept, (_, identities) = int(np.count_nonzero(kept)), np.unique(labels, return_inverse=True)
    # float32 halves the time; cosines then err by 1e-7.
    rows, identities = normalize(embeddings[kept]).astype(np.float32), identities[kept]
    step = max(similarities_at_once // num_kept, 1)
    right = np.zeros(len(ks), dtype=np.int64)
    for start in range(0, num_kept, step):
        near = identities[_nearest(rows, start, min(start + step, num_kept), max(ks))]
        truth = identities[start : start + step]
        right += [np.count_nonzero(_vote(near[:, :k]) == truth) for k in ks]
    counts = {
        "num_images": num_kept,
        "num_identities": len(np.unique(identities)),
        "num_excluded": len(labels) - num_kept,
    }
    return (right / num_kept).tolist(), counts


def check_possible(labels: NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.bool_]:
    """Return which images have another one of their identity: bool [N].

    Raises:
        DataError: there are none, or k is out of range.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept: NDArray[np.bool_] = counts[inverse] > 1
    num_kept = int(np.count_nonzero(kept))
    if num_kept == 0:
        raise DataError(
            "labeled faces",
            found=f"{len(labels)} images of {len(counts)} identities, none with two",
            expected="at least one identity with two images",
            fix="choose a set with several images per identity",
        )
    if not 1 <= min(ks) <= max(ks) < num_kept:
        raise DataError(
            "k",
            found=f"{min(ks) if min(ks) < 1 else max(ks)}, for {num_kept} images of identities with two or more",
            expected=f"1 to {num_kept - 1}: all images but the query",
            fix="choose another k, or a larger set",
        )
    return kept


def _nearest(rows: NDArray[np.float32], start: int, stop: int, k: int) -> NDArray[np.intp]:
    """Return the k nearest rows of rows start…stop-1, nearest first, without the row itself."""
    similar = rows[start:stop] @ rows.T
    similar[np.arange(stop - start), np.arange(start, stop)] = -np.inf
    near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(similar, near, axis=1)
    # Break ties by index.
    order = np.lexsort((near, -found), axis=1)
    return np.take_along_axis(near, order, axis=1)


def _vote(near: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the most frequent identity of each row, the first on ties: [B, k] -> [B]."""
    votes = (near[:, :, None] == near[:, None, :]).sum(axis=2)
    winner: NDArray[np.intp] = near[np.arange(len(near)), votes.argmax(axis=1)]
    return winner

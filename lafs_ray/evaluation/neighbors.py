"""Identity by nearest neighbors: does the face most alike show the same person?

Leave-one-out over a labeled set: every image asks all others. The price is N²·D multiplications,
done in blocks of queries, so that memory is that of the embeddings and 64 MB.
Letters: N images, D width, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import normalize

_SIMILARITIES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class NeighborAccuracy:
    """Share of images whose neighbors name the right person.

    Args:
        k: neighbors asked.
        accuracy: 0 … 1.
        num_images: images that asked and were asked.
        num_identities: their persons.
        num_excluded: images left out, as they are the only one of their person.
    """

    k: int
    accuracy: float
    num_images: int
    num_identities: int
    num_excluded: int


def neighbor_accuracies(
    embeddings: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    ks: Sequence[int],
    *,
    similarities_at_once: int = _SIMILARITIES_AT_ONCE,
) -> list[NeighborAccuracy]:
    """Leave-one-out accuracy by cosine similarity, for each k.

    The k nearest vote; of several persons with most votes the one with the nearest face wins.

    Args:
        embeddings: [N, D], of any length.
        labels: identity of each image, int64 [N].
        ks: numbers of neighbors.
        similarities_at_once: bounds the memory; it does not change the result.

    Raises:
        DataError: no identity has two images, a k is impossible, or an embedding is not finite.
    """
    kept = check_possible(labels, ks)
    num_kept, (_, persons) = int(np.count_nonzero(kept)), np.unique(labels, return_inverse=True)
    # float32 halves the time; cosines then err by 1e-7.
    rows, persons = normalize(embeddings[kept]).astype(np.float32), persons[kept]
    step = max(similarities_at_once // num_kept, 1)
    right = np.zeros(len(ks), dtype=np.int64)
    for start in range(0, num_kept, step):
        near = persons[_nearest(rows, start, min(start + step, num_kept), max(ks))]
        truth = persons[start : start + step]
        right += [np.count_nonzero(_vote(near[:, :k]) == truth) for k in ks]
    num_identities, num_excluded = len(np.unique(persons)), len(labels) - num_kept
    return [
        NeighborAccuracy(k, int(hits) / num_kept, num_kept, num_identities, num_excluded)
        for k, hits in zip(ks, right, strict=True)
    ]


def check_possible(labels: NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.bool_]:
    """Which images take part, those with another one of their identity: bool [N].

    Raises:
        DataError: there are none, or a k is impossible with them.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept: NDArray[np.bool_] = counts[inverse] > 1
    num_kept = int(np.count_nonzero(kept))
    if num_kept == 0:
        raise DataError(
            "labeled faces",
            found=f"{len(labels)} images of {len(counts)} identities, none with two",
            expected="at least one identity with two images",
            fix="give a set with several images of a person",
        )
    if not 1 <= min(ks) <= max(ks) < num_kept:
        raise DataError(
            "k",
            found=f"{min(ks) if min(ks) < 1 else max(ks)}, for {num_kept} images of identities "
            "with two or more",
            expected=f"1 to {num_kept - 1}: every image but the one that asks",
            fix="choose another k, or a larger set",
        )
    return kept


def _nearest(rows: NDArray[np.float32], start: int, stop: int, k: int) -> NDArray[np.intp]:
    """The k rows most alike to each of rows start…stop-1, nearest first; never the row itself."""
    similar = rows[start:stop] @ rows.T
    similar[np.arange(stop - start), np.arange(start, stop)] = -np.inf
    near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(similar, near, axis=1)
    # Equally near ones by their number.
    order = np.lexsort((near, -found), axis=1)
    return np.take_along_axis(near, order, axis=1)


def _vote(near: NDArray[np.intp]) -> NDArray[np.intp]:
    """The person named most often in each row, of several the first: [B, k] -> [B]."""
    votes = (near[:, :, None] == near[:, None, :]).sum(axis=2)
    winner: NDArray[np.intp] = near[np.arange(len(near)), votes.argmax(axis=1)]
    return winner

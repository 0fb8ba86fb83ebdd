"""Pictures that two sets share, or that one set has twice: identical bytes, and near-duplicates.

Candidates for near-duplicates are the most similar descriptors, also of inner parts, and the most similar embeddings;
each is then compared pixel by pixel (`pictures.picture_similarity`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import Floats, Int64s
from lafs_ray.audit.nearest import Apply, Gallery, Neighbors
from lafs_ray.audit.pictures import SAME_PICTURE, Pictures, cropped_descriptors, picture_similarity

# Less similar descriptors and embeddings are no candidates.
_MIN_DESCRIPTOR, _MIN_EMBEDDING = 0.8, 0.3
_CANDIDATES = 3


@dataclass(frozen=True, eq=False)
class Copies:
    """Pairs of equal pictures.

    Args:
        first: row of the training set, int64 [n].
        second: row of the other set, or a later row of the training set, int64 [n].
        scores: 1 for identical bytes, else the similarity of the pixels; float32 [n].
        identical: whether the bytes are equal, bool [n].
    """

    first: Int64s
    second: Int64s
    scores: Floats
    identical: NDArray[np.bool_]


def identical_pictures(first: NDArray[np.uint64], second: NDArray[np.uint64] | None) -> tuple[Int64s, Int64s]:
    """Return pairs of rows with equal digests; within one set the first row of each group with each later one."""
    order = np.argsort(first, kind="stable")
    ordered = first[order]
    if second is None:
        is_later = np.append(False, ordered[1:] == ordered[:-1])
        group = np.maximum.accumulate(np.where(is_later, 0, np.arange(len(ordered))))
        return order[group[is_later]], order[is_later]
    places = np.searchsorted(ordered, second)
    places[places == len(ordered)] = 0
    found = ordered[places] == second
    return order[places[found]], np.flatnonzero(found)


def find_copies(
    first: Pictures, second: Pictures | None, embeddings: Neighbors, descriptors: Gallery, folder: str, apply: Apply
) -> Copies:
    """Find identical pictures and near-duplicates.

    Args:
        first: of the training set.
        second: of the other set; None: within the training set.
        embeddings: nearest training rows of each row of `second`, or of the training set itself.
        descriptors: those of `first`.
        folder: for temporary files.
        apply: runs the tasks of a search.
    """
    rows, others = identical_pictures(first.digests, None if second is None else second.digests)
    known = set(zip(rows.tolist(), others.tolist(), strict=True))
    pairs_to_check = set(_candidates(second or first, embeddings, descriptors, folder, apply, second is None))
    near, scores = [], []
    small, large = first.open_thumbnails(), (second or first).open_thumbnails()
    for row, other in sorted(pairs_to_check):
        if (row, other) not in known and first.digests[row] != (second or first).digests[other]:
            score = picture_similarity(small[row], large[other])
            if score >= SAME_PICTURE:
                near.append((row, other))
                scores.append(score)
    pairs = np.array(near, np.int64).reshape(-1, 2)
    return Copies(
        np.concatenate([rows, pairs[:, 0]]),
        np.concatenate([others, pairs[:, 1]]),
        np.array([1.0] * len(rows) + scores, np.float32),
        np.arange(len(rows) + len(pairs)) < len(rows),
    )


def _candidates(
    queries: Pictures, embeddings: Neighbors, descriptors: Gallery, folder: str, apply: Apply, is_self: bool
) -> Iterator[tuple[int, int]]:
    """Yield (training row, other row)."""
    yield from _above(embeddings, _MIN_EMBEDDING, is_self)
    for vectors in (queries.descriptors, *cropped_descriptors(queries, folder)):
        yield from _above(descriptors.search(vectors, _CANDIDATES, apply), _MIN_DESCRIPTOR, is_self)


def _above(found: Neighbors, threshold: float, is_self: bool) -> Iterator[tuple[int, int]]:
    kept = (found.scores[:, :_CANDIDATES] >= threshold) & (found.rows[:, :_CANDIDATES] >= 0)
    others, columns = np.nonzero(kept)
    for row, other in zip(found.rows[others, columns].tolist(), others.tolist(), strict=True):
        if row != other or not is_self:
            yield (min(row, other), max(row, other)) if is_self else (row, other)

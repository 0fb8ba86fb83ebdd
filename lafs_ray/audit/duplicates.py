"""Pictures that two sets share, or that one set has twice: identical bytes, and near-duplicates.

Candidates for near-duplicates are the most similar descriptors, also of inner parts, and the most similar embeddings:
up to 21 a picture, whose descriptors are compared over 30 crops. The few per cent that are left are compared pixel by
pixel (`pictures.picture_similarity`), which takes a millisecond and more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.descriptors import Whitening, crop_similarities
from lafs_ray.audit.embeddings import Floats, Int64s
from lafs_ray.audit.nearest import Apply, Gallery, Neighbors
from lafs_ray.audit.pictures import SAME_PICTURE, Pictures, cropped_descriptors, open_thumbnails, picture_similarity

logger = logging.getLogger(__name__)

# Less similar descriptors and embeddings are no candidates; nor are those whose crops are less similar.
_MIN_DESCRIPTOR, _MIN_EMBEDDING, _MIN_CROP = 0.6, 0.3, 0.75
_CANDIDATES = 3
_PAIRS_AT_ONCE = 8192


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
    other = second or first
    rows, others = identical_pictures(first.digests, None if second is None else second.digests)
    pairs = _candidates(other, embeddings, descriptors, folder, apply, second is None)
    pairs = pairs[first.digests[pairs[:, 0]] != other.digests[pairs[:, 1]]]
    first_pictures, other_pictures = ((one.thumbnails, len(one.numbers)) for one in (first, other))
    compared = Compared(first_pictures, other_pictures, first.whitening)
    blocks = [pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    scores = np.zeros(len(pairs), np.float32)
    for start, found in apply(compare_pairs, compared, [(n * _PAIRS_AT_ONCE, one) for n, one in enumerate(blocks)]):
        scores[start : start + len(found)] = found
    near = scores >= SAME_PICTURE
    logger.info("%d pairs of pictures compared, %d near-duplicates", len(pairs), np.count_nonzero(near))
    return Copies(
        np.concatenate([rows, pairs[near, 0]]),
        np.concatenate([others, pairs[near, 1]]),
        np.concatenate([np.ones(len(rows), np.float32), scores[near]]),
        np.arange(len(rows) + np.count_nonzero(near)) < len(rows),
    )


@dataclass(frozen=True, eq=False)
class Compared:
    """Pictures whose pairs are compared, as the tasks share them.

    Args:
        first: file of the thumbnails, and their number.
        second: likewise, of the other set or the same.
        whitening: of the descriptors.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    whitening: Whitening


def compare_pairs(compared: Compared, item: tuple[int, Int64s]) -> tuple[int, Floats]:
    """Compare pairs of pictures pixel by pixel where a crop of one is similar to the other; 0 where none is.

    Args:
        compared: the pictures.
        item: number of the first pair, and rows of both sets, int64 [n, 2].

    Returns:
        That number, and the similarities, float32 [n].
    """
    start, pairs = item
    first, second = (open_thumbnails(*one) for one in (compared.first, compared.second))
    scores = np.zeros(len(pairs), np.float32)
    similar = crop_similarities(first, second, pairs, compared.whitening) >= _MIN_CROP
    for place in np.flatnonzero(similar).tolist():
        row, other = pairs[place]
        scores[place] = picture_similarity(first[row], second[other])
    return start, scores


def _candidates(
    queries: Pictures, embeddings: Neighbors, descriptors: Gallery, folder: str, apply: Apply, is_self: bool
) -> Int64s:
    """Return pairs (training row, other row), each once, int64 [n, 2]."""
    size = len(queries.numbers)
    found = [_above(embeddings, _MIN_EMBEDDING, is_self)]
    found += [
        _above(descriptors.search(vectors, _CANDIDATES, apply), _MIN_DESCRIPTOR, is_self)
        for vectors in (queries.descriptors, *cropped_descriptors(queries, folder))
    ]
    # As one number each, of which a set is sorted in place.
    numbers = np.unique(np.concatenate([pairs[:, 0] * size + pairs[:, 1] for pairs in found]))
    return np.stack([numbers // size, numbers % size], axis=1)


def _above(found: Neighbors, threshold: float, is_self: bool) -> Int64s:
    kept = (found.scores[:, :_CANDIDATES] >= threshold) & (found.rows[:, :_CANDIDATES] >= 0)
    others, columns = np.nonzero(kept)
    pairs = np.stack([found.rows[others, columns].astype(np.int64), others], axis=1)
    return np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1) if is_self else pairs

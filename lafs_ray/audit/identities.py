"""Labels that embeddings contradict: images of another identity, strays, identities that are two, two that are one.

Letters: N images, C identities, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.calibration import PRIOR, Threshold, least_error_threshold
from lafs_ray.audit.embeddings import EmbeddedSet, Floats, Int64s, VectorFile
from lafs_ray.audit.nearest import Apply, Gallery, Neighbors

_ROWS_AT_ONCE = 4096
# An identity is checked for two clusters from so many images on; a cluster has at least so many.
_MIN_IMAGES, _MIN_CLUSTER = 6, 2
_ROUNDS = 6
# Share of the images that must be most similar to their own identity, for labels to be questioned at all.
_MIN_RIGHT = 0.7
# How far below the others' an identity's similarity of its two halves must lie, in robust standard deviations.
_OUTLIER = 4.0
# How far below the others' an image's similarity to its own identity must lie for a stray.
_STRAY = 3.0


@dataclass(frozen=True, eq=False)
class Identities:
    """Identities of a set and the similarities that its labels imply.

    Args:
        labels: of each identity, ascending, int64 [C].
        index: identity of each row, int64 [N]; -1: the row has no label.
        counts: images of each, int64 [C].
        centers: mean of the vectors of each, normalized, float32 [C, D].
        own: similarity of each row to the center of its identity's other images, float32 [N]; nan without any.
        best_other: similarity to the most similar other center among those of its neighbors, float32 [N].
        other: that identity, int64 [N]; -1: none.
        halves: similarity of the centers of two halves of each identity with 4 images or more, float32 [n].
        nearest_center: most similar other center of each, int64 [C].
        nearest_score: its similarity, float32 [C].
    """

    labels: Int64s
    index: Int64s
    counts: Int64s
    centers: Floats
    own: Floats
    best_other: Floats
    other: Int64s
    halves: Floats
    nearest_center: Int64s
    nearest_score: Floats

    @property
    def image_threshold(self) -> Threshold | None:
        """Similarity of an image to a center from which on they are one identity."""
        # Where another center is more similar, the label may be wrong: those rows calibrate nothing. Where that holds
        # for many rows, it is the embedding that is wrong.
        labeled = np.isfinite(self.own)
        known = labeled & (self.own > self.best_other)
        if np.count_nonzero(known) < _MIN_RIGHT * np.count_nonzero(labeled):
            return None
        return least_error_threshold(self.own[known], self.best_other[known & (self.other >= 0)])

    @property
    def center_threshold(self) -> Threshold | None:
        """Similarity of two centers from which on they are one identity."""
        # The most similar ones may be one identity under two labels.
        usual = np.sort(self.nearest_score)[: max(int(len(self.nearest_score) * (1 - PRIOR)), 1)]
        return least_error_threshold(self.halves, usual)


def compare_identities(embedded: EmbeddedSet, neighbors: Neighbors, folder: str, apply: Apply) -> Identities | None:
    """Compare every row with its own center and with others; None where fewer than two identities have labels.

    Args:
        embedded: the set.
        neighbors: nearest rows of each row.
        folder: for temporary files.
        apply: runs the tasks of a search.
    """
    labels, inverse = np.unique(embedded.labels, return_inverse=True)
    index = inverse.astype(np.int64)
    if labels[0] < 0:
        labels, index = labels[1:], index - 1
    if len(labels) < 2:
        return None
    vectors = embedded.vectors.open()
    sums, halves = _sums(vectors, index, len(labels))
    counts = np.bincount(index[index >= 0], minlength=len(labels)).astype(np.int64)
    own, best_other, other = _rows_and_centers(vectors, index, counts, sums, neighbors)
    centers = _unit(sums)
    path = f"{folder}/centers.raw"
    centers.tofile(path)
    found = Gallery(VectorFile(path, *centers.shape), folder).search(VectorFile(path, *centers.shape), 1, apply)
    even, odd = (_unit(half) for half in halves)
    both = counts >= 4
    return Identities(
        labels,
        index,
        counts,
        centers,
        own,
        best_other,
        other,
        np.einsum("cd,cd->c", even[both], odd[both]),
        found.rows[:, 0].astype(np.int64),
        found.scores[:, 0],
    )


def _sums(vectors: Floats, index: Int64s, count: int) -> tuple[Floats, tuple[Floats, Floats]]:
    """Return the sum of each identity's vectors, and those of its first, third, … and other images."""
    halves = np.zeros((2, count, vectors.shape[1]), np.float32)
    seen = np.zeros(count, np.int64)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = index[start : start + _ROWS_AT_ONCE]
        known = np.flatnonzero(rows >= 0)
        turn = np.empty(len(known), np.int64)
        for place, identity in enumerate(rows[known].tolist()):
            turn[place] = seen[identity] & 1
            seen[identity] += 1
        np.add.at(halves, (turn, rows[known]), vectors[start : start + _ROWS_AT_ONCE][known])
    return halves.sum(axis=0), (halves[0], halves[1])


def _rows_and_centers(
    vectors: Floats, index: Int64s, counts: Int64s, sums: Floats, neighbors: Neighbors
) -> tuple[Floats, Floats, Int64s]:
    """Return each row's similarity to its own center without itself, and to the best other one of its neighbors."""
    own, best = np.full(len(index), np.nan, np.float32), np.full(len(index), -1, np.float32)
    other = np.full(len(index), -1, np.int64)
    lengths = np.maximum(np.linalg.norm(sums, axis=1), 1e-12)
    for start in range(0, len(index), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        rows, mine = vectors[block], index[block]
        known = np.flatnonzero((mine >= 0) & (counts[mine] > 1))
        rest = sums[mine[known]] - rows[known]
        own[start + known] = np.einsum("nd,nd->n", rest, rows[known]) / np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
        near = neighbors.rows[block]
        candidates = np.where(near >= 0, index[near], -1)
        for column in candidates.T:
            use = np.flatnonzero((column >= 0) & (column != mine))
            scores = np.einsum("nd,nd->n", sums[column[use]], rows[use]) / lengths[column[use]]
            better = scores > best[start + use]
            best[start + use[better]], other[start + use[better]] = scores[better], column[use[better]]
    return own, best, other


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def wrong_labels(found: Identities) -> tuple[Int64s, Int64s, Floats]:
    """Return rows that look like another identity, that identity, and by how much more; the clearest first.

    A row counts where the other center is more similar than its own, and passes the threshold that its own does not.
    """
    threshold = found.image_threshold
    if threshold is None:
        return _none()
    margin = found.best_other - found.own
    rows = np.flatnonzero((margin > 0) & (found.best_other >= threshold.value) & (found.own < threshold.value))
    rows = rows[np.argsort(-margin[rows], kind="stable")]
    return rows, found.other[rows], margin[rows]


def strays(found: Identities) -> tuple[Int64s, Int64s, Floats]:
    """Return rows that are less similar to their own identity than most are to a foreign one, and to no other either.

    They also lie three robust standard deviations below the others' similarity to their own: where identities scatter
    as much as an embedding that separates them badly makes them, a fifth of all rows would be strays.

    Returns:
        Rows, -1 for each, and how far below they lie; the clearest first.
    """
    threshold = found.image_threshold
    if threshold is None:
        return _none()
    usual = float(np.median(found.best_other[found.other >= 0])) if (found.other >= 0).any() else 0.0
    own = found.own[np.isfinite(found.own)]
    middle = float(np.median(own))
    usual = min(usual, middle - _STRAY * 1.4826 * float(np.median(np.abs(own - middle))))
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((found.own < usual) & (found.best_other < threshold.value))
    rows = rows[np.argsort(found.own[rows], kind="stable")]
    return rows, np.full(len(rows), -1), usual - found.own[rows]


def same_identities(found: Identities) -> tuple[Int64s, Int64s, Floats]:
    """Return pairs of identities whose centers are as similar as halves of one identity, the most similar first."""
    threshold = found.center_threshold
    if threshold is None:
        return _none()
    first = np.flatnonzero(found.nearest_score >= threshold.value)
    pairs = np.sort(np.stack([first, found.nearest_center[first]], axis=1), axis=1)
    unique, places = np.unique(pairs, axis=0, return_index=True)
    scores = found.nearest_score[first[places]]
    order = np.argsort(-scores, kind="stable")
    return unique[order, 0], unique[order, 1], scores[order]


def split_identities(embedded: EmbeddedSet, found: Identities) -> tuple[Int64s, Int64s, Floats]:
    """Return identities whose images fall into two clusters, unlike those of most, the clearest first.

    Returns:
        Identities, a row of the smaller cluster of each, and the similarity of the two centers.
    """
    vectors = embedded.vectors.open()
    order = np.argsort(found.index, kind="stable")
    starts = np.searchsorted(found.index[order], np.arange(len(found.labels) + 1))
    identities, examples, scores = [], [], []
    for identity in np.flatnonzero(found.counts >= _MIN_IMAGES).tolist():
        rows = order[starts[identity] : starts[identity + 1]]
        score, smaller = _two_clusters(vectors[rows])
        identities.append(identity)
        examples.append(rows[smaller])
        scores.append(score)
    if not scores or found.center_threshold is None:
        return _none()
    values = np.array(scores, np.float32)
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    kept = np.flatnonzero((values < middle - _OUTLIER * max(spread, 1e-3)) & (values < found.center_threshold.value))
    kept = kept[np.argsort(values[kept], kind="stable")]
    return np.array(identities)[kept], np.array(examples)[kept], values[kept]


def _two_clusters(rows: Floats) -> tuple[float, int]:
    """Split by spherical 2-means; return the similarity of the centers and a row of the smaller cluster."""
    similar = rows @ rows.mean(axis=0)
    first = int(np.argmin(similar))
    centers = np.stack([rows[first], rows[int(np.argmin(rows @ rows[first]))]])
    for _ in range(_ROUNDS):
        side = np.argmax(rows @ centers.T, axis=1)
        if min(np.count_nonzero(side), np.count_nonzero(side == 0)) < _MIN_CLUSTER:
            # A single stray is no second identity.
            return 1.0, first
        centers = _unit(np.stack([rows[side == n].mean(axis=0) for n in (0, 1)]))
    smaller = int(np.count_nonzero(side) * 2 <= len(side))
    return float(centers[0] @ centers[1]), int(np.flatnonzero(side == smaller)[0])


def _none() -> tuple[Int64s, Int64s, NDArray[np.float32]]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)

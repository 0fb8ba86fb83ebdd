"""Identities that a training set and a test set share, by their embeddings.

Centers of identities are compared where both sets have labels, images with centers where one has, and images where none
has. A threshold exists only where labels calibrate one; otherwise pairs are ranked and none is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.calibration import Threshold
from lafs_ray.audit.embeddings import EmbeddedSet, Floats, Int64s, VectorFile
from lafs_ray.audit.identities import Identities
from lafs_ray.audit.nearest import Apply, Gallery, Neighbors


@dataclass(frozen=True, eq=False)
class SharedIdentities:
    """Candidates, the most similar first.

    Args:
        train: a row of the training set for each, int64 [n].
        test: a row of the test set for each, int64 [n].
        scores: similarity of what was compared, float32 [n].
        compared: "centers", "images and centers" or "images".
        threshold: from which on they are one identity; None: nothing calibrates one.
    """

    train: Int64s
    test: Int64s
    scores: Floats
    compared: str
    threshold: Threshold | None

    @property
    def by_chance(self) -> float:
        """How many pass the threshold if no identity is shared."""
        return 0.0 if self.threshold is None else self.threshold.false * len(self.scores)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Which of them pass the threshold, bool [n]; none where no more do than by chance, within two deviations."""
        none = np.zeros(len(self.scores), dtype=bool)
        if self.threshold is None:
            return none
        passing = self.scores >= self.threshold.value
        return passing if np.count_nonzero(passing) > self.by_chance + 2 * np.sqrt(self.by_chance) else none


def shared_identities(
    train: EmbeddedSet,
    test: EmbeddedSet,
    identities: tuple[Identities | None, Identities | None],
    neighbors: Neighbors,
    folder: str,
    apply: Apply,
) -> SharedIdentities:
    """Return the identity, or image, of the training set that is most similar to each of the test set.

    Args:
        train: the training set.
        test: the test set.
        identities: of both; None for a set without labels.
        neighbors: nearest training rows of each test row.
        folder: for temporary files.
        apply: runs the tasks of a search.
    """
    train_ids, test_ids = identities
    if train_ids is not None and test_ids is not None:
        return _centers(train_ids, test_ids, neighbors, folder, apply)
    if train_ids is not None:
        return _images_and_centers(test, train_ids, neighbors)
    if test_ids is not None:
        return _training_images_and_centers(train, test_ids, neighbors)
    rows = np.arange(len(neighbors.rows))
    return _ordered(neighbors.rows[:, 0].astype(np.int64), rows, neighbors.scores[:, 0], "images", None)


def _centers(train: Identities, test: Identities, neighbors: Neighbors, folder: str, apply: Apply) -> SharedIdentities:
    """Search the center of each test identity among those of the training set."""
    files = []
    for name, one in (("train_centers", train), ("test_centers", test)):
        path = f"{folder}/{name}.raw"
        one.centers.tofile(path)
        files.append(VectorFile(path, *one.centers.shape))
    found = Gallery(files[0], folder).search(files[1], 1, apply)
    best = found.rows[:, 0].astype(np.int64)
    examples = [_example(train, test, neighbors, identity, mate) for identity, mate in enumerate(best.tolist())]
    pairs = np.array(examples, np.int64).reshape(-1, 2)
    return _ordered(pairs[:, 0], pairs[:, 1], found.scores[:, 0], "centers", train.center_threshold)


def _example(train: Identities, test: Identities, neighbors: Neighbors, identity: int, mate: int) -> tuple[int, int]:
    """Return a training row and a test row of two identities: neighbors, where there are any."""
    rows = np.flatnonzero(test.index == identity)
    for row in rows.tolist():
        near = neighbors.rows[row]
        near = near[near >= 0]
        fitting = near[train.index[near] == mate]
        if len(fitting):
            return int(fitting[0]), row
    return int(np.argmax(train.index == mate)), int(rows[0])


def _images_and_centers(test: EmbeddedSet, train: Identities, neighbors: Neighbors) -> SharedIdentities:
    """Compare each test image with the centers of its neighbors' identities."""
    vectors = test.vectors.open()
    best, rows = np.full(test.num_rows, -1, np.float32), neighbors.rows[:, 0].astype(np.int64)
    for column in neighbors.rows.T.astype(np.int64):
        use = np.flatnonzero((column >= 0) & (train.index[column] >= 0))
        scores = np.einsum("nd,nd->n", vectors[use], train.centers[train.index[column[use]]])
        better = scores > best[use]
        best[use[better]], rows[use[better]] = scores[better], column[use[better]]
    return _ordered(rows, np.arange(test.num_rows), best, "images and centers", train.image_threshold)


def _training_images_and_centers(train: EmbeddedSet, test: Identities, neighbors: Neighbors) -> SharedIdentities:
    """Compare training images that are neighbors of labeled test images with the centers of these."""
    others, columns = np.nonzero((neighbors.rows >= 0) & (test.index >= 0)[:, None])
    pairs = np.unique(
        np.stack([neighbors.rows[others, columns], test.index[others]], axis=1), axis=0, return_index=True
    )
    rows, examples = pairs[0][:, 0].astype(np.int64), others[pairs[1]]
    scores = np.einsum("nd,nd->n", train.vectors.open()[rows], test.centers[pairs[0][:, 1]])
    return _ordered(rows, examples, scores, "images and centers", test.image_threshold)


def _ordered(
    train: Int64s, test: Int64s, scores: Floats, compared: str, threshold: Threshold | None
) -> SharedIdentities:
    order = np.argsort(-scores, kind="stable")
    return SharedIdentities(train[order], test[order], scores[order], compared, threshold)

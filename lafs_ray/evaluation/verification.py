"""Pair verification: 10-fold accuracy, TAR at FAR, ROC and AUC.

The protocol of insightface and of the released LAFS code: squared distance of L2-normalized
embeddings, a threshold chosen on nine folds and applied to the tenth; folds are contiguous blocks of pairs. Counts come
from sorted distances, so a grid of 4,000 thresholds costs milliseconds. Letters: P pairs, D width, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import normalize

Floats = NDArray[np.floating]
Float64s = NDArray[np.float64]
Truths = NDArray[np.bool_]


# Rule of three (Hanley & Lippman-Hand, JAMA 1983): a rate of which n trials show no case is below 3 / n with 95 %
# confidence. With fewer trials than 3 / rate, the rate cannot be told from zero.
_RULE_OF_THREE = 3


def carries_far(num_different: int, far: float) -> bool:
    """Return whether so many different pairs carry a false accept rate: at least 3 / FAR, 3,000 for 0.001."""
    return num_different * far >= _RULE_OF_THREE * (1 - 1e-9)


def _thresholds(per_unit: int) -> Float64s:
    """Return thresholds 0 … 4 (the largest squared distance on the sphere) in steps 1/per_unit."""
    return np.arange(0, 4, 1 / per_unit)


@dataclass(frozen=True, eq=False)
class FoldAccuracy:
    """Accuracy on the held-out folds.

    Args:
        mean: mean over the folds, 0 … 1.
        std: population standard deviation over the folds.
        accuracies: accuracy of each fold, float64 [folds].
        thresholds: squared distance chosen for each fold, float64 [folds].
    """

    mean: float
    std: float
    accuracies: Float64s
    thresholds: Float64s


@dataclass(frozen=True)
class TarAtFar:
    """True accept rate (TAR) at a given false accept rate (FAR).

    Args:
        tar: mean over the test folds, 0 … 1.
        std: population standard deviation over the folds.
        far: the false accept rate measured on the test folds.
    """

    tar: float
    std: float
    far: float


def raw_pixel_embeddings(images: NDArray[np.uint8]) -> Float64s:
    """Return an image's pixels less their mean, the raw-pixel baseline: float64 [B, S·S·3]."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    centered: Float64s = pixels - pixels.mean(axis=1, keepdims=True)
    return centered


def pair_distances(embeddings: Floats) -> Float64s:
    """Compute squared distances of the L2-normalized rows 2i and 2i+1: float64 [P], 0 … 4.

    A row of zeros stays zero.

    Args:
        embeddings: [2P, D].

    Raises:
        DataError: an embedding is not finite, so that metrics would be undefined.
    """
    assert len(embeddings) % 2 == 0, "two rows a pair"
    rows = normalize(embeddings)
    squared: Float64s = np.square(rows[0::2] - rows[1::2]).sum(axis=1)
    return squared


def _folds(count: int, folds: int) -> Iterator[tuple[Truths, Truths]]:
    """Yield (train, test) masks of contiguous folds, the first ones longer by at most one pair."""
    if not 2 <= folds <= count:
        raise DataError(
            "verification pairs",
            found=f"{count} pairs for {folds} folds",
            expected="at least two folds and a pair for each",
            fix="use fewer folds or more pairs",
        )
    for block in np.array_split(np.arange(count), folds):
        test = np.zeros(count, dtype=bool)
        test[block] = True
        yield ~test, test


def _accepted(distances: Float64s, thresholds: Float64s) -> NDArray[np.int64]:
    """Count the distances strictly below each threshold, int64 [T]."""
    return np.searchsorted(np.sort(distances), thresholds, side="left").astype(np.int64)


def _accuracy(distances: Float64s, same: Truths, thresholds: Float64s) -> Float64s:
    """Compute accuracy at each threshold, float64 [T]."""
    rejected = np.count_nonzero(~same) - _accepted(distances[~same], thresholds)
    right: Float64s = (_accepted(distances[same], thresholds) + rejected) / len(distances)
    return right


def kfold_accuracy(distances: Float64s, same: Truths, folds: int = 10) -> FoldAccuracy:
    """Compute accuracy with the threshold that is best on the other folds (the first on ties).

    Args:
        distances: squared distances, float64 [P].
        same: whether a pair shows one identity, bool [P].
        folds: number of contiguous blocks.

    Raises:
        DataError: fewer pairs than folds.
    """
    _check_lengths(distances, same)
    grid = _thresholds(100)
    accuracies, chosen = [], []
    for train, test in _folds(len(same), folds):
        best = int(np.argmax(_accuracy(distances[train], same[train], grid)))
        accuracies.append(_accuracy(distances[test], same[test], grid[best : best + 1])[0])
        chosen.append(grid[best])
    per_fold = np.array(accuracies)
    return FoldAccuracy(float(per_fold.mean()), float(per_fold.std()), per_fold, np.array(chosen))


def kfold_correct(distances: Float64s, same: Truths, folds: int = 10) -> Truths:
    """Return whether each pair is decided rightly by the threshold of the other folds, see `kfold_accuracy`; bool [P].

    Raises:
        DataError: fewer pairs than folds.
    """
    thresholds = kfold_accuracy(distances, same, folds).thresholds
    right = np.zeros(len(same), dtype=bool)
    for (_, test), threshold in zip(_folds(len(same), folds), thresholds, strict=True):
        right[test] = (distances[test] < threshold) == same[test]
    return right


def tar_at_far(distances: Float64s, same: Truths, far: float, folds: int = 10) -> TarAtFar:
    """Compute the true accept rate at the threshold that gives `far` on the other folds.

    Args:
        distances: squared distances, float64 [P].
        same: whether a pair shows one identity, bool [P].
        far: false accept rate wanted, 0 … 1.
        folds: number of contiguous blocks.

    Raises:
        DataError: fewer pairs than folds, or a fold lacks same or different pairs.
    """
    _check_lengths(distances, same)
    grid = _thresholds(1000)
    tars, fars = [], []
    for fold, (train, test) in enumerate(_folds(len(same), folds)):
        num_same, num_different = np.count_nonzero(test & same), np.count_nonzero(test & ~same)
        if min(num_same, num_different) == 0:
            raise DataError(
                f"verification pairs, fold {fold}",
                found=f"{num_same} same and {num_different} different pairs",
                expected="pairs of both kinds in every fold",
                fix="order the pairs in blocks of same and different ones, as insightface does",
            )
        different = distances[train & ~same]
        rates = _accepted(different, grid) / len(different)
        threshold = _threshold_at(rates, grid, far)
        tars.append(np.count_nonzero(distances[test & same] < threshold) / num_same)
        fars.append(np.count_nonzero(distances[test & ~same] < threshold) / num_different)
    return TarAtFar(float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars)))


def _threshold_at(rates: Float64s, grid: Float64s, far: float) -> float:
    """Interpolate the threshold at which the rates, rising over the grid, reach `far`.

    Left knot: the last threshold with a rate ≤ far; right knot: the next one. 0 if no rate is high
    enough.
    """
    # Reference: scipy's order-1 spline did this up to scipy 1.8; newer ones refuse the plateaus.
    if rates[-1] < far:
        return 0.0
    left = int(np.searchsorted(rates, far, side="right")) - 1
    if left < 0 or left + 1 == len(rates):
        return float(grid[max(left, 0)])
    share = (far - rates[left]) / (rates[left + 1] - rates[left])
    return float(grid[left] + share * (grid[left + 1] - grid[left]))


def _check_lengths(distances: Float64s, same: Truths) -> None:
    assert distances.shape == same.shape, f"{distances.shape} distances, {same.shape} truths"
    assert same.dtype == np.bool_, "truths are bools"


@dataclass(frozen=True, eq=False)
class RocCurve:
    """A pooled ROC curve from (0, 0) to (1, 1); float64 [T] each.

    Args:
        fpr: accepted share of the different pairs.
        tpr: accepted share of the same pairs.
    """

    fpr: Float64s
    tpr: Float64s

    @property
    def area(self) -> float:
        """Area under the curve (AUC)."""
        return float(np.sum(np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1])) / 2)

    def tar_at(self, far: float) -> tuple[float, float]:
        """Return the TAR at the point whose FAR is nearest to `far`, and that FAR.

        Reference: the nearest, possibly above `far`; on ties the one with more accepts.
        With fewer than 1 / (2 far) different pairs this is the point of FAR 0.
        """
        nearest = len(self.fpr) - 1 - int(np.argmin(np.abs(self.fpr - far)[::-1]))
        return float(self.tpr[nearest]), float(self.fpr[nearest])


def roc_curve(scores: NDArray[np.floating[Any]], same: NDArray[np.bool_]) -> RocCurve:
    """Compute the ROC curve over all distinct scores, without collinear points.

    Reference: scikit-learn's `roc_curve` with its default `drop_intermediate=True`.

    Args:
        scores: higher is more similar, [P].
        same: whether a pair shows one identity, bool [P].

    Raises:
        DataError: there are no pairs of one kind.
    """
    assert scores.shape == same.shape, f"{scores.shape} scores, {same.shape} truths"
    num_same = int(np.count_nonzero(same))
    if num_same in (0, len(same)):
        raise DataError(
            "verification pairs",
            found=f"{num_same} same and {len(same) - num_same} different pairs",
            expected="pairs of both kinds",
            fix="add pairs of the other kind",
        )
    order = np.argsort(-scores, kind="stable")
    values = scores[order]
    # Equal scores are accepted together: one point per distinct value.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    accepted = np.cumsum(same[order], dtype=np.int64)[ends]
    rejected = ends + 1 - accepted
    corner = np.ones(len(ends), dtype=bool)
    corner[1:-1] = (np.diff(rejected, 2) != 0) | (np.diff(accepted, 2) != 0)
    tpr = np.append(0, accepted[corner]) / num_same
    fpr = np.append(0, rejected[corner]) / (len(same) - num_same)
    return RocCurve(fpr, tpr)

"""The ROC curve of scores, pooled over all pairs: its points, its area, TAR at a FAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError

Float64s = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Rates at falling thresholds, from (0, 0) to (1, 1); float64 [T] each.

    Args:
        fpr: share of the different pairs that score as high.
        tpr: share of the same pairs that do.
    """

    fpr: Float64s
    tpr: Float64s

    @property
    def area(self) -> float:
        """Area under the curve: the chance that a same pair outscores a different one."""
        return float(np.sum(np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1])) / 2)

    def tar_at(self, far: float) -> tuple[float, float]:
        """TAR at the point whose FAR is nearest to `far`, and the FAR of that point.

        Reference: nearest, hence maybe above `far`; of two equally near the one with more accepts.
        With fewer than 1 / (2 far) different pairs this is the point of FAR 0.
        """
        nearest = len(self.fpr) - 1 - int(np.argmin(np.abs(self.fpr - far)[::-1]))
        return float(self.tpr[nearest]), float(self.fpr[nearest])


def roc_curve(scores: NDArray[np.floating[Any]], same: NDArray[np.bool_]) -> RocCurve:
    """The curve over all different scores, without points inside straight pieces.

    Reference: scikit-learn's `roc_curve` with its default `drop_intermediate=True`.

    Args:
        scores: higher is more alike, [P].
        same: whether a pair shows one person, bool [P].

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
    # Equal scores are accepted together, so a point stands after the last of each value.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    accepted = np.cumsum(same[order], dtype=np.int64)[ends]
    rejected = ends + 1 - accepted
    corner = np.ones(len(ends), dtype=bool)
    corner[1:-1] = (np.diff(rejected, 2) != 0) | (np.diff(accepted, 2) != 0)
    tpr = np.append(0, accepted[corner]) / num_same
    fpr = np.append(0, rejected[corner]) / (len(same) - num_same)
    return RocCurve(fpr, tpr)

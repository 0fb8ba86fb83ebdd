"""Thresholds on similarities, from the labels of the training set itself.

Different networks give different scales of similarity, so no constant would do. Scores of the same identity and of the
most similar other one are compared, and the threshold is that of least expected error at an assumed share of faults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# Share of images or identities with a fault that the thresholds assume.
PRIOR = 0.03
# Below this share of true pairs found, an embedding separates too little for a statement.
_MIN_FOUND = 0.2


@dataclass(frozen=True)
class Threshold:
    """A threshold on a similarity.

    Args:
        value: the similarity.
        found: share of the same-identity scores at or above it.
        false: share of the most similar other identities at or above it.
    """

    value: float
    found: float
    false: float


def least_error_threshold(same: Floats, other: Floats, prior: float = PRIOR) -> Threshold | None:
    """Return the threshold of least expected error; None where it would find less than a fifth.

    Args:
        same: similarities of the same identity.
        other: similarities to the most similar other identity.
        prior: assumed share of the pairs compared that are of one identity.
    """
    if len(same) == 0 or len(other) == 0:
        return None
    same, other = np.sort(same.astype(np.float64)), np.sort(other.astype(np.float64))
    values = np.unique(np.concatenate([same, other]))
    missed = np.searchsorted(same, values, side="left") / len(same)
    false = 1 - np.searchsorted(other, values, side="left") / len(other)
    best = int(np.argmin(prior * missed + (1 - prior) * false))
    # In the middle of the gap below the lowest score that counts.
    value = (values[max(best - 1, 0)] + values[best]) / 2
    found = Threshold(float(value), float(1 - missed[best]), float(false[best]))
    return found if found.found >= _MIN_FOUND else None

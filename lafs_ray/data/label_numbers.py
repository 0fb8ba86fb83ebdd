"""Numbers without gaps for labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LabelNumbers:
    """The i-th of the sorted labels has the number first + i.

    Args:
        labels: all that occur, ascending, int64 [k].
        first: number of the lowest label.
    """

    labels: NDArray[np.int64]
    first: int = 0

    def of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of labels, int64 [n]; -1 for a label that is not among them."""
        if not len(self.labels):
            return np.full(len(labels), -1, np.int64)
        place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[place] == labels, self.first + place, -1)

"""Candidates of shared identities."""

from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.audit.calibration import Threshold
from lafs_ray.audit.leaks import SharedIdentities


@pytest.mark.parametrize(("passing", "false", "claimed"), [(12, 0.01, 0), (17, 0.01, 17), (1, 0.0, 1)])
def test_flagged__more_than_by_chance(passing: int, false: float, claimed: int) -> None:
    """Of 1,000 images 10 pass by chance at a false share of 1 %: 12 claim nothing, 17 do; at a share of 0 one does."""
    scores = np.where(np.arange(1000) < passing, 0.9, 0.1).astype(np.float32)
    rows = np.arange(1000)
    found = SharedIdentities(rows, rows, scores, "images and centers", Threshold(0.5, 1.0, false))
    assert np.count_nonzero(found.flagged) == claimed

"""Thresholds of least expected error."""

from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.audit.calibration import least_error_threshold


def test_threshold__separated_scores() -> None:
    """Between separated scores the threshold finds all and is never wrong."""
    found = least_error_threshold(np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3]))
    assert found is not None
    assert (found.value, found.found, found.false) == (pytest.approx(0.55), 1.0, 0.0)


def test_threshold__by_hand() -> None:
    """At a prior of 0.5 and scores 1, 3 against 0, 2: above 0 the error is ½·½, above 2 it is ½·½; the first wins."""
    found = least_error_threshold(np.array([1.0, 3.0]), np.array([0.0, 2.0]), prior=0.5)
    assert found is not None
    assert (found.value, found.found, found.false) == (0.5, 1.0, 0.5)
    # Faults that are rare are claimed only where nothing else scores as high.
    rare = least_error_threshold(np.array([1.0, 3.0]), np.array([0.0, 2.0]), prior=0.03)
    assert rare is not None
    assert (rare.value, rare.found, rare.false) == (2.5, 0.5, 0.0)


def test_threshold__nothing_separates() -> None:
    """Where less than a fifth would be found, nothing is claimed; nor without scores."""
    generator = np.random.default_rng(0)
    assert least_error_threshold(generator.normal(0, 1, 500), generator.normal(0.5, 1, 500)) is None
    assert least_error_threshold(np.zeros(0), np.ones(3)) is None


@pytest.mark.parametrize("prior", [0.01, 0.1])
def test_threshold__has_the_least_error(prior: float) -> None:
    """No other score as a threshold has a smaller expected error."""
    generator = np.random.default_rng(1)
    same, other = generator.normal(3, 1, 200), generator.normal(0, 1, 300)
    found = least_error_threshold(same, other, prior)
    assert found is not None
    errors = [prior * np.mean(same < t) + (1 - prior) * np.mean(other >= t) for t in (*same, *other)]
    assert prior * (1 - found.found) + (1 - prior) * found.false == pytest.approx(min(errors))

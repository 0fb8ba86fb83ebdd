"""Standard errors and paired tests, against printed tables and values computed by hand."""

from __future__ import annotations

import pytest

from lafs_ray.evaluation.statistics import paired_t_test, rate_error


def test_rate_error__by_hand() -> None:
    """√(p(1-p)/n); certainty is never claimed of a rate of 0 or 1."""
    assert rate_error(0.5, 6000) == pytest.approx(0.006455, abs=1e-6)
    assert [rate_error(rate, 100) for rate in (0.0, 1.0)] == pytest.approx([0.00705] * 2, abs=1e-5)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (6, 2.571), (11, 2.228)])
def test_paired_t_test__interval_is_that_of_the_table(count: int, quantile: float) -> None:
    """Half the interval is the tabulated quantile times the standard error."""
    differences = [1.0, *[0.0] * (count - 1)]
    test = paired_t_test(differences)
    assert test is not None
    # The standard error of one 1 among zeros is 1 / n.
    assert (test.high - test.mean) * count == pytest.approx(quantile, abs=1e-3)
    # t = 1: below every quantile.
    assert not test.is_significant


def test_paired_t_test__p_value() -> None:
    """Differences 1, 2, 3, t = 2√3 at 2 degrees of freedom: p = 0.0742, from 1 - t / √(t² + 2)."""
    test = paired_t_test([1.0, 2.0, 3.0])
    assert test is not None
    assert test.p_value == pytest.approx(1 - (12 / 14) ** 0.5)
    assert not test.is_significant


def test_paired_t_test__nothing_varies() -> None:
    """One seed carries no test; equal differences leave no doubt."""
    assert paired_t_test([0.3]) is None
    equal, none = paired_t_test([0.1, 0.1]), paired_t_test([0.0, 0.0])
    assert equal is not None
    assert equal.is_significant
    assert none is not None
    assert not none.is_significant

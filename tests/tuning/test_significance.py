"""A winner that does not stand out is questioned."""

from __future__ import annotations

from lafs_ray.tuning.significance import EvalSample, doubts
from tests.tuning.test_results import trial

PAIRS = EvalSample(200, "pairs", 0.5)


def test_doubts__below_chance() -> None:
    """An accuracy of 0.41 on 200 balanced pairs is no result, even if it is the best one."""
    trials = [trial(0, "finished", 0.41), trial(1, "finished", 0.2)]
    (line,) = doubts(trials, trials[0], PAIRS)
    assert line.startswith("objective 0.4100 ± 0.0682 (200 pairs) is not above chance, 0.5000")


def test_doubts__of_trials_within_the_error() -> None:
    """0.70 and 0.65 on 200 pairs differ by less than 1.96 √2 0.0324 = 0.0898; 0.60 does not."""
    trials = [trial(0, "finished", 0.7), trial(1, "finished", 0.65), trial(2, "stopped", 0.6), trial(3, "failed")]
    (line,) = doubts(trials, trials[0], PAIRS)
    assert line.startswith("1 of 2 other trials that got as far lies within 0.0898")


def test_doubts__none() -> None:
    """A winner far above chance and all others is not questioned; nor is one of an unknown set."""
    trials = [trial(0, "finished", 0.9), trial(1, "finished", 0.6)]
    assert doubts(trials, trials[0], PAIRS) == []
    assert doubts(trials[1:], trials[1], None) == []

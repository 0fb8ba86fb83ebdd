"""Importance and plots of trials that were partly stopped early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lafs_ray.config.loader import resolve
from lafs_ray.tuning.analysis import comparable_study, draw_plots, importances, last_common_report
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Trial
from tests.tuning.test_results import trial

CONFIG = resolve(
    SweepConfig,
    {
        "name": "a",
        "task": "finetune",
        "base": "a.yaml",
        "space": {
            "optim.lr": {"log_uniform": [1e-4, 1e-2]},
            "mixup.probability": {"choice": [0.0, 0.2]},
            "mixup.alpha": {"uniform": [0, 1], "when": {"mixup.probability": [0.2]}},
            "augmentation.rand_augment": {"choice": [None, [1, 2]]},
        },
    },
    "sweep",
)


def half_stopped(count: int) -> list[Trial]:
    """Return trials whose objective depends on mix-up; half are stopped after the first report."""
    generator = np.random.default_rng(3)

    def settings(n: int) -> dict[str, Any]:
        lr = float(10 ** generator.uniform(-4, -2))
        return {"mixup.probability": 0.2 * (n % 2), "optim.lr": lr}

    return [
        trial(
            n,
            "stopped" if n % 2 else "finished",
            0.5 + 0.1 * (n % 2) + 0.01 * float(generator.uniform()),
            *([] if n % 2 else [0.9]),
            **settings(n),
        )
        for n in range(count)
    ]


def test_comparable_study__at_the_last_common_report() -> None:
    """A finished trial's later reports do not count against those that were stopped."""
    trials = [*half_stopped(4), trial(4, "failed")]
    assert last_common_report(trials) == 1
    study = comparable_study(CONFIG, trials)
    assert [one.value for one in study.trials] == [t.reports[0].objective for t in trials[:4]]


def test_importances__of_a_key_that_decides_and_of_one_that_does_not() -> None:
    """The key that decides the objective comes first, with most of the importance."""
    found = importances(comparable_study(CONFIG, half_stopped(60)))
    assert [*found] == ["mixup.probability", "optim.lr"]
    assert found["mixup.probability"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)


def test_importances__of_too_few_or_equal_trials() -> None:
    """Nothing is claimed of fewer than ten trials, or of equal objectives."""
    assert importances(comparable_study(CONFIG, half_stopped(9))) == {}
    equal = [trial(n, "finished", 0.5, **{"optim.lr": 1e-4 * (n + 1)}) for n in range(12)]
    assert importances(comparable_study(CONFIG, equal)) == {}


@pytest.mark.filterwarnings("error")
def test_draw_plots__of_few_and_odd_trials() -> None:
    """Every plot that the trials allow is drawn: of many, of inactive keys, of one, of none."""
    odd = [
        trial(0, "stopped", 0.5, **{"optim.lr": 1e-3, "mixup.probability": 0.0}),
        trial(1, "finished", 0.5, 0.6, **{"optim.lr": 2e-3, "augmentation.rand_augment": [1, 2]}),
        Trial(2, {}, "failed", (), "no"),
    ]
    assert [*draw_plots(CONFIG, half_stopped(12))] == ["slice", "curves", "importance", "rank"]
    assert [*draw_plots(CONFIG, odd)] == ["slice", "curves", "rank"]
    assert [*draw_plots(CONFIG, odd[:1])] == ["slice", "curves", "rank"]
    assert draw_plots(CONFIG, odd[2:]) == {}
    assert all(one.startswith(b"\x89PNG") for one in draw_plots(CONFIG, odd).values())

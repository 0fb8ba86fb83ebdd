"""Settings that each searcher proposes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lafs_ray.config.loader import resolve
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.search import grid_points, propose

SPACE = {
    "a": {"uniform": [0.0, 2.0]},
    "b": {"log_uniform": [1e-4, 1e-2]},
    "c": {"integer": [1, 3]},
    "d": {"choice": [None, 1, [0.5, 1.0], True]},
    "e": {"uniform": [0.0, 1.0], "when": {"c": [2, 3]}},
}


def config(space: dict[str, Any], **changes: Any) -> SweepConfig:
    tree = {"name": "a", "task": "finetune", "base": "a.yaml", "space": space, **changes}
    return resolve(SweepConfig, tree, "sweep")


def test_random__stays_in_the_space() -> None:
    """Every value is in its key's range, and a conditional key is there exactly when active."""
    sweep = config(SPACE)
    proposed = [propose(sweep, number) for number in range(300)]
    for settings in proposed:
        assert all(sweep.space[key].contains(value) for key, value in settings.items()), settings
        assert ("e" in settings) == (settings["c"] in (2, 3))
    assert {settings["c"] for settings in proposed} == {1, 2, 3}
    assert {str(settings["d"]) for settings in proposed} == {"None", "1", "[0.5, 1.0]", "True"}
    # A third of 300 values is in each third of the range: 100 ± 5 deviations of √(300·1/3·2/3).
    for key, place in (("a", lambda v: v / 2), ("b", lambda v: (math.log10(v) + 4) / 2)):
        counts = np.histogram([place(one[key]) for one in proposed], bins=3, range=(0, 1))[0]
        assert (abs(counts - 100) < 41).all(), (key, counts)


def test_random__depends_on_seed_and_number_alone() -> None:
    """The same again; another seed or number changes the values."""
    first = propose(config(SPACE, seed=5), 7)
    assert propose(config(SPACE, seed=5, budget={"trials": 99}), 7) == first
    assert propose(config(SPACE, seed=6), 7)["a"] != first["a"]
    assert propose(config(SPACE, seed=5), 8)["a"] != first["a"]


def test_grid__with_a_condition() -> None:
    """All combinations, the last key fastest; one with an inactive key comes once."""
    space = {"a": {"choice": [False, True]}, "b": {"choice": [1, 2], "when": {"a": [True]}}}
    sweep = config(space, searcher={"kind": "grid"})
    points = [{"a": False}, {"a": True, "b": 1}, {"a": True, "b": 2}]
    assert grid_points(sweep.space) == points
    assert [propose(sweep, number) for number in range(3)] == points


def test_tpe__learns_and_is_reproducible() -> None:
    """After trials in which small values did well it proposes small ones; proposals depend on seed, number and earlier
    trials, in any process; conditions hold."""
    space = {"a": {"uniform": [0, 1]}, "b": {"choice": [[1, 2], None, 3]}, "c": {"integer": [1, 9], "when": {"b": [3]}}}
    loss = {"metric": "loss"}
    tpe = config(space, searcher={"kind": "tpe", "startup_trials": 12}, objective=loss)

    def value_of(settings: dict[str, Any]) -> float:
        return float(settings["a"] + (0.0 if settings["b"] == 3 else 0.5))

    def known(count: int) -> list[Trial]:
        trials: list[Trial] = []
        for number in range(count):
            settings = propose(tpe, number, trials)
            value = value_of(settings)
            status = "stopped" if value > 1.2 else "finished"
            report = Report(1, seed=0, step=1, value=value, objective=value, seconds=1.0)
            trials.append(Trial(number, settings, status, (report,)))
        return trials

    trials = known(40)
    assert [one.settings for one in trials[:3]] == [propose(config(space), n) for n in range(3)]
    proposed = [propose(tpe, number, trials) for number in range(40, 50)]
    # Random settings have 0.5 + 0.5·2/3 = 0.83 on average.
    assert sum(map(value_of, proposed)) / 10 < 0.5
    assert all(("c" in one) == (one["b"] == 3) for one in proposed)
    assert [propose(tpe, number, known(40)) for number in range(40, 50)] == proposed

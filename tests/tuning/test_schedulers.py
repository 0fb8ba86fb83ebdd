"""Ray Tune's schedulers with the sweep's options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from lafs_ray.tuning.schedulers import make_scheduler
from tests.tuning.test_search import config

SPACE = {
    "optim.lr": {"log_uniform": [1e-4, 1e-2]},
    "augmentation.rand_augment": {"choice": [None, 1, [2]]},
    "margin.margin": {"uniform": [0, 0.5]},
    "batch_size": {"integer": [1, 3]},
}


def explored(resample: float, settings: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    pbt = {"kind": "pbt", "resample_probability": resample}
    scheduler = make_scheduler(config(SPACE, scheduler=pbt, seed=seed))
    donor = SimpleNamespace(config={"settings": settings})
    return [scheduler._get_new_config(None, donor)[0]["settings"] for _ in range(40)]


def test_pbt__perturbs_within_the_space() -> None:
    """Numbers change by a fifth, choices to a neighbor, and none leaves the space."""
    donor = {"optim.lr": 1e-2, "augmentation.rand_augment": None, "margin.margin": 0.25, "batch_size": 3}
    found = explored(0.0, donor)
    assert {one["margin.margin"] for one in found} == {0.2, 0.3}
    assert {one["optim.lr"] for one in found} == {8e-3, 1e-2}
    assert {one["batch_size"] for one in found} == {2, 3}
    assert all(isinstance(one["batch_size"], int) for one in found)
    assert {one["augmentation.rand_augment"] for one in found} == {None, 1}


def test_pbt__resamples_within_the_space() -> None:
    """Resampled values are in their ranges, and the same again with the same seed."""
    donor = {"optim.lr": 1e-3, "augmentation.rand_augment": [2], "margin.margin": 0.25, "batch_size": 2}
    found = explored(1.0, donor)
    space = config(SPACE).space
    assert all(space[key].contains(value) for one in found for key, value in one.items())
    assert len({one["optim.lr"] for one in found}) == 40
    assert {one["batch_size"] for one in found} == {1, 2, 3}
    assert explored(1.0, donor) == found
    assert explored(1.0, donor, seed=1) != found


def test_make_scheduler__options() -> None:
    """Rungs of ASHA are at grace_period times powers of reduction_factor."""
    asha = {"kind": "asha", "grace_period": 1, "reduction_factor": 2}
    scheduler = make_scheduler(config(SPACE, scheduler=asha, objective={"reports": 8}))
    (bracket,) = scheduler._brackets
    assert [rung for rung, _ in bracket._rungs] == [8, 4, 2, 1]
    median = {"kind": "median", "grace_period": 2, "min_samples_required": 5}
    scheduler = make_scheduler(config(SPACE, scheduler=median))
    assert (scheduler._grace_period, scheduler._min_samples_required) == (2, 5)

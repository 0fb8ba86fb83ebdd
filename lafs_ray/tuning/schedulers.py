"""The sweep's early-stopping scheduler, as Ray Tune's; its unit of time is the report."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.search_space import Dimension, Space


def make_scheduler(config: SweepConfig) -> TrialScheduler:
    """Return Tune's scheduler with the options of the sweep."""
    kind, last = config.scheduler.kind, config.objective.last_report
    options = {"time_attr": "report", **config.scheduler.options}
    if kind == "asha":
        return AsyncHyperBandScheduler(max_t=last, **options)
    if kind == "median":
        # No trial is paused until there are enough others: resuming one costs a process.
        return MedianStoppingRule(min_time_slice=last + 1, **options)
    if kind == "pbt":
        # Tune chooses and perturbs with the global generators of the driver's process.
        random.seed(config.seed)
        np.random.seed(config.seed % (1 << 32))  # noqa: NPY002
        return PopulationBasedTraining(
            hyperparam_mutations={"settings": {key: _mutation(one) for key, one in config.space.items()}},
            custom_explore_fn=partial(_clip, config.space),
            log_config=False,
            require_attrs=False,
            **options,
        )
    return FIFOScheduler()


def _mutation(dimension: Dimension) -> Any:
    """Return what Tune perturbs by: a list by its neighbors, a range by factors of 0.8 and 1.2."""
    if dimension.kind == "choice":
        return [*dimension.values]
    if dimension.kind == "integer":
        return tune.randint(int(dimension.low), int(dimension.high) + 1)
    sample = tune.loguniform if dimension.kind == "log_uniform" else tune.uniform
    return sample(dimension.low, dimension.high)


def _clip(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with its settings in the space, which Tune's factors may leave."""
    settings = dict(config["settings"])
    for key, value in settings.items():
        if space[key].is_numeric:
            settings[key] = type(value)(min(max(value, space[key].low), space[key].high))
    return {**config, "settings": settings}

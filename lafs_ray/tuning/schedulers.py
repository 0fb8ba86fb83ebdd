"""Ray Tune's schedulers as a sweep's settings ask for them."""

from __future__ import annotations

import random
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.space import moved_settings


def make_scheduler(config: SweepConfig) -> TrialScheduler:
    """Tune's scheduler; its unit of time is the report."""
    own, last = config.scheduler, config.objective.last_report
    if own.kind == "asha":
        return AsyncHyperBandScheduler(
            time_attr="report",
            max_t=last,
            grace_period=own.grace,
            reduction_factor=own.reduction,
        )
    if own.kind == "median":
        return MedianStoppingRule(
            time_attr="report",
            grace_period=own.grace,
            min_samples_required=own.min_trials,
            # Nobody yields before there are enough others: coming back costs a process.
            min_time_slice=last + 1,
        )
    if own.kind == "pbt":
        # Tune chooses whom to copy by the global generator of the driver's process.
        random.seed(config.seed)
        return PopulationBasedTraining(
            time_attr="report",
            perturbation_interval=own.every,
            quantile_fraction=own.quantile,
            custom_explore_fn=_Explore(config),
            log_config=False,
            require_attrs=False,
        )
    return FIFOScheduler()


class _Explore:
    """New settings for a member that copies another one, inside the space."""

    def __init__(self, config: SweepConfig) -> None:
        self._config, self._moves = config, 0

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of the copied member with other settings."""
        sweep, number = self._config, self._moves
        self._moves += 1
        resample = sweep.scheduler.resample
        moved = moved_settings(sweep.space, config["settings"], resample, sweep.seed, number)
        return {**config, "settings": moved}

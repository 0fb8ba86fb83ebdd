"""Settings of each trial, sampled by Optuna: random search, TPE, or all points of a grid.

Settings depend on the sweep's seed, the trial's number and, for TPE, the earlier trials alone. The
study is rebuilt from the trials' records at each start, so it needs no storage of its own.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.space import Settings, Space, active_settings


def make_study(sign: int) -> optuna.Study:
    """Return an empty study in memory; `sign` is 1 to maximize, -1 to minimize."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if sign > 0 else "minimize")


def frozen_trial(
    trial: Trial, space: Space, state: TrialState, value: float | None = None
) -> FrozenTrial:
    """Return a trial as Optuna's record."""
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params={key: space[key].to_param(one) for key, one in trial.settings.items()},
        distributions={key: space[key].distribution for key in trial.settings},
        intermediate_values={one.report: one.objective for one in trial.reports},
    )


def grid_points(space: Space) -> list[Settings]:
    """Return all combinations of the choices, the last key fastest; each active one once."""
    points: list[Settings] = []
    for values in itertools.product(*(dimension.values for dimension in space.values())):
        point = active_settings(space, dict(zip(space, values, strict=True)))
        if point not in points:
            points.append(point)
    return points


class Search:
    """Proposes the settings of trials.

    Args:
        config: the sweep.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._study = make_study(config.objective.sign)

    @cached_property
    def _grid(self) -> list[Settings]:
        return grid_points(self._config.space)

    def propose(self, number: int) -> Settings:
        """Return the settings of the trial of a number."""
        config, searcher = self._config, self._config.searcher
        if searcher.kind == "grid":
            return self._grid[number]
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        self._study.sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=searcher.startup_trials)
            if searcher.kind == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        space = config.space
        asked = self._study.ask({key: one.distribution for key, one in space.items()})
        # Results are added with `add`, by this process or by a later one.
        self._study.tell(asked, state=TrialState.FAIL)
        values = {key: space[key].from_param(param) for key, param in asked.params.items()}
        return active_settings(space, values)

    def add(self, trial: Trial) -> None:
        """Add the results of a finished trial, or of one stopped early up to its last report."""
        if trial.status not in ("finished", "stopped") or not trial.reports:
            return
        is_finished = trial.status == "finished"
        state = TrialState.COMPLETE if is_finished else TrialState.PRUNED
        value = trial.objective if is_finished else None
        self._study.add_trial(frozen_trial(trial, self._config.space, state, value))

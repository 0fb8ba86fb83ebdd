"""Settings of each trial, sampled by Optuna: random search, TPE, or all points of a grid.

Settings depend on the sweep's seed, the trial's number and, for TPE, the earlier trials alone. The study is rebuilt
from the trials' records for each proposal, so it needs no storage of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.search_space import Settings, Space, active_settings


def make_study(sign: int, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """Return an empty study in memory; `sign` is 1 to maximize, -1 to minimize."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if sign > 0 else "minimize", sampler=sampler)


def frozen_trial(trial: Trial, space: Space, state: TrialState, value: float | None = None) -> FrozenTrial:
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


def propose(config: SweepConfig, number: int, trials: Sequence[Trial] = ()) -> Settings:
    """Return the settings of a new trial.

    Args:
        config: the sweep.
        number: of the new trial.
        trials: earlier ones, for TPE: those finished, and those stopped up to their last report.
    """
    space, searcher = config.space, config.searcher
    if searcher.kind == "grid":
        return grid_points(space)[number]
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if searcher.kind == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=searcher.startup_trials)
    study = make_study(config.objective.sign, sampler)
    for trial in trials:
        if trial.status == "finished":
            study.add_trial(frozen_trial(trial, space, TrialState.COMPLETE, trial.objective))
        elif trial.status == "stopped":
            study.add_trial(frozen_trial(trial, space, TrialState.PRUNED))
    asked = study.ask({key: dimension.distribution for key, dimension in space.items()})
    values = {key: space[key].from_param(param) for key, param in asked.params.items()}
    return active_settings(space, values)

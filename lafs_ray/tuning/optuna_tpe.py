"""Optuna's TPE as the source of settings; the extra `sweep` of the package.

A proposal depends on the sweep's seed, the trial's number and what earlier trials came to. The
study is made anew from the trials' own records at each start, so nothing else has to be kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.space import Dimension, Settings, Space, draw_settings, is_active

_STREAM = 0x747065


class Tpe:
    """A study over a search space.

    Args:
        space: keys in order.
        seed: of the sweep.
        startup: trials drawn at random first.
        sign: 1 where more is better, -1 where less is.
    """

    def __init__(self, space: Space, seed: int, startup: int, sign: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._seed, self._startup = space, seed, startup
        self._study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")

    def propose(self, number: int) -> Settings:
        """Settings for the trial of a number."""
        if number < self._startup:
            return draw_settings(self._space, self._seed, number)
        state = np.random.SeedSequence([_STREAM, self._seed, number]).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(state[0]), n_startup_trials=1)
        asked = self._study.ask()
        settings: Settings = {}
        for key, dimension in self._space.items():
            if is_active(dimension, settings):
                settings[key] = _suggest(asked, key, dimension)
        # What comes of it is told with `learn`, by this process or by a later one.
        self._study.tell(asked, state=TrialState.FAIL)
        return settings

    def learn(self, trial: Trial) -> None:
        """Take in what a trial came to: those that were stopped count as far as they came."""
        if trial.status not in ("finished", "stopped") or not trial.reports:
            return
        finished = trial.status == "finished"
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if finished else TrialState.PRUNED,
                value=trial.objective if finished else None,
                params={key: _param(self._space[key], v) for key, v in trial.settings.items()},
                distributions={key: _distribution(self._space[key]) for key in trial.settings},
                intermediate_values={one.report: one.objective for one in trial.reports},
            )
        )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "integer":
        return IntDistribution(int(dimension.low), int(dimension.high))
    if dimension.is_numeric:
        return FloatDistribution(dimension.low, dimension.high, log=dimension.kind == "log_uniform")
    # Values may be lists, which Optuna does not take: it chooses among their places.
    return CategoricalDistribution(range(len(dimension.values)))


def _param(dimension: Dimension, value: Any) -> Any:
    return value if dimension.is_numeric else dimension.values.index(value)


def _suggest(asked: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.kind == "integer":
        return asked.suggest_int(key, int(dimension.low), int(dimension.high))
    if dimension.is_numeric:
        log = dimension.kind == "log_uniform"
        return asked.suggest_float(key, dimension.low, dimension.high, log=log)
    return dimension.values[asked.suggest_categorical(key, range(len(dimension.values)))]

"""Which keys matter: hyperparameter importance and plots of a sweep, by Optuna.

All trials are compared at the last report that all have reached, so early stopping neither removes the bad ones nor
compares short runs with long ones.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.search import frozen_trial, make_study

# PED-ANOVA compares the better half with all; Optuna asks for five trials or more in it.
_MIN_TRIALS = 10
_BETTER_HALF = 0.5


def last_common_report(trials: Sequence[Trial]) -> int:
    """Return the last report that every trial with reports has reached; 0 without any."""
    reached = [max(one.report for one in trial.reports) for trial in trials if trial.reports]
    return min(reached, default=0)


def comparable_study(config: SweepConfig, trials: Sequence[Trial]) -> optuna.Study:
    """Return a study of all trials with reports, each with its objective at the common report."""
    at, study = last_common_report(trials), make_study(config.objective.sign)
    for trial in trials:
        value = trial.objective_at(at)
        if value is not None:
            study.add_trial(frozen_trial(trial, config.space, TrialState.COMPLETE, value))
    return study


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each key, the most important first; together they are 1.

    PED-ANOVA (Watanabe et al., IJCAI 2023): how far the values of a key in the better half of the trials differ from
    those of all trials. Empty where fewer than 10 trials have a report, or all have the same objective.
    """
    values = [trial.value for trial in study.trials]
    if len(values) < _MIN_TRIALS or len(set(values)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=_evaluator())
    return found


def _evaluator() -> PedAnovaImportanceEvaluator:
    return PedAnovaImportanceEvaluator(target_quantile=_BETTER_HALF)


def draw_plots(config: SweepConfig, trials: Sequence[Trial]) -> dict[str, bytes]:
    """Return the plots that the trials allow, as PNG by name.

    slice: objective over each key. curves: objective over reports. importance, from 10 trials on.
    rank: the two most important keys against each other, colored by the rank of the objective.
    """
    study = comparable_study(config, trials)
    if not study.trials:
        return {}
    label = f"{config.objective.metric} at report {last_common_report(trials)}"
    keys = {key for trial in study.trials for key in trial.params}
    with warnings.catch_warnings():
        # Optuna's plots are experimental; axes of a single value warn as well.
        warnings.simplefilter("ignore")
        found = importances(study)
        top = [*found, *(key for key in config.space if key in keys and key not in found)][:2]
        curves = plots.plot_intermediate_values(study)
        curves.set(xlabel="report", ylabel=config.objective.metric, title="")
        drawn = {"slice": plots.plot_slice(study, target_name=label), "curves": curves}
        if found:
            drawn["importance"] = plots.plot_param_importances(study, evaluator=_evaluator())
        if len(top) == 2:
            drawn["rank"] = plots.plot_rank(study, params=top, target_name=label)
    images = {name: _as_png(axes) for name, axes in drawn.items()}
    # Optuna draws with pyplot, which keeps its figures until they are closed.
    plt.close("all")
    return images


def _as_png(axes: Any) -> bytes:
    buffer = io.BytesIO()
    np.ravel(axes)[0].figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()

"""Trials on Ray Tune: which start when, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from lafs_ray.tuning.concurrency import TrialRoom
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.trainable import number_of, trainable
from lafs_ray.tuning.trial import Task

# Set before Tune is used: Ctrl-C is ours to handle, nobody reads its logs and tables, and a trial
# that fails before its first report ends without a figure.
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Plan:
    """What Tune is to do.

    Args:
        config: the sweep's.
        numbers: of the trials, in the order in which they start.
        propose: settings of a number, asked for when it starts.
        task: what a trial of a number and settings has to do; travels to other processes.
        room: what one takes.
        at_once: how many run together.
        folder: for Tune's own files.
        attempt: name of this start of the sweep.
        seconds: that are left; None is no limit.
    """

    config: SweepConfig
    numbers: Sequence[int]
    propose: Callable[[int], Settings]
    task: Callable[[int, Settings], Task]
    room: TrialRoom
    at_once: int
    folder: str
    attempt: str
    seconds: float | None = None


@dataclass(frozen=True)
class Watch:
    """What happens to trials, told in the driver.

    Args:
        reported: a number and its report, and whether an earlier start had made it.
        ended: a number, and why its process died if it did.
    """

    reported: Callable[[int, Report, bool], None]
    ended: Callable[[int, str], None]


def run_trials(plan: Plan, scheduler: TrialScheduler | None, watch: Watch) -> None:
    """Run the trials of a plan; returns when all have ended or the time is over.

    Args:
        plan: the trials.
        scheduler: who ends trials early; None lets all come to their end.
        watch: is told what happens.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    objective = plan.config.objective
    population = isinstance(scheduler, PopulationBasedTraining)
    process = plan.room.process
    bundle = {"CPU": process.cpus, **({"GPU": process.gpus} if process.gpus else {})}
    resources = tune.PlacementGroupFactory([bundle])
    in_process = plan.room.workers.cpus == 0
    # A population makes its own proposals: Tune refuses a searcher beside it.
    members = [plan.propose(number) for number in plan.numbers] if population else []
    numbers = plan.numbers if population else None
    tuner = tune.Tuner(
        tune.with_resources(trainable(plan.task, numbers), resources),
        param_space={"settings": tune.grid_search(members)} if population else {},
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max" if objective.sign > 0 else "min",
            search_alg=None if population else Proposals(plan),
            scheduler=scheduler or FIFOScheduler(),
            num_samples=1 if population else len(plan.numbers),
            max_concurrent_trials=plan.at_once,
            time_budget_s=plan.seconds,
            # Where workers are started, they end with the process.
            reuse_actors=in_process and not population,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=plan.attempt,
            storage_path=plan.folder,
            verbose=0,
            callbacks=[_Callback(numbers, watch)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()


class Proposals(Searcher):  # type: ignore[misc] # Ray ships no types
    """Gives Tune one task after the other.

    Args:
        plan: of the trials.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(
            metric="objective", mode="max" if plan.config.objective.sign > 0 else "min"
        )
        self._waiting, self._propose = list(plan.numbers), plan.propose

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - part of Tune's interface
        """The next trial."""
        if not self._waiting:
            return Searcher.FINISHED
        number = self._waiting.pop(0)
        return {"number": number, "settings": self._propose(number)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: records are read where they are needed."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is kept: a sweep continues from its own folder."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


class _Callback(tune.Callback):  # type: ignore[misc] # Ray ships no types
    """Hands Tune's events on, with our numbers."""

    def __init__(self, numbers: Sequence[int] | None, watch: Watch) -> None:
        self._numbers, self._watch = numbers, watch

    def _number(self, trial: Any) -> int:
        return number_of(trial.trial_id, trial.config, self._numbers)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - part of Tune's interface
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """A report."""
        report = Report(**{one.name: result[one.name] for one in fields(Report)})
        self._watch.reported(self._number(trial), report, result["replayed"])

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Its end, of itself or by the scheduler."""
        self._watch.ended(self._number(trial), "")

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Its process died more often than it may."""
        error = trial.get_error()
        text = " ".join(str(error).split()) if error is not None else "its process died"
        self._watch.ended(self._number(trial), text[-500:])

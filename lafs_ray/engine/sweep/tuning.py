"""Ray Tune: trials as its function trainables, its schedulers, proposals one after the other.

With compute.workers=0 a trial trains in its own process; otherwise that process drives a
`TorchTrainer` as a single run does, and judges its checkpoints beside it.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Checkpoint
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from lafs_ray.config.space import Settings, moved_settings
from lafs_ray.config.sweep import SweepConfig
from lafs_ray.engine.cluster import run_on_ray
from lafs_ray.engine.sweep.capacity import TrialRoom
from lafs_ray.engine.sweep.check import one_line
from lafs_ray.engine.sweep.trial import Copy, Task, run_trial, train_here
from lafs_ray.errors import UserError
from lafs_ray.evaluation.trials import Report
from lafs_ray.training.inputs import JobInputs

_POLL_S = 1.0
_POINTER = "pointer.json"

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
        tune.with_resources(_function(plan.task, numbers), resources),
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


def _function(
    make_task: Callable[[int, Settings], Task], numbers: Sequence[int] | None
) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for a trial.

    Args:
        make_task: what there is to do.
        numbers: of a population's members; None where the configuration says the number.
    """

    def trial(config: dict[str, Any]) -> None:
        number = _number_of(tune.get_context().get_trial_id(), config, numbers)
        task = make_task(number, config["settings"])
        copied = tune.get_checkpoint()
        try:
            run_trial(
                task,
                _Teller(number, task.folder.uri, keeps_pointer=numbers is not None),
                train_anywhere,
                None if copied is None else _copy(copied, task.folder.uri),
            )
        except UserError as error:
            # Another try would meet the same mistake, so Tune is not told of a failure.
            task.folder.write_outcome("failed", one_line(error))

    return trial


def _number_of(trial_id: str, config: dict[str, Any], numbers: Sequence[int] | None) -> int:
    """A trial's number. A copied configuration is that of another trial, its id is its own."""
    if numbers is None:
        return int(config["number"])
    return numbers[int(trial_id.rpartition("_")[2])]


@dataclass(frozen=True)
class _Teller:
    """Hands reports to Tune.

    Args:
        number: of the trial.
        folder: of the trial.
        keeps_pointer: whether each report says where its checkpoint lies, for those who copy it.
    """

    number: int
    folder: str
    keeps_pointer: bool

    def __call__(self, report: Report, replayed: bool) -> None:
        metrics = {**asdict(report), "number": self.number, "replayed": replayed}
        if not self.keeps_pointer:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"folder": self.folder, "report": report.report}
            (Path(folder) / _POINTER).write_text(json.dumps(pointer))
            tune.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _copy(checkpoint: Checkpoint, own: str) -> Copy | None:
    """Whose checkpoint it is; None where it is the trial's own, which it finds by itself."""
    with checkpoint.as_directory() as folder:
        pointer = json.loads((Path(folder) / _POINTER).read_text())
    return None if pointer["folder"] == own else Copy(pointer["folder"], pointer["report"])


def train_anywhere(inputs: JobInputs, saved: Callable[[int], None]) -> None:
    """Train a job where its configuration says: in this process, or on workers of its own."""
    if inputs.config.compute.workers == 0:
        train_here(inputs, saved)
    else:
        train_on_workers(inputs, saved)


def train_on_workers(inputs: JobInputs, saved: Callable[[int], None]) -> None:
    """Train on Ray Train's workers; their checkpoints are told here as they appear.

    The training does not wait for whoever is told. If he raises, the thread stays behind, and its
    workers end with this process, which Tune ends then.

    Raises:
        UserError: a mistake that the workers met.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            run_on_ray(inputs)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    folder, told = inputs.folder(), set(inputs.folder().steps())
    thread.start()
    while True:
        thread.join(_POLL_S)
        is_over = not thread.is_alive()
        for step in folder.steps():
            if step not in told:
                told.add(step)
                saved(step)
        if is_over:
            break
    if errors:
        raise errors[0]


class _Callback(tune.Callback):  # type: ignore[misc] # Ray ships no types
    """Hands Tune's events on, with our numbers."""

    def __init__(self, numbers: Sequence[int] | None, watch: Watch) -> None:
        self._numbers, self._watch = numbers, watch

    def _number(self, trial: Any) -> int:
        return _number_of(trial.trial_id, trial.config, self._numbers)

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

"""A batch of trials on Ray Tune."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from typing import Any

import ray
from ray import tune

from lafs_ray.data.io import filesystem
from lafs_ray.engine.ray_session import start_or_join
from lafs_ray.tuning.concurrency import max_concurrent, trial_resources
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.schedulers import make_scheduler
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trainable import make_trainable, trial_number
from lafs_ray.tuning.trial import TrialBatch

logger = logging.getLogger(__name__)

# Read when Tune is first used: Ctrl-C is handled by our command line, Tune's logs and tables are not used, and a trial
# that fails before its first report has no metric.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_batch(batch: TrialBatch) -> None:
    """Run trials on the cluster of this job, or on one of this machine, to their ends.

    Raises:
        ConfigError: the cluster cannot fit a trial, or all members of a population at once.
    """
    config = batch.sweep.config
    is_population = batch.early_stopping and config.scheduler.kind == "pbt"
    resources = trial_resources(batch.sweep)
    members = len(batch.numbers) if is_population else 1
    # On this machine CPUs are logical, and members share its cores.
    # The workers of a trial that is stopped early are freed by an actor of Ray Train's, which needs the dashboard.
    start_or_join(resources.total.cpus * members, needs_dashboard=resources.workers.cpus > 0)
    concurrent = max_concurrent(batch.sweep, resources, ray.nodes(), members)
    logger.info(f"concurrent trials: {concurrent}, each {resources.arithmetic}")
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    process = resources.process
    bundle = {"CPU": process.cpus, **({"GPU": process.gpus} if process.gpus else {})}
    trainable = make_trainable(batch.numbers, batch.make_spec, is_population=is_population)
    space = {}
    if is_population:
        proposed = [batch.make_spec(number, None).settings for number in batch.numbers]
        space = {"settings": tune.grid_search(proposed)}
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([bundle])),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max" if config.objective.sign > 0 else "min",
            scheduler=make_scheduler(config) if batch.early_stopping else None,
            num_samples=1 if is_population else len(batch.numbers),
            max_concurrent_trials=concurrent,
            time_budget_s=batch.time_budget_s,
            # Workers end with the process that started them.
            reuse_actors=resources.workers.cpus == 0 and not is_population,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=batch.attempt,
            storage_path=filesystem.join(SweepDir(batch.sweep).uri, "tune"),
            verbose=0,
            callbacks=[_Callback(batch)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()


class _Callback(tune.Callback):  # type: ignore[misc] # Ray ships no types
    """Passes Tune's events, whose arguments are all named, to the driver by trial number."""

    def __init__(self, batch: TrialBatch) -> None:
        self._batch = batch

    def _number(self, trial: Any) -> int:
        return trial_number(trial.trial_id, self._batch.numbers)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Pass a report."""
        report = Report(**{one.name: result[one.name] for one in fields(Report)})
        self._batch.on_report(self._number(trial), report, result["replayed"])

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """Pass the end of a trial that finished or was stopped."""
        self._batch.on_end(self._number(trial), "")

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """Pass the error of a trial whose process died again after a restart."""
        error = trial.get_error()
        text = " ".join(str(error).split()) if error is not None else "its process died"
        self._batch.on_end(self._number(trial), text[-500:])

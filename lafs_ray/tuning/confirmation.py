"""Confirmation: the winner of a sweep against its base, over new seeds and on unseen faces."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from lafs_ray.data.io import filesystem
from lafs_ray.tuning.preflight import no_results_error
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.sweep_dir import SweepDir, TrialDir
from lafs_ray.tuning.trial import TrialBatch, TrialSpec
from lafs_ray.tuning.trial_config import Sweep

_log = logging.getLogger(__name__)

ARMS = ("winner", "default")


def confirm(
    sweep: Sweep, winner: Trial, attempt: str, run_batch: Callable[[TrialBatch], None]
) -> None:
    """Run what is left of the confirmation, write confirm.json and print the comparison.

    Args:
        sweep: that is complete.
        winner: its best trial.
        attempt: name of this start.
        run_batch: runs trials.

    Raises:
        UserError: one of the runs failed.
    """
    config, sweep_dir = sweep.config, SweepDir(sweep)
    settings: dict[str, Settings] = {"winner": winner.settings, "default": {}}
    runs = [(arm, seed) for seed in config.confirm.seeds for arm in ARMS]
    dirs = [sweep_dir.confirmation(arm, seed) for arm, seed in runs]
    pending = []
    for number, ((arm, _), directory) in enumerate(zip(runs, dirs, strict=True)):
        record = directory.read()
        if record is not None and record.settings != settings[arm]:
            # A sweep continued with more trials may have another winner.
            filesystem.delete_tree(directory.uri)
            record = None
        record = record or Trial(number, settings[arm])
        if record.status != "finished":
            directory.write(replace(record, status="waiting", message=""))
            pending.append(number)
    if pending:
        _log.info(f"\nconfirmation: {len(pending)} runs of winner and default with new seeds")
        run_batch(
            TrialBatch(
                sweep,
                pending,
                make_spec=partial(_make_spec, sweep, attempt, runs, settings),
                on_report=partial(_on_report, runs),
                on_end=partial(_on_end, dirs),
                attempt=f"{attempt}-confirm",
                early_stopping=False,
            )
        )
    metric = config.confirm.metric or config.objective.metric
    values: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for (arm, seed), directory in zip(runs, dirs, strict=True):
        trial = directory.read()
        if trial is None or trial.objective is None:
            reason = (trial.message if trial else "") or "no report"
            raise no_results_error(f"{arm} with seed {seed}: {reason}")
        values[arm].append(trial.objective)
    content = {"metric": metric, "seeds": list(config.confirm.seeds), **values}
    sweep_dir.write("confirm.json", (json.dumps(content, indent=2) + "\n").encode())
    test_set = config.confirm.pairs or config.confirm.identities
    _log.info(f"\n{metric} over {len(config.confirm.seeds)} new seeds on the unseen {test_set}:")
    _log.info("\n".join(comparison(values["winner"], values["default"])))


def _make_spec(
    sweep: Sweep,
    attempt: str,
    runs: Sequence[tuple[str, int]],
    settings: Mapping[str, Settings],
    number: int,
    _: Settings | None,
) -> TrialSpec:
    config, (arm, seed) = sweep.config, runs[number]
    return TrialSpec(
        sweep,
        SweepDir(sweep).confirmation(arm, seed),
        settings[arm],
        seeds=(seed,),
        reports=1,
        eval_sets=config.confirm,
        metric=config.confirm.metric or config.objective.metric,
        attempt=attempt,
        replay=False,
    )


def _on_report(runs: Sequence[tuple[str, int]], number: int, report: Report, _: bool) -> None:
    arm, seed = runs[number]
    _log.info(f"{arm}, seed {seed}: {report.objective:.4f}")


def _on_end(dirs: Sequence[TrialDir], number: int, error: str) -> None:
    record = dirs[number].read()
    if error and record is not None:
        dirs[number].write(replace(record, status="failed", message=error))


def comparison(winner: Sequence[float], default: Sequence[float]) -> list[str]:
    """Return lines with mean ± standard deviation of both and of their paired differences.

    Args:
        winner: a metric for each seed; more is better.
        default: the same for the base.
    """
    differences = [a - b for a, b in zip(winner, default, strict=True)]
    better = sum(one > 0 for one in differences)
    return [
        f"winner: {mean_and_std(winner)}",
        f"default: {mean_and_std(default)}",
        f"winner - default: {mean_and_std(differences)}, "
        f"{better} of {len(differences)} seeds better",
    ]


def mean_and_std(values: Sequence[float]) -> str:
    """Return `0.6120 ± 0.0140`; without the deviation for a single value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"

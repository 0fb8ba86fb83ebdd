"""Confirmation: the winner of a sweep against its base, over new seeds and on unseen faces."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.statistics import paired_t_test
from lafs_ray.tuning.preflight import no_results_error
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.search_space import Settings
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import TrialBatch, TrialSpec
from lafs_ray.tuning.trial_config import Sweep

logger = logging.getLogger(__name__)


class Confirmation:
    """Runs of winner and default over the confirmation seeds.

    Args:
        sweep: that is complete.
        winner: settings of its best trial.
        attempt: name of this start.
    """

    def __init__(self, sweep: Sweep, winner: Settings, attempt: str) -> None:
        self._sweep, self._attempt, self._confirm = sweep, attempt, sweep.config.confirm
        self._objective = sweep.config.confirm_objective
        self._settings: dict[str, Settings] = {"winner": winner, "default": {}}
        self._runs = [(arm, seed) for seed in self._confirm.seeds for arm in self._settings]
        self._dirs = [SweepDir(sweep).confirmation(*run) for run in self._runs]

    def run(self, run_batch: Callable[[TrialBatch], None]) -> None:
        """Run what is left, write confirm.json and log the comparison.

        Raises:
            UserError: one of the runs failed.
        """
        pending = [number for number in range(len(self._runs)) if self._is_pending(number)]
        if pending:
            logger.info(f"\nconfirmation: {len(pending)} runs of winner and default with new seeds")
            run_batch(
                TrialBatch(
                    self._sweep,
                    pending,
                    make_spec=self._make_spec,
                    on_report=self._on_report,
                    on_end=self._on_end,
                    attempt=f"{self._attempt}-confirm",
                    early_stopping=False,
                )
            )
        values: dict[str, list[float]] = {arm: [] for arm in self._settings}
        for (arm, seed), directory in zip(self._runs, self._dirs, strict=True):
            record = directory.read()
            if record is None or record.objective is None:
                reason = (record.message if record else "") or "no report"
                raise no_results_error(f"{arm} with seed {seed}: {reason}")
            values[arm].append(record.objective)
        content = {"metric": self._objective.metric, "seeds": list(self._confirm.seeds), **values}
        text = json.dumps(content, indent=2) + "\n"
        SweepDir(self._sweep).write("confirm.json", text.encode())
        test_set, seeds = self._confirm.pairs or self._confirm.identities, len(self._confirm.seeds)
        logger.info(f"\n{self._objective.metric} over {seeds} new seeds on the unseen {test_set}:")
        logger.info("\n".join(comparison(values["winner"], values["default"])))

    def _is_pending(self, number: int) -> bool:
        """Return whether a run has to start, and write its record if so."""
        directory, settings = self._dirs[number], self._settings[self._runs[number][0]]
        record = directory.read()
        if record is not None and record.settings != settings:
            # A sweep continued with more trials may have another winner.
            filesystem.delete_tree(directory.uri)
            record = None
        record = record or Trial(number, settings)
        if record.status == "finished":
            return False
        directory.write(replace(record, status="waiting", message=""))
        return True

    def _make_spec(self, number: int, _: Settings | None) -> TrialSpec:
        arm, seed = self._runs[number]
        return TrialSpec(
            self._sweep,
            self._dirs[number],
            self._settings[arm],
            self._objective.model_copy(update={"seeds": (seed,), "reports": 1}),
            self._attempt,
            replay=False,
        )

    def _on_report(self, number: int, report: Report, _: bool) -> None:
        arm, seed = self._runs[number]
        logger.info(f"{arm}, seed {seed}: {report.objective:.4f}")

    def _on_end(self, number: int, error: str) -> None:
        record = self._dirs[number].read()
        if error and record is not None:
            self._dirs[number].write(replace(record, status="failed", message=error))


def comparison(winner: Sequence[float], default: Sequence[float]) -> list[str]:
    """Return lines with mean ± standard deviation of both and of their paired differences, and a test of these.

    Args:
        winner: a metric for each seed; more is better.
        default: the same for the base.
    """
    differences = [a - b for a, b in zip(winner, default, strict=True)]
    better = sum(one > 0 for one in differences)
    test = paired_t_test(differences)
    if test is None:
        verdict = "one seed carries no interval: nothing can be said about the difference"
    else:
        verdict = (
            f"95 % interval {test.low:.4f} to {test.high:.4f}, p = {test.p_value:.2g} (paired t-test): "
            f"{'' if test.is_significant else 'not '}significant"
        )
    return [
        f"winner: {mean_and_std(winner)}",
        f"default: {mean_and_std(default)}",
        f"winner - default: {mean_and_std(differences)}, {better} of {len(differences)} seeds better",
        verdict,
    ]


def mean_and_std(values: Sequence[float]) -> str:
    """Return `0.6120 ± 0.0140`; without the deviation for a single value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"

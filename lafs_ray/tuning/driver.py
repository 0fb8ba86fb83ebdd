"""Driver of a sweep: runs the trials that are left, writes the results, confirms the winner."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from lafs_ray.config.loader import apply_overrides
from lafs_ray.config.yaml_text import write_yaml
from lafs_ray.data.io import filesystem
from lafs_ray.tuning.analysis import comparable_study, draw_plots, importances
from lafs_ray.tuning.confirmation import Confirmation
from lafs_ray.tuning.preflight import no_results_error
from lafs_ray.tuning.results import Report, Trial, best, table, to_parquet
from lafs_ray.tuning.search import propose
from lafs_ray.tuning.search_space import Settings
from lafs_ray.tuning.significance import doubts, eval_sample
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import TrialBatch, TrialSpec
from lafs_ray.tuning.trial_config import Sweep

logger = logging.getLogger(__name__)


class Driver:
    """A sweep being run.

    Args:
        sweep: that is valid.
        fingerprints: of its training sets, by section.
        run_batch: runs trials, as `tuner.run_batch` does on Ray Tune.
    """

    def __init__(self, sweep: Sweep, fingerprints: Mapping[str, str], run_batch: Callable[[TrialBatch], None]) -> None:
        self._fingerprints, self._run_batch = fingerprints, run_batch
        self.sweep, self.config, self.dir = sweep, sweep.config, SweepDir(sweep)
        self.attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._started, self._spent_before = time.monotonic(), 0.0
        self._trials: dict[int, Trial] = {}
        self._done: list[int] = []

    def run(self) -> None:
        """Run what is left, then write the results and compare the winner with the base.

        Raises:
            UserError: no trial has a report, or the cluster cannot fit one.
            KeyboardInterrupt: Ctrl-C, after the table so far.
        """
        self.dir.claim(self._fingerprints)
        self._spent_before = self.dir.read_spent_s()
        self._trials = {trial.number: trial for trial in self.dir.read_trials()}
        try:
            self._run_trials()
        finally:
            self.dir.write_spent_s(self._spent_s())
            trials = self.dir.read_trials()
            self._write_results(trials)
            if trials:
                objective = self.config.objective
                lines = table(trials, self.config.space, objective.sign, objective.last_report)
                logger.info("\n".join(["", *lines]))
        self._finish(trials)

    def _run_trials(self) -> None:
        self._done = [n for n, t in self._trials.items() if t.status in ("finished", "stopped")]
        pending = [n for n in range(self.config.budget.trials) if n not in self._done]
        for trial in self._trials.values():
            if trial.status == "failed":
                self.dir.trial(trial.number).write(replace(trial, status="waiting", message=""))
        seconds = self._seconds_left()
        if not pending or (seconds is not None and seconds <= 0):
            return
        if self._done:
            logger.info(f"continuing {self.config.name}: trials already done: {len(self._done)}")
        # These schedulers compare with earlier trials, so those report again first.
        replayed = self._done if self.config.scheduler.kind in ("asha", "median") else []
        self._run_batch(
            TrialBatch(
                self.sweep,
                [*replayed, *pending],
                make_spec=partial(_make_spec, self.sweep, self.attempt),
                on_report=self._on_report,
                on_end=self._on_end,
                attempt=f"{self.attempt}-trials",
                early_stopping=True,
                time_budget_s=seconds,
            )
        )

    def _on_report(self, number: int, report: Report, replayed: bool) -> None:
        if replayed:
            return
        self.dir.write_spent_s(self._spent_s())
        trial = self.dir.trial(number).read()
        assert trial is not None, "trials that report have a record"
        self._trials[number] = trial
        leader = best([*self._trials.values()], self.config.objective.sign)
        suffix = "" if leader is None else f"  (best {leader.objective:.4f}, trial {leader.number})"
        last = self.config.objective.last_report
        logger.info(
            f"trial {number}: report {report.report}/{last}, step {report.step} of seed "
            f"{report.seed}, {self.config.objective.metric} {report.objective:.4f}{suffix}"
        )

    def _on_end(self, number: int, error: str) -> None:
        if number in self._done:
            return
        directory, seconds = self.dir.trial(number), self._seconds_left()
        trial = directory.read() or Trial(number, {})
        if trial.status in ("waiting", "running"):
            if not error and seconds is not None and seconds <= 0:
                logger.info(f"trial {number}: interrupted: budget.hours used up")
                return
            trial = replace(trial, status="failed" if error else "stopped", message=error)
            directory.write(trial)
        if trial.status == "stopped":
            for seed in self.config.objective.seeds:
                filesystem.delete_tree(filesystem.join(directory.uri, f"s{seed}", "checkpoints"))
        if trial.status != "finished":
            logger.info(f"trial {number}: {trial.status} {trial.message}".rstrip())
        self._trials[number] = trial
        self._write_results([trial for _, trial in sorted(self._trials.items())])

    def _write_results(self, trials: list[Trial]) -> None:
        self.dir.write("results.parquet", to_parquet(trials, self.config.space))

    def _finish(self, trials: list[Trial]) -> None:
        config = self.config
        winner = best(trials, config.objective.sign)
        if winner is None:
            failed = [trial.message for trial in trials if trial.message]
            raise no_results_error(failed[0] if failed else "no trial has a report")
        for name, image in draw_plots(config, trials).items():
            self.dir.write(f"{name}.png", image)
        found = importances(comparable_study(config, trials))
        if found:
            logger.info("\nimportance (PED-ANOVA)")
            logger.info("\n".join(f"{value:6.2f}  {key}" for key, value in found.items()))
        found_doubts = doubts(trials, winner, eval_sample(config.objective))
        commands = _write_winner(self.sweep, winner, len(trials), found_doubts)
        unfinished = [trial for trial in trials if trial.status in ("waiting", "running")]
        if unfinished:
            logger.info(f"\nunfinished trials: {len(unfinished)}; raise budget.hours to continue")
        logger.info("\n".join(["", f"winner: trial {winner.number}", *commands]))
        for doubt in found_doubts:
            logger.warning("winner not significant: %s", doubt)
        if config.confirm.enabled and not unfinished:
            Confirmation(self.sweep, winner.settings, self.attempt).run(self._run_batch)

    def _spent_s(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _seconds_left(self) -> float | None:
        hours = self.config.budget.hours
        return None if hours is None else hours * 3600 - self._spent_s()


def _make_spec(sweep: Sweep, attempt: str, number: int, settings: Settings | None) -> TrialSpec:
    """Return a trial with the settings given, those that it already has, or new ones."""
    sweep_dir = SweepDir(sweep)
    directory = sweep_dir.trial(number)
    record = directory.read()
    if record is None or not record.settings:
        record = Trial(number, propose(sweep.config, number, sweep_dir.read_trials()))
        directory.write(record)
    return TrialSpec(
        sweep,
        directory,
        settings or record.settings,
        sweep.config.objective,
        attempt,
        replay=sweep.config.scheduler.kind in ("asha", "median"),
    )


def _write_winner(sweep: Sweep, winner: Trial, num_trials: int, found_doubts: Sequence[str]) -> list[str]:
    """Write the winner's configuration as files that run unchanged; return the commands."""
    config, sweep_dir = sweep.config, SweepDir(sweep)
    name = f"{config.name}_winner"
    tree = apply_overrides(sweep.tree(winner.settings), {"run.name": name})
    files = {"winner.yaml": (config.task, tree)}
    if sweep.finetune is not None:
        transformer = filesystem.join(sweep.default.run.storage, name)
        settings = {"run.name": f"{name}_finetune", "start.transformer": transformer}
        files["winner_finetune.yaml"] = ("finetune", apply_overrides(sweep.finetune, settings))
    commands = []
    for file, (task, content) in files.items():
        commands.append(f"lafs {task} {filesystem.join(sweep_dir.uri, file)}")
        lines = [
            f"# Winner of the sweep {config.name}: trial {winner.number} of {num_trials}, "
            f"{config.objective.metric} {winner.objective:.4f}",
            f"# over seeds {', '.join(map(str, config.objective.seeds))}. Status: {winner.status}.",
            f"# Command:  {commands[-1]}",
            *(f"# Not significant: {doubt}" for doubt in found_doubts),
        ]
        if config.scheduler.kind == "pbt":
            copies = winner.reports[-1].generation
            lines.insert(2, f"# Its last settings, after {copies} copies of other members.")
        sweep_dir.write(file, ("\n".join(lines) + "\n" + write_yaml(content)).encode())
    return commands

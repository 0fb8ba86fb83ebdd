"""A sweep that has been checked, to its winner."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.confirmation import Confirmation
from lafs_ray.tuning.outputs import say, write_pictures, write_results, write_winner
from lafs_ray.tuning.preflight import Checked, refuse_no_trials
from lafs_ray.tuning.results import (
    Report,
    Trial,
    best,
    importance_table,
    importances,
    table,
)
from lafs_ray.tuning.space import Settings, draw_settings, grid_points
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import Task
from lafs_ray.tuning.trial_config import Sweep


@dataclass
class Driver:
    """A sweep that is being run.

    Args:
        checked: the sweep.
    """

    checked: Checked
    _started: float = field(default_factory=time.monotonic)
    _spent_before: float = 0.0
    _done: set[int] = field(default_factory=set)
    _trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def sweep(self) -> Sweep:
        """The sweep."""
        return self.checked.sweep

    @property
    def config(self) -> SweepConfig:
        """Its settings."""
        return self.sweep.config

    @cached_property
    def folder(self) -> SweepDir:
        """Where it lies."""
        return SweepDir(self.sweep)

    @cached_property
    def attempt(self) -> str:
        """The name of this start."""
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"

    @cached_property
    def _tpe(self) -> Any:
        """The searcher that learns; Optuna is an extra."""
        from lafs_ray.tuning.optuna_tpe import Tpe

        config = self.config
        return Tpe(config.space, config.seed, config.searcher.startup, config.objective.sign)

    def run(self) -> None:
        """Run what is left of it, then write its results and compare the winner with the base.

        Raises:
            UserError: no trial came to anything, or the cluster has no room for one.
            KeyboardInterrupt: Ctrl-C, after the table so far.
        """
        self.folder.claim(self.checked.fingerprints)
        self._spent_before = self.folder.spent_s()
        self._trials = {trial.number: trial for trial in self.folder.trials()}
        try:
            self._search()
        finally:
            self.folder.spend(self._spent_s())
            trials = self.folder.trials()
            write_results(self.sweep, self.folder, trials)
            if trials:
                say("\n".join(["", *self._table(trials)]))
        self._finish(trials)

    def _search(self) -> None:
        known = self._trials.values()
        done = [trial.number for trial in known if trial.status in ("finished", "stopped")]
        left = [number for number in range(self.folder.count()) if number not in done]
        for number in left:
            self.folder.trial(number).drop_outcome()
        self._done.update(done)
        seconds = self._seconds_left()
        if not left or (seconds is not None and seconds <= 0):
            return
        if done:
            say(f"continuing {self.config.name}: {len(done)} trials are done")
        if self.config.searcher.kind == "optuna":
            for trial in self._trials.values():
                self._tpe.learn(trial)
        from lafs_ray.tuning.schedulers import make_scheduler
        from lafs_ray.tuning.tuner import Watch

        # The scheduler learns from the trials that are done before it decides on others.
        replayed = done if self.config.scheduler.kind in ("asha", "median") else []
        watch = Watch(self._reported, self._ended)
        self._tune(
            [*replayed, *left], self._propose, self._task, make_scheduler(self.config), watch
        )

    def _tune(
        self, numbers: list[int], propose: Any, task: Any, scheduler: Any, watch: Any
    ) -> None:
        """Run trials on the cluster of this job, or on one of this machine."""
        import ray

        from lafs_ray.engine.ray_session import join_cluster, start_or_join
        from lafs_ray.tuning.concurrency import (
            at_once,
            check_nodes,
            check_population,
            trial_room,
        )
        from lafs_ray.tuning.tuner import Plan, run_trials

        room = trial_room(self.sweep)
        is_population = scheduler is not None and self.config.scheduler.kind == "pbt"
        members = len(numbers) if is_population else 1
        # On this machine CPUs are logical, and members share its cores.
        start_or_join((room.total * members).cpus)
        join_cluster(room.total.cpus, room.arithmetic, room.total.gpus, room.arithmetic)
        nodes = ray.nodes()
        check_nodes(room, self.sweep, nodes)
        together = at_once(self.config, room, ray.cluster_resources())
        check_population(members, together, room, nodes)
        say(f"{together} trials at a time, each {room.arithmetic}")
        plan = Plan(
            config=self.config,
            numbers=numbers,
            propose=propose,
            task=task,
            room=room,
            at_once=together,
            folder=filesystem.join(self.folder.uri, "tune"),
            attempt=f"{self.attempt}-{'reruns' if scheduler is None else 'trials'}",
            seconds=None if scheduler is None else self._seconds_left(),
        )
        run_trials(plan, scheduler, watch)

    def _propose(self, number: int) -> Settings:
        """The settings of a trial: those that it has, or new ones."""
        folder = self.folder.trial(number)
        progress = folder.read_progress()
        settings = folder.read_settings() if progress is None else progress.settings
        if settings is None:
            settings = self._new_settings(number)
            folder.write_settings(settings)
        return settings

    def _new_settings(self, number: int) -> Settings:
        config = self.config
        if config.searcher.kind == "grid":
            return grid_points(config.space)[number]
        if config.searcher.kind == "optuna":
            settings: Settings = self._tpe.propose(number)
            return settings
        return draw_settings(config.space, config.seed, number)

    @cached_property
    def _task(self) -> Any:
        return partial(_search_task, self.sweep, self.attempt)

    def _reported(self, number: int, report: Report, replayed: bool) -> None:
        if replayed:
            return
        self.folder.spend(self._spent_s())
        self._read(number)
        leader = best([*self._trials.values()], self.config.objective.sign)
        lead = "" if leader is None else f"  (best {leader.objective:.4f}, trial {leader.number})"
        last = self.config.objective.last_report
        say(
            f"trial {number}: report {report.report}/{last}, step {report.step} of seed "
            f"{report.seed}, {self.config.objective.metric} {report.objective:.4f}{lead}"
        )

    def _ended(self, number: int, error: str) -> None:
        if number in self._done:
            return
        folder = self.folder.trial(number)
        seconds = self._seconds_left()
        outcome = folder.read_outcome()
        is_new = outcome is None
        if outcome is None and error:
            folder.write_outcome("failed", error)
        elif outcome is None and seconds is not None and seconds <= 0:
            say(f"trial {number}: broken off, as budget.hours are over")
            return
        elif outcome is None:
            folder.write_outcome("stopped")
            for seed in self.config.objective.seeds:
                filesystem.delete_tree(filesystem.join(folder.uri, f"s{seed}", "checkpoints"))
        trial = self._read(number)
        if is_new or trial.status == "failed":
            say(f"trial {number}: {trial.status} {trial.message}".rstrip())
        if self.config.searcher.kind == "optuna":
            self._tpe.learn(trial)
        trials = sorted(self._trials.values(), key=lambda one: one.number)
        write_results(self.sweep, self.folder, trials)

    def _read(self, number: int) -> Trial:
        """A trial as it has written itself down."""
        trial = self.folder.trial(number).trial(number)
        assert trial is not None, "trials that report or end were proposed"
        self._trials[number] = trial
        return trial

    def _finish(self, trials: list[Trial]) -> None:
        config = self.config
        winner = best(trials, config.objective.sign)
        if winner is None:
            failed = [trial.message for trial in trials if trial.message]
            raise refuse_no_trials(failed[0] if failed else "no report of any")
        write_pictures(self.sweep, self.folder, trials)
        found = importances(trials, config.space)
        say("\n".join(["", *importance_table(found)]))
        commands = write_winner(self.sweep, self.folder, winner, len(trials))
        unfinished = [trial for trial in trials if trial.status in ("waiting", "running")]
        if unfinished:
            say(f"\n{len(unfinished)} trials are unfinished: raise budget.hours to go on")
        say("\n".join(["", f"winner: trial {winner.number}", *commands]))
        if config.confirm.enabled and not unfinished:
            Confirmation(self.sweep, self.folder, self.attempt, self._tune).run(winner)

    def _table(self, trials: list[Trial]) -> list[str]:
        objective = self.config.objective
        return table(trials, self.config.space, objective.sign, objective.last_report)

    def _spent_s(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _seconds_left(self) -> float | None:
        hours = self.config.budget.hours
        return None if hours is None else hours * 3600 - self._spent_s()


def _search_task(sweep: Sweep, attempt: str, number: int, settings: Settings) -> Task:
    """What a trial has to do."""
    objective = sweep.config.objective
    return Task(
        sweep,
        SweepDir(sweep).trial(number),
        settings,
        objective.seeds,
        objective.reports,
        objective,
        objective.metric,
        attempt,
        replays=sweep.config.scheduler.kind in ("asha", "median"),
    )

"""One trial: its runs, one for each seed, and the reports that they lead to. Knows no Ray.

The first seed's run is judged on the way, at equal distances; the others are trained and judged at
their end. Whoever is told the reports may end the trial by raising. What is done is in the trial's
folder before it is told, and runs continue at their checkpoints: a trial that was killed, paused or
stopped goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.protocols import Device
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import Hooks, run_local
from lafs_ray.tuning.config import EvalSets, Metric
from lafs_ray.tuning.objective import judge
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.sweep_dir import Progress, TrialDir
from lafs_ray.tuning.trial_config import Sweep

# Trains a job to its end; after each checkpoint it calls back with the step.
Train = Callable[[RunInputs, Callable[[int], None]], None]
# Gets a report, and whether it is one of an earlier start of the sweep.
Tell = Callable[[Report, bool], None]


@dataclass(frozen=True)
class Task:
    """What one trial has to do.

    Args:
        sweep: that it belongs to.
        folder: where it lies.
        settings: proposed for it.
        seeds: of its runs.
        reports: of the first seed's run.
        judges: what its networks are judged on.
        metric: by which figure.
        attempt: the start of the sweep that it runs in.
        replays: whether reports of earlier starts are told again, so that the scheduler knows them.
    """

    sweep: Sweep
    folder: TrialDir
    settings: Settings
    seeds: tuple[int, ...]
    reports: int
    judges: EvalSets
    metric: Metric
    attempt: str
    replays: bool = True

    @property
    def last_report(self) -> int:
        """Number of the report that finishes it."""
        return self.reports + len(self.seeds) - 1


@dataclass(frozen=True)
class Copy:
    """The checkpoint of another trial that this one goes on from.

    Args:
        folder: of that trial.
        report: at which it was taken.
    """

    folder: str
    report: int


def run_trial(task: Task, tell: Tell, train: Train, copy: Copy | None = None) -> None:
    """Do what is left of a trial.

    Args:
        task: the trial.
        tell: gets every report, in order.
        train: trains a run.
        copy: of another trial, in whose place this one goes on; its own settings are new then.

    Raises:
        UserError: the settings do not train, or a file that they need is damaged.
    """
    trial = _Trial(task, tell, train)
    if task.replays:
        trial.replay()
    if task.folder.read_outcome() is not None:
        return
    if copy is not None:
        trial.take_over(copy)
    trial.go_on()


class _Trial:
    """A trial at work."""

    def __init__(self, task: Task, tell: Tell, train: Train) -> None:
        self._task, self._tell, self._train = task, tell, train
        self._progress = task.folder.read_progress() or Progress(task.settings)
        self._since = time.monotonic()

    def replay(self) -> None:
        """Tell what earlier starts of the sweep have found."""
        known = zip(self._progress.reports, self._progress.attempts, strict=True)
        for report, attempt in known:
            if attempt != self._task.attempt:
                self._tell(report, True)

    def take_over(self, copy: Copy) -> None:
        """Begin a new generation with the checkpoint of another trial and the settings proposed."""
        theirs = TrialDir(copy.folder).read_progress()
        assert theirs is not None, "only trials that have reported are copied"
        task = self._task
        generation = self._progress.generation + 1
        progress = replace(
            self._progress, settings=task.settings, generation=generation, start=copy.report
        )
        seed = task.seeds[0]
        # A kill may have left half of the same copy.
        name = _run_name(seed, generation)
        filesystem.delete_tree(filesystem.join(task.folder.uri, name))
        mine = self._open(progress, seed, task.reports)
        step = min(copy.report * mine.length.save_every, mine.length.total_steps)
        source = self._copied_run(theirs, copy).checkpoint_uri(step)
        with (
            filesystem.open_input(source) as old,
            filesystem.atomic_write(mine.folder().checkpoint_uri(step)) as new,
        ):
            shutil.copyfileobj(old, new)
        self._progress = progress
        task.folder.write_progress(progress)

    def _copied_run(self, theirs: Progress, copy: Copy) -> RunDir:
        """The run that the copy's report was made in; its trial may have moved on since."""
        made = [one for one in theirs.reports if one.report == copy.report]
        name = _run_name(self._task.seeds[0], made[-1].generation)
        config = self._task.sweep.job(
            theirs.settings, name=name, folder=copy.folder, seed=self._task.seeds[0]
        )
        return RunDir(config, "")

    def go_on(self) -> None:
        """Train and judge what is not reported yet."""
        task = self._task
        for index, seed in enumerate(task.seeds):
            reports = task.reports if index == 0 else 1
            first = 1 if index == 0 else task.reports + index
            if self._progress.last_report >= first + reports - 1:
                continue
            inputs = self._open(self._progress, seed, reports)
            for step in self._unjudged(inputs, first):
                self._judge(inputs, seed, first, step)
            self._train(inputs, _Saved(self, inputs, seed, first))

    def saved(self, inputs: RunInputs, seed: int, first: int, step: int) -> None:
        """A checkpoint is there: judge it, unless an earlier process did."""
        if _number(inputs, first, step) > self._progress.last_report:
            self._judge(inputs, seed, first, step)

    def _open(self, progress: Progress, seed: int, reports: int) -> RunInputs:
        """A run that saves for each report."""
        task = self._task
        config = task.sweep.job(
            progress.settings,
            name=_run_name(seed, progress.generation),
            folder=task.folder.uri,
            seed=seed,
        )
        inputs = prepare_run(config)
        return replace(inputs, length=replace(inputs.length, save_every=every(inputs, reports)))

    def _unjudged(self, inputs: RunInputs, first: int) -> Iterator[int]:
        """Checkpoints whose judgment an earlier process did not live to write down."""
        for step in inputs.folder().steps():
            if _number(inputs, first, step) > self._progress.last_report:
                yield step

    def _judge(self, inputs: RunInputs, seed: int, first: int, step: int) -> None:
        value = self._figure(inputs, seed, step)
        number, task, progress = _number(inputs, first, step), self._task, self._progress
        objective = value
        if number > task.reports:
            ends = [one.value for one in progress.reports if one.report >= task.reports]
            objective = (sum(ends) + value) / (len(ends) + 1)
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        parts = {"report": number, "seed": seed, "step": step, "generation": progress.generation}
        report = Report(value=value, objective=objective, seconds=seconds, **parts)
        self._progress = replace(
            progress,
            reports=(*progress.reports, report),
            attempts=(*progress.attempts, task.attempt),
        )
        task.folder.write_progress(self._progress)
        # Before it is told: a scheduler ends the process of a trial that has reached its end.
        if step == inputs.length.total_steps:
            self._tidy(inputs)
        if number == task.last_report:
            task.folder.write_outcome("finished")
        self._tell(report, False)

    def _figure(self, inputs: RunInputs, seed: int, step: int) -> float:
        task = self._task
        checkpoint = inputs.folder().checkpoint_uri(step)
        objective = task.sweep.config.objective
        figure_of = partial(
            judge,
            judges=task.judges,
            metric=task.metric,
            far=objective.far,
            centered=objective.centered,
            device=evaluation_device(task.sweep),
        )
        if task.sweep.finetune is None:
            return figure_of(checkpoint)
        name = f"finetune-s{seed}-g{self._progress.generation}-{step:08d}"
        config = task.sweep.finetune_job(checkpoint, name=name, folder=task.folder.uri, seed=seed)
        finetune = prepare_run(config)
        self._train(finetune, lambda _: None)
        last = finetune.folder().checkpoint_uri(finetune.length.total_steps)
        figure = figure_of(last)
        filesystem.delete_tree(finetune.folder().uri)
        return figure

    def _tidy(self, inputs: RunInputs) -> None:
        """Keep a finished run's last checkpoint; members of a population may still copy others."""
        if self._task.sweep.config.scheduler.kind != "pbt":
            for step in inputs.folder().steps()[:-1]:
                filesystem.delete(inputs.folder().checkpoint_uri(step))


@dataclass(frozen=True)
class _Saved:
    """Tells a trial of the checkpoints of one of its runs."""

    trial: _Trial
    inputs: RunInputs
    seed: int
    first: int

    def __call__(self, step: int) -> None:
        self.trial.saved(self.inputs, self.seed, self.first, step)


def _run_name(seed: int, generation: int) -> str:
    return f"s{seed}-g{generation}" if generation else f"s{seed}"


def _number(inputs: RunInputs, first: int, step: int) -> int:
    """Number of the report that a checkpoint leads to."""
    return first - 1 + -(-step // inputs.length.save_every)


def every(inputs: RunInputs, reports: int) -> int:
    """Steps between the reports of a run."""
    return -(-inputs.length.total_steps // reports)


def evaluation_device(sweep: Sweep) -> Device:
    """Where a trial judges."""
    compute = sweep.default.compute
    if compute.workers == 0:
        return compute.device
    return "cuda" if sweep.config.objective.gpus > 0 else "cpu"


def train_here(inputs: RunInputs, saved: Callable[[int], None]) -> None:
    """Debug mode: a run in this process."""
    threads = torch.get_num_threads()
    try:
        run_local(inputs, hooks=Hooks(written=saved))
    finally:
        torch.set_num_threads(threads)

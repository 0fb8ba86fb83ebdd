"""One trial: a run for each seed, and the reports made from their checkpoints. Imports no Ray.

The first seed's run is evaluated at evenly spaced checkpoints, the others at their end. The report callback may end the
trial by raising. Everything is in the trial's directory before it is reported, and runs resume from their checkpoints:
a trial that was killed, paused or stopped can continue.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lafs_ray.data.io import filesystem, reading
from lafs_ray.evaluation.protocols import Device
from lafs_ray.training.checkpoint.checkpoint_file import checkpoint_path
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import Hooks, run_local
from lafs_ray.tuning.config import Objective
from lafs_ray.tuning.objective import objective_value
from lafs_ray.tuning.results import Report, Status, Trial
from lafs_ray.tuning.search_space import Settings
from lafs_ray.tuning.sweep_dir import TrialDir
from lafs_ray.tuning.trial_config import Sweep

# Trains a run to its end; calls back with the step after each checkpoint.
Train = Callable[[RunInputs, Callable[[int], None]], None]
# Receives a report, and whether an earlier start of the sweep had made it.
OnReport = Callable[[Report, bool], None]


@dataclass(frozen=True)
class TrialSpec:
    """Definition of one trial.

    Args:
        sweep: that it belongs to.
        dir: its directory, with its record.
        settings: to run with; pbt may have changed them.
        objective: seeds, reports, metric and faces.
        attempt: the start of the sweep that it runs in.
        replay: whether to report again what earlier starts reported, for the scheduler's state.
    """

    sweep: Sweep
    dir: TrialDir
    settings: Settings
    objective: Objective
    attempt: str
    replay: bool = True


@dataclass(frozen=True)
class Donor:
    """A checkpoint of another population member to continue from (pbt's exploit step).

    Args:
        uri: directory of that trial.
        report: at which the checkpoint was evaluated.
    """

    uri: str
    report: int


@dataclass(frozen=True)
class TrialBatch:
    """Trials to run concurrently.

    Args:
        sweep: that they belong to.
        numbers: of the trials, in the order in which they start.
        make_spec: returns the trial of a number, called when it starts, in its process; pbt gives new settings.
        on_report: called with number, report, and whether an earlier start had made it.
        on_end: called with number, and the error if the trial's process died, else "".
        attempt: name of this start of the sweep, unique for each batch.
        early_stopping: whether the sweep's scheduler may stop them.
        time_budget_s: after which all are interrupted; None is no limit.
    """

    sweep: Sweep
    numbers: Sequence[int]
    make_spec: Callable[[int, Settings | None], TrialSpec]
    on_report: Callable[[int, Report, bool], None]
    on_end: Callable[[int, str], None]
    attempt: str
    early_stopping: bool
    time_budget_s: float | None = None


@dataclass(frozen=True)
class _SeedRun:
    """The run of one seed, and the number of its first report."""

    inputs: RunInputs
    seed: int
    first_report: int


def run_trial(spec: TrialSpec, on_report: OnReport, train: Train, donor: Donor | None = None) -> None:
    """Run what is left of a trial.

    Args:
        spec: the trial.
        on_report: receives every report, in order.
        train: trains a run.
        donor: another trial to continue from, with the settings of `spec`.

    Raises:
        UserError: training with these settings fails, or a file that it needs is damaged.
    """
    trial = _Trial(spec, on_report, train)
    if spec.replay:
        trial.replay()
    if trial.record.status in ("finished", "stopped", "failed"):
        return
    if donor is not None:
        trial.exploit(donor)
    trial.run()


class _Trial:
    def __init__(self, spec: TrialSpec, on_report: OnReport, train: Train) -> None:
        self._spec, self._on_report, self._train = spec, on_report, train
        record = spec.dir.read()
        assert record is not None, "a trial's record is written before it starts"
        self.record, self._since = record, time.monotonic()

    def replay(self) -> None:
        """Report what earlier starts of the sweep reported."""
        for report in self.record.reports:
            if report.attempt != self._spec.attempt:
                self._on_report(report, True)

    def exploit(self, donor: Donor) -> None:
        """Begin a new generation from the donor's checkpoint."""
        theirs = TrialDir(donor.uri).read()
        assert theirs is not None, "only trials that have reported are copied"
        spec, seed = self._spec, self._spec.objective.seeds[0]
        generation = self.record.generation + 1
        record = replace(self.record, settings=spec.settings, generation=generation, start=donor.report)
        # A killed process may have left half of the same copy.
        filesystem.delete_tree(filesystem.join(spec.dir.uri, _run_name(seed, generation)))
        mine = self._open(record, seed, spec.objective.reports)
        step = min(donor.report * mine.length.save_every, mine.length.total_steps)
        target = mine.folder().checkpoint_uri(step)
        # The donor may have moved on to another generation since.
        made = [one.generation for one in theirs.reports if one.report == donor.report]
        run_uri = filesystem.join(donor.uri, _run_name(seed, made[-1]))
        source = checkpoint_path(run_uri, step)
        with reading.open_input(source) as old, filesystem.atomic_write(target) as new:
            shutil.copyfileobj(old, new)
        self.record = record
        spec.dir.write(record)

    def run(self) -> None:
        """Train and evaluate what is not reported yet."""
        objective = self._spec.objective
        for index, seed in enumerate(objective.seeds):
            reports = objective.reports if index == 0 else 1
            first = 1 if index == 0 else objective.reports + index
            if self.record.last_report >= first + reports - 1:
                continue
            run = _SeedRun(self._open(self.record, seed, reports), seed, first)
            # Checkpoints that an earlier process saved but did not evaluate.
            for step in run.inputs.folder().steps():
                self._on_checkpoint(run, step)
            self._train(run.inputs, partial(self._on_checkpoint, run))

    def _open(self, record: Trial, seed: int, reports: int) -> RunInputs:
        """Return the inputs of a run that saves a checkpoint for each report."""
        name, storage = _run_name(seed, record.generation), self._spec.dir.uri
        config = self._spec.sweep.run_config(record.settings, name=name, storage=storage, seed=seed)
        inputs = prepare_run(config)
        save_every = report_interval(inputs.length.total_steps, reports)
        return replace(inputs, length=replace(inputs.length, save_every=save_every))

    def _on_checkpoint(self, run: _SeedRun, step: int) -> None:
        """Evaluate and report a checkpoint, unless an earlier process did."""
        spec, record = self._spec, self.record
        if step % run.inputs.length.save_every and step != run.inputs.length.total_steps:
            return  # Saved because a node was about to leave, or before an error.
        number = run.first_report - 1 + -(-step // run.inputs.length.save_every)
        if number <= record.last_report:
            return
        value = objective = self._evaluate(run, step)
        if number > spec.objective.reports:
            ends = [one.value for one in record.reports if one.report >= spec.objective.reports]
            objective = (sum(ends) + value) / (len(ends) + 1)
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        report = Report(number, run.seed, step, value, objective, seconds, record.generation, spec.attempt)
        status: Status = "finished" if number == spec.objective.last_report else "running"
        self.record = replace(record, status=status, reports=(*record.reports, report))
        spec.dir.write(self.record)
        # Before reporting: a scheduler ends the process of a trial at its last report.
        if step == run.inputs.length.total_steps:
            self._prune(run.inputs.folder())
        self._on_report(report, False)

    def _evaluate(self, run: _SeedRun, step: int) -> float:
        spec = self._spec
        checkpoint = run.inputs.folder().checkpoint_uri(step)
        compute = spec.sweep.default.compute
        device: Device = "cuda" if spec.objective.gpus > 0 else "cpu"
        if compute.workers == 0:
            device = compute.device
        evaluate = partial(objective_value, objective=spec.objective, device=device)
        if spec.sweep.finetune is None:
            return evaluate(checkpoint)
        name = f"finetune-s{run.seed}-g{self.record.generation}-{step:08d}"
        finetune = prepare_run(spec.sweep.finetune_config(checkpoint, name=name, storage=spec.dir.uri, seed=run.seed))
        self._train(finetune, lambda _: None)
        value = evaluate(finetune.folder().checkpoint_uri(finetune.length.total_steps))
        filesystem.delete_tree(finetune.folder().uri)
        return value

    def _prune(self, run_dir: RunDir) -> None:
        """Keep a finished run's last checkpoint only, unless population members may copy others."""
        if self._spec.sweep.config.scheduler.kind != "pbt":
            for step in run_dir.steps()[:-1]:
                filesystem.delete(run_dir.checkpoint_uri(step))


def _run_name(seed: int, generation: int) -> str:
    return f"s{seed}-g{generation}" if generation else f"s{seed}"


def report_interval(total_steps: int, reports: int) -> int:
    """Return the number of steps between the reports of a run."""
    return -(-total_steps // reports)


def train_here(inputs: RunInputs, on_checkpoint: Callable[[int], None]) -> None:
    """Train a run in this process, without Ray."""
    threads = torch.get_num_threads()
    try:
        run_local(inputs, hooks=Hooks(after_write=on_checkpoint))
    finally:
        torch.set_num_threads(threads)

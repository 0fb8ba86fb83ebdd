"""The training loop: steps, reports and checkpoints of a run; independent of faces and of Ray.

`train` runs in the driver process (debug mode) and in every Ray Train worker; only `report`, `save` and `poll_request`
differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from lafs_ray.errors import TrainingError
from lafs_ray.training.distributed import share_failure
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite
from lafs_ray.training.run_request import RunRequest
from lafs_ray.training.train_step import TrainState, count_skipped, no_request, train_step


def train(
    training: TrainState,
    batches: Iterator[StepBatch],
    meter: Meter,
    *,
    last_step: int,
    report: Callable[[dict[str, Any]], None],
    report_every: int,
    save: Callable[[int], None],
    save_every: int,
    poll_request: Callable[[], RunRequest] = no_request,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Train on `batches` until they end, or until a rank is requested to stop.

    Args:
        training: the run on this rank.
        batches: one for each step, in order.
        meter: averages metrics between reports.
        last_step: number of steps of the whole run; it is always reported and saved.
        report: gets step, epoch, schedules and averaged metrics; called on every rank at once.
        report_every: steps between reports; every checkpoint is reported as well, so that no mean covers steps from
            before a restart.
        save: gets the number of steps done; called on every rank at once.
        save_every: steps between checkpoints.
        poll_request: returns this rank's request; called in every step, before the optimizer.
        check: raises what this rank met since the last step without leaving the others; called between steps.

    Raises:
        NonFinite: a loss or gradient was; the state before that step has been reported and saved.
        TrainingError: `report` ends the run; the step it reported has been saved.
        SharedFailure: a rank had no batch, or its `check` failed; the steps before are saved. A single rank raises the
            error itself.
    """
    output: _Output | None = None
    done = epoch = 0
    waited_since = time.perf_counter()
    while True:
        batch, failure = _next_batch(training, batches, check)
        wait_s = time.perf_counter() - waited_since
        failure = failure if training.reducer is None else share_failure(failure)
        if failure is not None:
            if output is not None:
                output.report(done, epoch)
                output.save(done)
            raise failure
        if batch is None:
            return
        if output is None:
            output = _Output(training, meter, report, save, batch.step)
        training.fingerprints |= batch.fingerprints
        hparams = training.hparams(batch.step)
        done, epoch = batch.step + 1, batch.epoch
        saves = done % save_every == 0 or done == last_step
        reports = saves or done % report_every == 0
        metrics = train_step(training, batch, hparams, poll_request, reports=reports)
        meter.add(metrics, wait_s, batch.work_s, training.guard.skip_update)
        # Known only now: such a report may lack what only the steps that report compute.
        saves = saves or training.request > 0
        if saves or reports:
            output.report(done, epoch)
        if saves:
            output.save(done)
        if training.request is RunRequest.STOP:
            return
        waited_since = time.perf_counter()


def _next_batch(
    training: TrainState, batches: Iterator[StepBatch], check: Callable[[], None]
) -> tuple[StepBatch | None, Exception | None]:
    """Return the next batch, None at the end, or what keeps this rank from having it."""
    try:
        check()
        if (batch := next(batches, None)) is not None:
            count_skipped(training, batch)
        return batch, None
    except Exception as error:  # of any kind: the other ranks wait
        return None, error


class _Output:
    """Reports and checkpoints of a run from `first_step` on, each step at most once."""

    def __init__(
        self,
        training: TrainState,
        meter: Meter,
        report: Callable[[dict[str, Any]], None],
        save: Callable[[int], None],
        first_step: int,
    ) -> None:
        self._training, self._meter, self._report, self._save = training, meter, report, save
        self._reported = self._saved = first_step

    def report(self, done: int, epoch: int) -> None:
        """Report the steps up to `done`; save before raising.

        Raises:
            NonFinite, TrainingError: see `train`.
        """
        end: NonFinite | TrainingError | None = None
        if (found := self._training.guard.find_nonfinite()) is not None:
            # The state is that from before this step: no update has been made since.
            end, done, epoch = found, found.step, found.epoch_before
        if done > self._reported:
            means = self._meter.report(done - self._reported)
            self._reported = done
            schedules = self._training.hparams(done - 1)
            try:
                self._report({"step": done, "epoch": epoch, **schedules, **means})
            except TrainingError as error:
                end = end or error
        if end is not None:
            self.save(done)
            raise end

    def save(self, done: int) -> None:
        """Save, unless this step has been saved."""
        if done > self._saved:
            self._save(done)
            self._saved = done

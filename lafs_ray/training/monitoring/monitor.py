"""Monitoring of a run: log lines, warnings, trackers, and the report of a non-finite step.

Reports are equal on all ranks, so all ranks decide alike, and a run that stops does so on all at once. Only rank 0 logs
and writes: `<run>/warnings.jsonl`, one line for each warning and damaged record; `<run>/not-finite-NNNNNNNN.json`, the
records of a non-finite step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError, TrainingError
from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
from lafs_ray.training.monitoring import nonfinite_report
from lafs_ray.training.monitoring.collapse import PATIENCE, CollapseMonitor, advice, collapsed
from lafs_ray.training.monitoring.input_bottleneck import WAITING_REPORTS, slow_stage
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite
from lafs_ray.training.monitoring.trackers import Tracker, open_trackers
from lafs_ray.training.run_length import Length

logger = logging.getLogger(__name__)

WARNINGS = "warnings.jsonl"
DAMAGED = "damaged record"
_UPLOAD_EVERY_S = 300.0


def metrics_text(report: Mapping[str, Any]) -> str:
    """Return a report's epoch, loss, learning rate, images per second and data wait."""
    return (
        f"epoch {report['epoch']}  loss {report['loss']:.4f}  lr {report['lr']:.2e}  "
        f"{report['images_per_s']:.0f} images/s  data wait {report['wait_share']:.0%}"
    )


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Monitor:
    """Health checks of one rank's run during training; a context manager.

    Args:
        config: of the run.
        length: of the run.
        uri: the run's folder.
        first_step: where it continues.
        rank: this rank.

    Raises:
        ConfigError: a tracker's package is not installed, or its service does not answer.
    """

    def __init__(self, config: TrainConfig, length: Length, uri: str, first_step: int, rank: int) -> None:
        self._config, self._uri, self._first_step = config, uri, first_step
        self._is_first = rank == 0
        self._total_steps, self._step_s = length.total_steps, 0.0
        self._warned: set[str] = set()
        self._num_waiting = 0
        self._warnings: MetricsLog | None = None
        self._trackers: dict[str, Tracker] = {}
        self._uploaded = time.monotonic()
        if self._is_first:
            if filesystem.exists(filesystem.join(uri, WARNINGS)):
                self._open_warnings()
            self._trackers = open_trackers(config, uri, first_step)
        self._collapse: CollapseMonitor | None = None
        if isinstance(config, PretrainConfig) and config.monitoring.collapse != "off":
            self._collapse = CollapseMonitor(config, length.steps_per_epoch, length.total_steps)
            for line in read_metrics(filesystem.join(uri, "metrics.jsonl")):
                if line["step"] <= first_step:
                    self._collapse.update(line)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in self._trackers.items():
            self._attempt(name, tracker.close)

    def report(self, line: dict[str, Any], damaged: Sequence[str] = ()) -> None:
        """Check a report; every rank calls it with the same line.

        Args:
            line: as written to metrics.jsonl.
            damaged: a line for each damaged record not reported before; used on rank 0.

        Raises:
            TrainingError: the run collapses and monitoring.collapse is stop.
        """
        if self._is_first:
            for record in damaged:
                logger.warning("skipped a damaged record: %s", record)
                self._record(line["step"], DAMAGED, record)
            logger.info(self._progress(line), extra={"report": line})
            self._track(line)
            self._check_input(line)
        self._check_collapse(line)

    def _progress(self, report: Mapping[str, Any]) -> str:
        """Return step, `metrics_text` and the estimated time left."""
        now = self._config.batch_size / report["images_per_s"]
        # Smoothed over some three reports: the first one after a start is slow.
        self._step_s = 0.7 * self._step_s + 0.3 * now if self._step_s else now
        step, width = report["step"], len(str(self._total_steps))
        left = duration((self._total_steps - step) * self._step_s)
        return f"step {step:>{width}}/{self._total_steps}  {metrics_text(report)}  left {left}"

    def explain(self, found: NonFinite, shard_uris: Sequence[str]) -> TrainingError:
        """Return the user's error of a non-finite step; rank 0 writes its records to a file.

        Args:
            found: the step.
            shard_uris: the set's files, by number.
        """
        uri = filesystem.join(self._uri, nonfinite_report.file_name(found))
        if self._is_first:
            self._attempt(uri, lambda: nonfinite_report.write(uri, found, shard_uris))
        return nonfinite_report.as_error(found, self._config, uri, shard_uris)

    def _check_input(self, line: Mapping[str, Any]) -> None:
        limit, compute = self._config.monitoring.wait_share, self._config.compute
        # Debug mode on a CPU always preprocesses first and trains then: a warning would not help.
        if limit == 0 or (compute.workers == 0 and compute.device == "cpu"):
            return
        self._num_waiting = self._num_waiting + 1 if line["wait_share"] > limit else 0
        if self._num_waiting >= WAITING_REPORTS:
            self._warn_once(line["step"], "input bottleneck", slow_stage(line, self._config))

    def _check_collapse(self, line: Mapping[str, Any]) -> None:
        if self._collapse is None:
            return
        config, signs = self._collapse.config, self._collapse.update(line)
        hint = advice(config, line["teacher_temp"])
        if self._is_first:
            for sign in signs:
                text = f"{sign.text}. To do: {hint}."
                self._warn_once(line["step"], f"collapse, {sign.name}", text)
        lasting = [sign for sign in signs if sign.reports >= PATIENCE]
        if lasting and config.monitoring.collapse == "stop":
            raise collapsed(line["step"], config, lasting, hint)

    def _track(self, line: Mapping[str, Any]) -> None:
        flushes = time.monotonic() - self._uploaded > _UPLOAD_EVERY_S
        self._uploaded = time.monotonic() if flushes else self._uploaded
        for name, tracker in self._trackers.items():
            self._attempt(name, partial(tracker.write, line))
            if flushes:
                self._attempt(name, tracker.flush)

    def _attempt(self, subject: str, action: Callable[[], None]) -> None:
        """Call what may fail without ending the run."""
        try:
            action()
        except Exception as error:  # services raise kinds of their own
            if not isinstance(error, DataError) and subject not in self._trackers:
                raise
            self._warn_of(subject, error)

    def _warn_of(self, subject: str, error: Exception) -> None:
        """Log a failure; of a tracker, which fails at each report, once for each kind."""
        kind = f"{subject}: {type(error).__name__}"
        if subject not in self._trackers or kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s: %s", subject, " ".join(str(error).split()) or type(error).__name__)

    def _warn_once(self, step: int, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("step %d, %s: %s", step, kind, text)
            self._record(step, kind, text)

    def _record(self, step: int, kind: str, text: str) -> None:
        log = self._warnings or self._open_warnings()
        self._attempt(WARNINGS, lambda: log.write({"step": step, "kind": kind, "text": text}))
        self._attempt(WARNINGS, log.flush)

    def _open_warnings(self) -> MetricsLog:
        """Open the file; lines of steps that will be repeated are dropped, as in metrics.jsonl."""
        self._warnings = MetricsLog(filesystem.join(self._uri, WARNINGS), self._first_step)
        return self._warnings

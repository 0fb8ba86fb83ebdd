"""Log lines of a job on its terminal: above a progress bar where there is room, else as they are.

Modules log to `logging.getLogger(__name__)`. The command lines install a handler of this file on the package's logger;
without one, a library call prints no progress. The line of a report carries the metrics as `LogRecord.report`, from
which the bar is drawn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

from lafs_ray.messages import printable
from lafs_ray.training.monitoring.monitor import metrics_text
from lafs_ray.training.prepare import RunInputs

_LEAST_COLUMNS, _LEAST_LINES = 60, 3


class LineHandler(logging.StreamHandler):  # type: ignore[type-arg] # generic from 3.11 on
    """Handler that prints a line for each record and flushes it, with its level from WARNING on.

    Args:
        out: where to; None is the standard output.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(out or sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return printable(f"{level}{super().format(record)}")


class BarHandler(LineHandler):
    """Handler with a progress bar at the lower end of the terminal; lines go above it.

    Args:
        inputs: the job.
        out: a terminal; None is the standard output.
    """

    def __init__(self, inputs: RunInputs, out: TextIO | None = None) -> None:
        super().__init__(out)
        self._total, self._name = inputs.length.total_steps, inputs.config.run.name
        self._bar: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        """Move the bar to a report, or print a line above it."""
        report, first_step = getattr(record, "report", None), getattr(record, "first_step", None)
        if report is not None:
            self._move(report)
        elif first_step is not None:
            self._begin(first_step)
        elif self._bar is None:
            super().emit(record)
        else:
            self._bar.write(self.format(record), file=self.stream)

    def _begin(self, step: int) -> None:
        # After the first step, or a report: the time left counts from there, without the start-up.
        if self._bar is None:
            self._bar = tqdm(
                total=self._total,
                initial=step,
                desc=printable(self._name),
                unit="step",
                file=self.stream,
                dynamic_ncols=True,
            )

    def _move(self, report: dict[str, Any]) -> None:
        self._begin(report["step"])
        self._bar.update(report["step"] - self._bar.n)
        self._bar.set_postfix_str(metrics_text(report))

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        super().close()


def terminal_handler(inputs: RunInputs) -> LineHandler:
    """Return a bar where the standard output is a terminal with room for it, else lines."""
    return BarHandler(inputs) if has_room() else LineHandler()


def has_room() -> bool:
    """Return whether the standard output is a terminal with room for a progress bar."""
    if not sys.stdout.isatty():
        return False
    # Some terminals (of containers, of `script`) report 0 × 0: tqdm draws nothing there.
    size = os.get_terminal_size(1)
    return size.columns >= _LEAST_COLUMNS and size.lines >= _LEAST_LINES


@contextlib.contextmanager
def log_to(handler: logging.Handler) -> Iterator[None]:
    """Send the package's log records of level INFO and above to a handler, and nowhere else."""
    package = logging.getLogger("lafs_ray")
    before = package.level, package.propagate
    package.setLevel(logging.INFO)
    package.propagate = False
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.level, package.propagate = before
        handler.close()

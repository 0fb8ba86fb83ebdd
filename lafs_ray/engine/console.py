"""A run on the terminal: a bar that moves where there is a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from lafs_ray.training.monitoring.monitor import Progress
from lafs_ray.training.prepare import RunInputs

_LEAST_COLUMNS, _LEAST_LINES = 60, 3


class Console(Protocol):
    """Where a run's lines and reports go."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def show(self, report: Mapping[str, Any]) -> None:
        """Show where the run stands."""

    def close(self) -> None:
        """Leave the terminal tidy."""


class Lines:
    """One line for each report.

    Args:
        inputs: the job.
        out: where to; None is the standard output.
    """

    def __init__(self, inputs: RunInputs, out: TextIO | None = None) -> None:
        self._progress = Progress(inputs.length, inputs.config.batch_size)
        self._out = out

    def say(self, line: str) -> None:
        """Print a line at once, whatever buffers it."""
        print(line, file=self._out, flush=True)

    def show(self, report: Mapping[str, Any]) -> None:
        """Print where the run stands."""
        self.say(self._progress.line(report))

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar at the lower end of the terminal; lines go above it.

    Args:
        inputs: the job.
        out: a terminal; None is the standard output.
    """

    def __init__(self, inputs: RunInputs, out: TextIO | None = None) -> None:
        length = inputs.length
        self._progress = Progress(length, inputs.config.batch_size)
        self._out = out or sys.stdout
        self._total, self._name = length.total_steps, inputs.config.run.name
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(line, file=self._out, flush=True)
        else:
            self._bar.write(line, file=self._out)

    def show(self, report: Mapping[str, Any]) -> None:
        """Move the bar; the first report makes it, so that its time left counts from there."""
        if self._bar is None:
            self._bar = tqdm(
                total=self._total,
                initial=report["step"],
                desc=self._name,
                unit="step",
                file=self._out,
                dynamic_ncols=True,
            )
        self._bar.update(report["step"] - self._bar.n)
        self._bar.set_postfix_str(self._progress.figures(report))

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def terminal_display(inputs: RunInputs) -> Console:
    """A bar where the standard output is a terminal with room for it, else lines."""
    if not sys.stdout.isatty():
        return Lines(inputs)
    # Some terminals (of containers, of `script`) say that they are 0 × 0: tqdm draws nothing there.
    size = os.get_terminal_size(1)
    has_room = size.columns >= _LEAST_COLUMNS and size.lines >= _LEAST_LINES
    return Bar(inputs) if has_room else Lines(inputs)

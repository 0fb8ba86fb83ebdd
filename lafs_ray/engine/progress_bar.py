"""Progress of a job that counts what it did: a bar on a terminal, else log lines."""

from __future__ import annotations

import logging
from typing import Any, TextIO

from tqdm import tqdm

from lafs_ray.data.progress import ProgressLog
from lafs_ray.engine.console import LineHandler, has_room


class CountHandler(LineHandler):
    """Handler that prints log lines above the progress bar of a counting job.

    Args:
        out: where to; None is the standard output.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(out)
        self._bar: Any = None

    def start(self, what: str, total: int, done: int) -> CountHandler | ProgressLog:
        """Return what counts with its `add`: this bar, or lines where there is no room for one.

        Args:
            what: unit of the count.
            total: size of the whole work.
            done: part finished by an earlier process.
        """
        if not has_room():
            return ProgressLog(logging.getLogger(__name__), what, total, done)
        self._end()
        self._bar = tqdm(total=total, initial=done, unit=f" {what}", file=self.stream, dynamic_ncols=True)
        return self

    def add(self, count: int = 1) -> None:
        """Advance the bar."""
        self._bar.update(count)
        if self._bar.n >= self._bar.total:
            self._end()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is None:
            super().emit(record)
        else:
            self._bar.write(self.format(record), file=self.stream)

    def close(self) -> None:
        """End the bar's line."""
        self._end()
        super().close()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

"""Progress of long jobs in the log."""

from __future__ import annotations

import logging
import time


class ProgressLog:
    """Log count and rate at every tenth of the work.

    Args:
        logger: of the module at work.
        what: unit of the count, for the message.
        total: size of the whole work.
        done: part finished by an earlier process.
    """

    def __init__(self, logger: logging.Logger, what: str, total: int, done: int = 0) -> None:
        self._logger, self._what, self._total = logger, what, total
        self._done, self._initial, self._start = done, done, time.perf_counter()

    def add(self, count: int = 1) -> None:
        """Advance by `count`."""
        tenth = self._done * 10 // self._total
        self._done += count
        if self._done * 10 // self._total > tenth:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            rate = (self._done - self._initial) / seconds
            self._logger.info("%d/%d %s, %.0f/s", self._done, self._total, self._what, rate)

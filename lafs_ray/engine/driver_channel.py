"""The actor between a run's driver and its workers.

Without torch: importing it would cost the actor, and the start of the run, seconds of a core.
"""

from __future__ import annotations

import logging
from logging.handlers import QueueHandler
from typing import Any

from lafs_ray.errors import UserError
from lafs_ray.training.run_request import RunRequest


class DriverChannel:
    """Carries progress and a user's mistake from the workers to the driver, and wishes back."""

    def __init__(self) -> None:
        self._records: list[logging.LogRecord] = []
        self._saved: list[int] = []
        self._judged: set[int] = set()
        self._wish = RunRequest.NOTHING
        self._mistake: UserError | None = None

    def log(self, record: logging.LogRecord) -> None:
        """Keep a log record for the driver."""
        self._records.append(record)

    def drain_log(self) -> list[logging.LogRecord]:
        """Return the log records since the last call."""
        records, self._records = self._records, []
        return records

    def saved(self, step: int) -> None:
        """Keep the step of a checkpoint for the driver."""
        self._saved.append(step)

    def drain_saved(self) -> list[int]:
        """Steps of checkpoints since the last call; they are spared until `judging`."""
        steps, self._saved = self._saved, []
        self._judged.update(steps)
        return steps

    def judging(self, steps: set[int]) -> None:
        """Keep which checkpoints the driver's probes are reading."""
        self._judged = steps

    def spared(self) -> set[int]:
        """Steps of checkpoints that are being judged or may be, not to be deleted."""
        return {*self._saved, *self._judged}

    def ask(self, wish: RunRequest) -> None:
        """Ask something of the run."""
        self._wish = max(self._wish, wish)

    def take_request(self) -> RunRequest:
        """What has been asked since the last call; to stop is asked for ever."""
        wish = self._wish
        if wish is not RunRequest.STOP:
            self._wish = RunRequest.NOTHING
        return wish

    def fail(self, mistake: UserError) -> None:
        """Keep a mistake that no restart can mend."""
        self._mistake = self._mistake or mistake

    def mistake(self) -> UserError | None:
        """The mistake kept, if any."""
        return self._mistake


class ChannelHandler(QueueHandler):
    """Sends a worker's log records through a DriverChannel to the driver.

    Args:
        channel: the actor's handle.
    """

    queue: Any

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record whose message is formatted already."""
        self.queue.log.remote(record)

"""The actor between a run's driver and its workers.

Without torch: importing it would cost the actor, and the start of the run, seconds of a core.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from logging.handlers import QueueHandler
from typing import Any

import ray

from lafs_ray.errors import UserError
from lafs_ray.training.run_request import RunRequest

_POLL_S = 0.5


class DriverChannel:
    """Carries log records, saved steps and a user's error to the driver, and requests back."""

    def __init__(self) -> None:
        self._records: list[logging.LogRecord] = []
        self._saved: list[int] = []
        self._evaluating: set[int] = set()
        self._request = RunRequest.NOTHING
        self._error: UserError | None = None
        self._failed_alone = False

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
        """Return saved steps since the last call; they stay protected until `set_evaluating`."""
        steps, self._saved = self._saved, []
        self._evaluating.update(steps)
        return steps

    def set_evaluating(self, steps: set[int]) -> None:
        """Set the steps whose checkpoints the online evaluation is reading."""
        self._evaluating = steps

    def protected_steps(self) -> set[int]:
        """Return the steps of checkpoints that are or may be evaluated, not to be deleted."""
        return {*self._saved, *self._evaluating}

    def request(self, request: RunRequest) -> None:
        """Request that the run saves or stops."""
        self._request = max(self._request, request)

    def take_request(self) -> RunRequest:
        """Return the request since the last call; a stop request stays for ever."""
        request = self._request
        if request is not RunRequest.STOP:
            self._request = RunRequest.NOTHING
        return request

    def fail(self, error: UserError, *, alone: bool) -> None:
        """Keep the first user's error, which no restart can fix.

        Args:
            error: of a rank.
            alone: whether the other ranks do not know of it, and may be waiting for this one.
        """
        self._error = self._error or error
        self._failed_alone |= alone

    def failed_alone(self) -> bool:
        """Return whether a rank failed of which the others do not know."""
        return self._failed_alone

    def error(self) -> UserError | None:
        """Return the error kept, if any."""
        return self._error


class ChannelHandler(QueueHandler):
    """Sends a worker's log records through a DriverChannel to the driver.

    Args:
        channel: the actor's handle.
    """

    queue: Any

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record whose message is formatted already."""
        self.queue.log.remote(record)


class RequestListener:
    """Polls the driver's requests to the run in a thread of rank 0.

    Args:
        channel: handle of the DriverChannel.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[RunRequest] = queue.SimpleQueue()
        threading.Thread(target=self._poll, daemon=True).start()

    def take(self) -> RunRequest:
        """Return the next request, NOTHING if there is none."""
        return RunRequest.NOTHING if self._requests.empty() else self._requests.get()

    def _poll(self) -> None:
        # This process ends with its driver, whatever it is waiting for.
        with contextlib.suppress(ray.exceptions.RayError):
            while True:
                request = ray.get(self._channel.take_request.remote())
                if request is not RunRequest.NOTHING:
                    self._requests.put(request)
                time.sleep(_POLL_S)

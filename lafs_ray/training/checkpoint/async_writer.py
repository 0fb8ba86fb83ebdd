"""Asynchronous checkpoint writing: a step waits for a copy to the CPU, not for the storage.

At most one is being written: the next one waits for it, so memory holds one copy and the order is
kept. A failed write is retried while the training continues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0


class CheckpointWriter:
    """Writes the checkpoints of one run in order, in a thread.

    Args:
        write: writes the checkpoint of a step; raises DataError where the storage fails.
        retry_s: seconds of retries after which a failing storage ends the run.
    """

    def __init__(self, write: Callable[[int, Mapping[str, Any]], None], retry_s: float) -> None:
        self._write, self._retry_s = write, retry_s
        # Python waits for such a thread before it exits, also after Ctrl-C.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: tuple[int, Future[None]] | None = None
        self._hurry = threading.Event()

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write a state, which must not change any more; call `wait` before."""
        assert self._running is None, "at most one is being written"
        self._running = (step, self._thread.submit(self._persist, step, state))

    def collect(self) -> int | None:
        """As `wait`, without waiting."""
        return None if self._running is None or not self._running[1].done() else self.wait()

    def wait(self) -> int | None:
        """Wait for the checkpoint being written, if there is one.

        Returns:
            Its step, once; None if there was none.

        Raises:
            UserError: it could not be written.
        """
        if self._running is None:
            return None
        (step, future), self._running = self._running, None
        future.result()
        return step

    def close(self, *, hurry: bool = False) -> int | None:
        """As `wait`, for the last time.

        Args:
            hurry: retry a failing storage only once more.
        """
        if hurry:
            self._hurry.set()
        try:
            return self.wait()
        finally:
            self._thread.shutdown()

    def _persist(self, step: int, state: Mapping[str, Any]) -> None:
        begin, wait_s = time.monotonic(), _FIRST_WAIT_S
        tries = 1
        while True:
            hurried = self._hurry.is_set()
            try:
                self._write(step, state)
            except DataError as error:
                seconds = time.monotonic() - begin
                if hurried or seconds + wait_s > self._retry_s:
                    raise _given_up(error, tries, seconds) from error
                logger.warning(
                    "checkpoint of step %d not written (%s); trying again in %g s", step, error.found, wait_s
                )
            else:
                if tries > 1:
                    logger.info("checkpoint of step %d written on attempt %d", step, tries)
                return
            self._hurry.wait(wait_s)
            tries, wait_s = tries + 1, min(2 * wait_s, _LONGEST_WAIT_S)


def _given_up(error: DataError, tries: int, seconds: float) -> DataError:
    return DataError(
        error.subject,
        found=f"{error.found}; gave up after {tries} tries in {seconds:.0f} s",
        expected=error.expected,
        fix=f"{error.fix}; the same command then continues from the checkpoint before",
    )

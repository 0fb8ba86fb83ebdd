"""The driver's thread beside `TorchTrainer.fit`: log lines, evaluations, signals, notices and failures of a run.

It may not die unnoticed: signals and notices would be lost. And a user's error that one worker meets alone, outside the
training loop, would leave the others waiting for it until compute.timeout_s: the thread ends them.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any

import ray

from lafs_ray.engine.online_eval import OnlineEvaluator
from lafs_ray.engine.resources import can_see_leaving_nodes, leaving_nodes
from lafs_ray.engine.signals import StopRequest
from lafs_ray.training.run_request import RunRequest

logger = logging.getLogger(__name__)

_POLL_S = 0.5
# For workers that meet the same error to end by themselves.
_GRACE_S = 2.0
_UNREADABLE_POLLS = 60


class Follower:
    """Follows a run on Ray until the end of its `with` block.

    Args:
        channel: handle of the `DriverChannel`.
        evaluator: of the run's checkpoints, None without online evaluation.
        request: of a signal to stop.
    """

    def __init__(self, channel: Any, evaluator: OnlineEvaluator | None, request: StopRequest) -> None:
        self._channel, self._evaluator, self._request = channel, evaluator, request
        self.controller: Any = None
        """Handle of Ray Train's controller, from its start on."""
        self.failure: Exception | None = None
        """What ended the thread early; the run saves and stops then."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._leaving: set[str] = set()
        self._unreadable = 0
        self._alone_since: float | None = None

    def __enter__(self) -> Follower:
        if not can_see_leaving_nodes():
            logger.warning(
                "Ray %s shows no notices of leaving nodes: such a node costs the steps since the last checkpoint",
                ray.__version__,
            )
            self._unreadable = _UNREADABLE_POLLS
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while True:
                last = self._ended.wait(_POLL_S)
                self._poll()
                if last:
                    return
        except Exception as error:  # of any kind: it is raised in the main thread
            self.failure = error
            logger.error("the run is no longer followed, so it saves and stops: %r", error)
            self._stop()

    def _poll(self) -> None:
        channel = self._channel
        for record in ray.get(channel.drain_log.remote()):
            logging.getLogger(record.name).handle(record)
        if self._request.signum is not None:
            channel.request.remote(RunRequest.STOP)
        elif new := self._read_notices() - self._leaving:
            logger.warning("nodes that are about to leave: %d; saving now", len(new))
            self._leaving |= new
            channel.request.remote(RunRequest.SAVE)
        if self._evaluator is not None:
            for step in ray.get(channel.drain_saved.remote()):
                self._evaluator.saved(step)
            self._evaluator.collect()
            channel.set_evaluating.remote(self._evaluator.running)
        if self._alone_since is None and ray.get(channel.failed_alone.remote()):
            self._alone_since = time.monotonic()
        if self._alone_since is not None and time.monotonic() - self._alone_since > _GRACE_S:
            self._abort()

    def _read_notices(self) -> set[str]:
        """Return the nodes about to leave; logs once that they cannot be read."""
        if not can_see_leaving_nodes():
            return set()
        try:
            found = leaving_nodes()
        except Exception as error:  # the head may be busy: the next poll finds the notice as well
            self._unreadable += 1
            if self._unreadable == _UNREADABLE_POLLS:
                logger.warning("notices of leaving nodes cannot be read for now: %r", error)
            return set()
        self._unreadable = 0
        return found

    def _stop(self) -> None:
        try:
            ray.get(self._channel.request.remote(RunRequest.STOP), timeout=10)
        except Exception:  # the channel is gone, too
            self._abort()

    def _abort(self) -> None:
        """End all workers; `fit` raises then."""
        if self.controller is not None:
            self.controller.abort.remote()
            self.controller = None

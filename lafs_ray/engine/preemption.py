"""Requests to a run on Ray while it trains: those of its driver, and nodes about to be removed."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any

import ray

from lafs_ray.training.run_request import RunRequest

_POLL_S = 0.5


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


def leaving_nodes() -> set[str]:
    """Return nodes about to be removed (`ray drain-node`, spot notices of the autoscaler)."""
    # What Ray Train itself calls; its public form is a collective operation of the workers.
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except Exception:  # the head may be busy: the next poll finds the notice as well
        return set()

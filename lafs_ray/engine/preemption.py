"""What a run on Ray hears of while it trains: what the driver asks, and nodes that will leave."""

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
    """What the driver asks of the run, as rank 0 hears of it in a thread of its own.

    Args:
        relay: the actor between driver and workers.
    """

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._heard: queue.SimpleQueue[RunRequest] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def take(self) -> RunRequest:
        """What has been asked since the last call."""
        return RunRequest.NOTHING if self._heard.empty() else self._heard.get()

    def _listen(self) -> None:
        # The end of the driver is the end of this process, too.
        with contextlib.suppress(ray.exceptions.RayError):
            while True:
                wish = ray.get(self._relay.take_request.remote())
                if wish is not RunRequest.NOTHING:
                    self._heard.put(wish)
                time.sleep(_POLL_S)


def leaving_nodes() -> set[str]:
    """Nodes that are about to be taken away (`ray drain-node`, spot notices of the autoscaler)."""
    # What Ray Train itself asks; its public form is a collective operation of the workers.
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except Exception:  # the head may be busy: a notice is there at the next time as well
        return set()

"""Signals that request a checkpoint and the end of the run.

Clouds and job schedulers send SIGTERM some time before they stop a machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from lafs_ray.errors import Stopped
from lafs_ray.training.prepare import RunInputs


class StopRequest:
    """The signal that requested the end of the run, None so far."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def raise_if_stopped(self, inputs: RunInputs) -> None:
        """Raise if a signal stopped the run.

        Raises:
            Stopped: a signal ended the run before its last step.
        """
        if self.signum is None:
            return
        steps, total = inputs.folder().steps(), inputs.length.total_steps
        if steps and steps[-1] >= total:
            return
        name = signal.Signals(self.signum).name
        where = f"saved after step {steps[-1]} of {total}" if steps else "before its first step"
        raise Stopped(self.signum, f"stopped by {name}, {where}; the same command continues")


@contextlib.contextmanager
def stop_request(*signals: signal.Signals) -> Iterator[StopRequest]:
    """Within the block, turn the first of these signals into a request; a second one acts as usual.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, _: FrameType | None) -> None:
        if request.signum is not None:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)
            return
        request.signum = signum
        name = signal.Signals(signum).name
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"{name}: saving after the current step; send it again to exit immediately\n".encode())

    before = {one: signal.signal(one, handle) for one in signals}
    try:
        yield request
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

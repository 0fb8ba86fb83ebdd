"""A signal as a request: the run saves after its present step and ends.

Clouds and job schedulers announce the end of a machine by SIGTERM and leave a while.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from lafs_ray.training.prepare import RunInputs


class StopRequest:
    """Whether a signal has asked this process to end its run."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def raise_if_stopped(self, inputs: RunInputs) -> None:
        """Tell that a run was stopped, if it was.

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
    """For the time of the block, the first of these signals is a request, the second one itself.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, _: FrameType | None) -> None:
        if request.signum is not None:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)
            return
        request.signum = signum
        name = signal.Signals(signum).name
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"{name}: saving after the present step; again to end at once\n".encode())

    before = {one: signal.signal(one, note) for one in signals}
    try:
        yield request
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class Stopped(Exception):
    """A run ended before its last step because a signal asked it to; it has saved.

    Args:
        signum: the signal.
        message: what that leaves behind, in a line for people.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

"""A process that waits for the end of a driver, and ends what is left of the Ray that the driver has started.

A driver that is killed takes Ray's servers and workers with it, but not Ray's two agents of a node: they wait for 60 s
to report the death to a server that is gone too. This file is run as a program, by itself: a small process that holds
nothing and imports nothing of the package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

LOCAL = "LAFS_LOCAL_RAY"
"""Variable of all processes of a Ray that a driver has started on its machine; its value names the driver."""

_GRACE_S, _PAUSE_S = 3.0, 0.1
# What Ray's own processes call themselves: a tracker of experiments has the variable as well, and may upload yet.
_NAMES = ("ray::", "raylet", "gcs_server")
_start: dict[str, subprocess.Popen[bytes]] = {}


def guard() -> None:
    """Start the process that ends what this one leaves behind; from now on what it starts has `LOCAL`."""
    token = os.environ.get(LOCAL, "")
    if token in _start and token.startswith(f"{os.getpid()} "):
        return
    os.environ[LOCAL] = token = f"{os.getpid()} {time.monotonic_ns()}"
    # The pipe closes when this process ends, however it ends; a session of its own, as signals go to whole groups.
    command = [sys.executable, "-I", "-S", __file__, token]
    _start[token] = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def left_behind(token: str) -> list[int]:
    """Return the processes of Ray that a driver has started: their ids, on Linux; none elsewhere."""
    entry = f"{LOCAL}={token}".encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdecimal() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as environ, open(f"/proc/{name}/cmdline", "rb") as command:
                    program = os.path.basename(command.read().split(b"\0")[0].decode(errors="replace"))
                    if entry in environ.read().split(b"\0") and program.startswith(_NAMES):
                        found.append(int(name))
            except OSError:
                continue  # It has ended, or is another user's.
    return found


def main(token: str) -> None:
    """Wait for the end of the driver and, for some seconds, of its processes; then kill them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _GRACE_S
    while left := left_behind(token):
        if time.monotonic() > deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])

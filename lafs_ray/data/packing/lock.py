"""One packer at a time in a folder: `pack.lock`, which says who holds it.

On disk (NFS included) the file is created exclusively; an object store knows no such thing, there a
look before and after has to do. The holder gives a sign of life every 10 s. A lock is stale, and is
taken over, if its process is gone (same machine: no such process, or one that was started later),
or (another machine) after 5 minutes without a sign of life. A holder that was taken for dead and
wakes up finds another's token in the file and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

LOCK = "pack.lock"
BEAT_S = 10.0
STALE_S = 300.0


class Lock:
    """A lock that is held; made by `locked`."""

    def __init__(self, uri: str, content: dict[str, Any]) -> None:
        self._uri, self._content = uri, content
        self._lost: dict[str, Any] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raises a DataError if another packer has taken the lock over."""
        if self._lost is not None:
            raise DataError(
                self._uri,
                found=f"another packer's lock: {_holder(self._lost)}",
                expected="our own",
                fix="this process gave no sign of life for minutes; leave the folder to the other",
            )

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            # A storage that does not answer now may answer at the next beat.
            with contextlib.suppress(DataError, OSError):
                found = _read(self._uri)
                if found.get("token") != self._content["token"]:
                    self._lost = found
                    return
                _sign_of_life(self._uri, self._content)

    def start(self) -> None:
        """Begin to give signs of life."""
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, unless another has taken it."""
        self._end.set()
        self._thread.join(timeout=BEAT_S)
        with contextlib.suppress(DataError):
            if _read(self._uri).get("token") == self._content["token"]:
                filesystem.delete(self._uri)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[Lock]:
    """Hold the lock of a folder, which is made if missing.

    Raises:
        DataError: another packer holds it; or the folder cannot be written to.
    """
    uri = filesystem.join(folder, LOCK)
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": uuid.uuid4().hex,
    }
    while not _create(uri, content):
        other = _read(uri)
        if not _is_stale(uri, other):
            raise DataError(
                folder,
                found=f"another packer at work: {_holder(other)}",
                expected="a folder that nobody else writes to",
                fix=f"wait for it, or choose another folder; if it surely is gone: delete {uri}",
            )
        filesystem.delete(uri)
    lock = Lock(uri, content)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _holder(content: dict[str, Any]) -> str:
    return f"process {content.get('pid')} on {content.get('host')}, since {content.get('since')}"


def _create(uri: str, content: dict[str, Any]) -> bool:
    """Write the lock; False: there is one."""
    path, text = filesystem.local_path(uri), json.dumps(content).encode()
    if path is None:
        if filesystem.exists(uri):
            return False
        _sign_of_life(uri, content)
        # Of two that wrote at once the later one stands.
        time.sleep(1.0)
        return bool(_read(uri).get("token") == content["token"])
    with filesystem.write_errors(uri):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Complete from its first moment on: a link to a file that is already written.
        draft = f"{path}.{content['token']}.partial"
        Path(draft).write_bytes(text)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(draft)
    return True


def _sign_of_life(uri: str, content: dict[str, Any]) -> None:
    path = filesystem.local_path(uri)
    if path is not None:
        os.utime(path)
        return
    with filesystem.atomic_write(uri) as file:
        file.write(json.dumps(content).encode())


def _read(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(filesystem.read_bytes(uri))
    except (ValueError, DataError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(uri: str, content: dict[str, Any]) -> bool:
    if content.get("host") == socket.gethostname():
        pid = content.get("pid")
        started = _process_started(pid) if isinstance(pid, int) else None
        return started is None or started != content.get("process_started")
    try:
        _, last = filesystem.file_stamp(uri)
    except DataError:
        return True
    return time.time() - last / 1e9 > STALE_S


def _process_started(pid: int) -> str | None:
    """When a process of this machine started, in ticks; None: there is none.

    Process numbers come again, for containers from 1 on; together with this they do not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _unknown_start(pid)
    # The name in brackets may hold anything; a zombie does nothing any more.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _unknown_start(pid: int) -> str | None:
    """Where /proc does not tell (macOS): whether the process is there at all."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"

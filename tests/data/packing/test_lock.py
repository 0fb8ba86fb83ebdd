from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from lafs_ray.data.packing import lock
from lafs_ray.data.packing.lock import LOCK, locked
from lafs_ray.errors import DataError


def held(folder: Path, **changes: object) -> Path:
    """A lock that some process left."""
    content = {"host": "elsewhere", "pid": 7, "since": "yesterday", "token": "a"} | changes
    (folder / LOCK).write_text(json.dumps(content))
    return folder / LOCK


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as raised, locked(str(folder)):
        pass
    return raised.value


def test_locked__the_second_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """The message says who is at work; afterwards the folder is free and empty."""
    with locked(str(tmp_path / "new")) as first:
        error = refusal(tmp_path / "new")
        assert f"process {os.getpid()} on {socket.gethostname()}, since" in error.found
        assert error.subject == str(tmp_path / "new")
        first.check()
    assert os.listdir(tmp_path / "new") == []
    with locked(str(tmp_path / "new")):
        pass


def test_locked__process_that_is_gone(tmp_path: Path) -> None:
    """On this machine a lock is stale if no process has its number, or one started later has it."""
    gone = 2**22 + 1  # Above the largest number that Linux gives.
    held(tmp_path, host=socket.gethostname(), pid=gone, process_started="1")
    with locked(str(tmp_path)):
        pass
    held(tmp_path, host=socket.gethostname(), pid=os.getpid(), process_started="1")
    with locked(str(tmp_path)):
        pass


def test_locked__other_machine(tmp_path: Path) -> None:
    """There only signs of life count: minutes without one make a lock stale."""
    path = held(tmp_path)
    error = refusal(tmp_path)
    assert "process 7 on elsewhere, since yesterday" in error.found
    assert str(path) in error.fix
    old = time.time() - lock.STALE_S - 60
    os.utime(path, (old, old))
    with locked(str(tmp_path)):
        assert "elsewhere" not in path.read_text()


def test_lock__beats_and_notices_that_it_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder renews the file's time; once another's token stands there, it stops."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    path = tmp_path / LOCK
    with locked(str(tmp_path)) as mine:
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)
        mine.check()
        held(tmp_path)
        wait_until(lambda: mine._lost is not None)
        with pytest.raises(DataError, match="process 7 on elsewhere"):
            mine.check()
    assert json.loads(path.read_text())["token"] == "a"


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

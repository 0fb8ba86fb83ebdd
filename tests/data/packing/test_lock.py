from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lafs_ray.data.packing import lock
from lafs_ray.data.packing.lock import LOCK, locked
from lafs_ray.errors import DataError
from tests.training.faces import ROOT


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as raised, locked(str(folder)):
        pass
    return raised.value


@pytest.fixture(params=["flock", "lease"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with `flock`, and one without it, as an object store."""

    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "lease":
        monkeypatch.setattr(fcntl, "flock", no_flock)
    return str(request.param)


def test_locked__the_second_is_refused_and_the_first_goes_on(tmp_path: Path, backend: str) -> None:
    """The message names the owner, who keeps the lock; after release the folder is empty."""
    with locked(str(tmp_path / "new")):
        for _ in range(2):
            error = refusal(tmp_path / "new")
            assert f"process {os.getpid()} on {socket.gethostname()}, since" in error.found
            assert error.subject == str(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
    with locked(str(tmp_path / "new")):
        pass


HOLDS_THE_LOCK = """
import sys, time
from lafs_ray.data.packing.lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_locked__process_that_is_gone(tmp_path: Path) -> None:
    """Another process is refused until the owner dies, even without releasing (SIGKILL)."""
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        assert f"process {owner.pid} on" in refusal(tmp_path).found
        owner.send_signal(signal.SIGKILL)
    assert f"process {owner.pid} on" in (tmp_path / LOCK).read_text()
    with locked(str(tmp_path)):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


def test_locked__released_between_open_and_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a file that its owner has deleted meanwhile does not count."""
    real, calls = fcntl.flock, []

    def flock(file: int, operation: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(str(tmp_path)):
        assert "another packer at work" in refusal(tmp_path).found
    assert len(calls) == 3


@pytest.mark.parametrize("backend", ["lease"], indirect=True)
def test_lease__expires(tmp_path: Path, backend: str) -> None:
    """A lease that was not renewed for minutes is taken over."""
    path = tmp_path / LOCK
    path.write_text("process 7 on elsewhere, since yesterday")
    error = refusal(tmp_path)
    assert "process 7 on elsewhere, since yesterday" in error.found
    assert "expires after 5 minutes" in error.fix
    old = time.time() - lock.EXPIRE_S - 60
    os.utime(path, (old, old))
    with locked(str(tmp_path)):
        assert "elsewhere" not in path.read_text()


@pytest.mark.parametrize("backend", ["lease"], indirect=True)
def test_lease__is_renewed(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner renews the file's time; nothing is left afterwards."""
    monkeypatch.setattr(lock, "RENEW_S", 0.02)
    path = tmp_path / LOCK
    with locked(str(tmp_path)):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert os.listdir(tmp_path) == []


def test_locked__the_lock_is_a_link(tmp_path: Path) -> None:
    """What a link in the lock's place points to is not overwritten."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="a link"), locked(str(tmp_path / "set")):
        pass
    assert (tmp_path / "precious").read_text() == "kept"

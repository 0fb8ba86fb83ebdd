"""A training job as a user starts it, watched and disturbed: its lines, its processes, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from lafs_ray.training.meter import read_metrics
from tests.training.faces import PRETRAIN, ROOT, TINY_PRETRAIN, without_times

LIMIT_S = 240
INGEST, WORKER = "CropActor", "RayTrainWorker"


def command(folder: Path, data: Path | str, *overrides: str) -> list[str]:
    """`jobs/pretrain.py` of a tiny run in `folder`/run; paths are relative, as people type them."""
    paths = [os.path.relpath(path, ROOT) for path in (data, folder)]
    where = [f"data.path={paths[0]}", f"run.storage={paths[1]}", "run.name=run"]
    return [sys.executable, "jobs/pretrain.py", PRETRAIN, *where, *TINY_PRETRAIN, *overrides]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run reported, without what the clock decides; floats compare bit by bit."""
    lines = read_metrics(str(folder / "run" / "metrics.jsonl"))
    return [without_times(line) for line in lines]


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true value of a condition.

    Args:
        condition: asked every 20 ms.
        what: for the message, if it never comes.
        limit_s: seconds to wait.
    """
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not in {limit_s:g} s"
        time.sleep(0.02)
    return found


class Job:
    """A running command; at the end of its `with` block it and what it started are dead.

    Args:
        arguments: the command.
        environment: variables to add.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        pytest.importorskip("ray")
        import psutil  # Ray brings it along.

        self._psutil = psutil
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._tree: dict[tuple[int, float], Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.processes()
        self.process.kill()
        self.process.wait(30)
        for one in self.alive():
            one.kill()

    @property
    def output(self) -> str:
        """All lines so far."""
        return "\n".join(line for _, line in self.lines)

    def said(self, pattern: str, since: float = 0.0) -> float | None:
        """When the first line that matches was read, after a time; None if there is none."""
        found = (at for at, line in list(self.lines) if at >= since and re.search(pattern, line))
        return next(found, None)

    def wait_for(self, pattern: str, since: float = 0.0, limit_s: float = LIMIT_S) -> float:
        """When the first line came that matches, after a time."""

        def there() -> float | None:
            at = self.said(pattern, since)
            assert at or self.process.poll() is None, f"ended before {pattern!r}:\n{self.output}"
            return at

        return float(until(there, f"a line like {pattern!r} in\n{self.output}", limit_s))

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end.

        Returns:
            The exit code.
        """
        until(lambda: self.processes() and self.process.poll() is not None, "the end", limit_s)
        self._reader.join(10)
        return int(self.process.returncode)

    def processes(self, title: str = "") -> list[int]:
        """Ids of the processes that it has started and whose command line contains a title."""
        found = []
        try:
            tree = [own := self._psutil.Process(self.process.pid), *own.children(recursive=True)]
        except self._psutil.NoSuchProcess:
            return [self.process.pid]
        for one in tree:
            try:
                self._tree[one.pid, one.create_time()] = one
                if title in " ".join(one.cmdline()):
                    found.append(one.pid)
            except self._psutil.NoSuchProcess:
                continue
        return found

    def alive(self) -> list[Any]:
        """Those of its processes seen so far that still run."""
        return [one for one in self._tree.values() if one.is_running() and not is_zombie(one)]

    def assert_nothing_left(self) -> None:
        """All processes that it ever had are gone, soon after its end."""
        until(lambda: not self.alive(), f"end of {[one.pid for one in self.alive()]}", 30)


def is_zombie(process: Any) -> bool:
    """Whether it has ended and nobody has noticed."""
    try:
        return bool(process.status() == "zombie")
    except Exception:
        return True


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> float:
    """Send a signal.

    Returns:
        When.
    """
    os.kill(pid, number)
    return time.monotonic()

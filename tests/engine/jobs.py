"""A training job as a user starts it, watched and disturbed: its lines, its processes, its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from lafs_ray.training.checkpoint.metrics_log import read_metrics
from tests.training.faces import PRETRAIN, ROOT, TINY_PRETRAIN, without_times

# A laptop whose cores are taken starts a process in a minute.
LIMIT_S = 600
INGEST, WORKER = "DecodeAndTransform", "RayTrainWorker"
_MEMORY = 200 << 20


def command(folder: Path, data: Path | str, *overrides: str) -> list[str]:
    """`jobs/pretrain.py` of a tiny run in `folder`/run; paths are relative, as users type them."""
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
        condition: polled every 20 ms.
        what: for the message, if it never comes.
        limit_s: seconds to wait.
    """
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {limit_s:g} s: {what}"
        time.sleep(0.02)
    return found


class Nodes:
    """A Ray cluster whose nodes are processes of their own on this machine.

    Args:
        head_cpus: of the head, where the driver of a job runs.
        cpus: of each other node.
    """

    def __init__(self, head_cpus: int, cpus: Sequence[int] = ()) -> None:
        pytest.importorskip("ray")
        # Otherwise each node starts a process for each of its CPUs, needed or not.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # Ray's default is 15: beside other busy processes its workers would get next to nothing.
        os.environ.setdefault("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = {"num_cpus": head_cpus, "object_store_memory": _MEMORY, "dashboard_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.others = [self.add(number) for number in cpus]
        self.cluster.wait_for_nodes()

    def add(self, cpus: int) -> Any:
        """A node more."""
        return self.cluster.add_node(num_cpus=cpus, object_store_memory=_MEMORY)

    def job(self, arguments: list[str], **environment: str) -> Job:
        """A command that joins this cluster."""
        raylets = [_raylet(node) for node in (self.cluster.head_node, *self.others)]
        return Job(arguments, raylets, {"RAY_ADDRESS": self.cluster.address, **environment})

    def of_workers(self) -> list[Any]:
        """The nodes beside the head that training workers run on, those with most first."""
        counts = [(len(titled(_descendants(_raylet(node)), WORKER)), number) for number, node in enumerate(self.others)]
        return [self.others[number] for count, number in sorted(counts, reverse=True) if count]

    def kill(self, node: Any) -> float:
        """Kill a node with all that runs on it.

        Returns:
            When.
        """
        since = time.monotonic()
        self.cluster.remove_node(node, allow_graceful=False)
        self.others.remove(node)
        return since


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _descendants(pid: int) -> list[Any]:
    import psutil  # Ray brings it along.

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def titled(processes: Iterable[Any], *titles: str) -> list[int]:
    """Ids of those that run and whose command line contains one of some titles."""
    import psutil

    found = []
    for one in processes:
        with contextlib.suppress(psutil.Error):
            line = " ".join(one.cmdline())
            if one.status() != psutil.STATUS_ZOMBIE and any(title in line for title in titles):
                found.append(one.pid)
    return found


class Job:
    """A command that trains on a cluster; at the end of its `with` block it is dead.

    Args:
        arguments: the command.
        raylets: process ids of the cluster's raylets, which start the job's processes.
        environment: variables to add.
    """

    def __init__(self, arguments: list[str], raylets: Sequence[int], environment: Mapping[str, str]) -> None:
        self._raylets = raylets
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(30)

    @property
    def output(self) -> str:
        """All lines so far."""
        return "\n".join(line for _, line in self.lines)

    def find_line(self, pattern: str, since: float = 0.0) -> float | None:
        """When the first line that matches was read, after a time; None if there is none."""
        found = (at for at, line in list(self.lines) if at >= since and re.search(pattern, line))
        return next(found, None)

    def wait_for(self, pattern: str, since: float = 0.0, limit_s: float = LIMIT_S) -> float:
        """When the first line came that matches, after a time."""

        def there() -> float | None:
            at = self.find_line(pattern, since)
            assert at or self.process.poll() is None, f"ended before {pattern!r}:\n{self.output}"
            return at

        try:
            return float(until(there, f"a line like {pattern!r}", limit_s))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end.

        Returns:
            The exit code.
        """
        until(lambda: self.process.poll() is not None, f"the end of\n{self.output}", limit_s)
        self._reader.join(10)
        return int(self.process.returncode)

    def processes(self, *titles: str) -> list[int]:
        """Ids of the cluster's processes with one of these titles."""
        below = [one for raylet in self._raylets for one in _descendants(raylet)]
        return titled(below, *titles)

    def assert_nothing_left(self) -> float:
        """See that what the cluster ran for it is gone soon after its end.

        Returns:
            Seconds that this took.
        """
        begin = time.monotonic()
        ours = (INGEST, WORKER, "RunController", "DriverChannel", "read_records")
        until(lambda: not self.processes(*ours), "the end of all that the job had started", 60)
        return time.monotonic() - begin


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> float:
    """Send a signal.

    Returns:
        When.
    """
    os.kill(pid, number)
    return time.monotonic()

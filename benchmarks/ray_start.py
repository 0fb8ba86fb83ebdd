"""What the start of a run on Ray costs: its processes, their processor time, and the time to the first step.

    python -m benchmarks.ray_start --repeats 3

The command `jobs/pretrain.py` with the debug configuration, two workers and one preprocessing process for each. All
processes below it are sampled in /proc ten times a second, so up to 0.1 s of each is missed. A process counts under
what Ray calls it; `first step` is its time until then, `idle` that before Ray gave it a task or an actor.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import ray
import torch

from benchmarks.views import cpu_name
from lafs_ray.synthetic import datasets

ROOT = Path(__file__).parent.parent
_INTERVAL_S = 0.1
_SERVERS = {
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
    "dashboard/dashboard.py": "dashboard",
    "dashboard/agent.py": "dashboard agent",
    "runtime_env/agent": "runtime environment agent",
    "log_monitor.py": "log monitor",
    "monitor.py": "autoscaler monitor",
    "multiprocessing": "dashboard modules",
}


@dataclass
class Sampled:
    """A process.

    Args:
        kind: what it is, as far as its title says so far.
        seconds: processor seconds so far.
        idle: those before Ray gave it a task or an actor.
        at_first_step: those at the run's first step.
        programs: that it executed one after the other.
    """

    kind: str
    seconds: float = 0.0
    idle: float = 0.0
    at_first_step: float = 0.0
    programs: set[str] = field(default_factory=set)


@dataclass
class Result:
    """One run.

    Args:
        first_step: seconds from the command to the first line of metrics.jsonl.
        whole: seconds to its end.
        processes: all that it started, and itself.
    """

    first_step: float
    whole: float
    processes: list[Sampled]

    @property
    def at_first_step(self) -> float:
        """Processor seconds of all processes at the first step."""
        return sum(process.at_first_step for process in self.processes)


def kind_of(command: str) -> str:
    """Return what a process is from its command line."""
    if command.startswith("ray::"):
        title = command.removeprefix("ray::")
        if title.startswith("MapBatches"):
            return title.split(")")[0] + ")"
        # A named actor's name comes before its class.
        return re.split(r"[.(\s]", title)[0].rpartition(":")[2]
    for part, kind in _SERVERS.items():
        if part in command:
            return kind
    for program in ("setup_worker.py", "default_worker.py"):
        if program in command:
            return "IDLE"
    return "other"


def read_stat(pid: int) -> tuple[int, float] | None:
    """Return a process's parent and its processor seconds; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_command(pid: int) -> str:
    """Return the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


class Sampler:
    """The processes below one, over its life."""

    def __init__(self, driver: int) -> None:
        self._driver = driver
        self.processes: dict[int, Sampled] = {driver: Sampled("driver")}

    def sample(self) -> None:
        """Read /proc once."""
        found = {int(entry): read_stat(int(entry)) for entry in os.listdir("/proc") if entry.isdecimal()}
        stats = {pid: stat for pid, stat in found.items() if stat is not None}
        # What Ray has orphaned stays ours.
        ours = {pid for pid in stats if pid in self.processes}
        grown = True
        while grown:
            below = {pid for pid, (parent, _) in stats.items() if parent in ours} - ours
            ours |= below
            grown = bool(below)
        for pid in ours:
            self._update(pid, stats[pid][1])

    def _update(self, pid: int, seconds: float) -> None:
        command = read_command(pid)
        kind = kind_of(command)
        known = self.processes.setdefault(pid, Sampled(kind))
        # Between its fork and its program, a worker looks like its raylet.
        if known.kind in ("IDLE", "other", "raylet") and kind not in ("IDLE", "other"):
            known.kind, known.idle = kind, known.seconds
        known.programs |= {name for name in ("setup_worker.py", "default_worker.py") if name in command}
        known.seconds = max(known.seconds, seconds)

    def mark_first_step(self) -> None:
        """Keep the seconds so far."""
        for process in self.processes.values():
            process.at_first_step = process.seconds


def measure(folder: Path, repeat: int, options: argparse.Namespace) -> Result:
    """Run the command once and sample it."""
    settings = [f"run.name=run-{repeat}", f"run.storage={folder}/runs", f"data.path={folder}/faces"]
    settings += [f"duration={options.steps} steps", f"checkpoints.every={options.steps} steps"]
    settings += [f"compute.workers={options.workers}", f"ingest.actors_per_worker={options.actors}"]
    metrics = folder / "runs" / f"run-{repeat}" / "metrics.jsonl"
    first = 0.0
    with open(folder / f"log-{repeat}", "w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "jobs/pretrain.py", "configs/pretrain/debug.yaml", *settings],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        sampler = Sampler(process.pid)
        while process.poll() is None:
            sampler.sample()
            if not first and metrics.exists() and metrics.stat().st_size:
                first = time.perf_counter() - start
                sampler.mark_first_step()
            time.sleep(_INTERVAL_S)
        whole = time.perf_counter() - start
        log.seek(0)
        assert process.returncode == 0, log.read()
    return Result(first, whole, list(sampler.processes.values()))


def report(result: Result) -> None:
    """Print the processes of a run by kind, and its times."""
    kinds = defaultdict(list)
    for process in result.processes:
        kinds[process.kind].append(process)
    columns = ("number", "CPU-s", "each", "first step", "idle", "programs")
    print(f"{'process':32}" + "".join(f"{column:>11}" for column in columns))

    def line(name: str, found: list[Sampled]) -> None:
        total, before, idle = (sum(getattr(one, key) for one in found) for key in ("seconds", "at_first_step", "idle"))
        programs = sum(len(one.programs) for one in found)
        print(
            f"{name[:30]:32}{len(found):11}{total:11.1f}{total / len(found):11.2f}{before:11.1f}{idle:11.1f}"
            f"{programs:11}"
        )

    for kind, found in sorted(kinds.items(), key=lambda one: -sum(process.at_first_step for process in one[1])):
        line(kind, found)
    line("all", result.processes)
    print(f"first step after {result.first_step:.1f} s, the end after {result.whole:.1f} s")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--actors", type=int, default=1, help="that preprocess for each worker")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    # By default Ray's workers give way to all other work (nice 15).
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(
        f"{date.today()}  torch {torch.__version__}, ray {ray.__version__}, Python {platform.python_version()}, "
        f"{cpu_name()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.write_faces(f"{folder}/faces", num_identities=32, images_per_identity=8, seed=0)
        for repeat in range(options.repeats):
            results.append(measure(Path(folder), repeat, options))
            report(results[-1])
    median = statistics.median
    print(
        f"medians of {len(results)}: first step {median(one.first_step for one in results):.1f} s, "
        f"{median(one.at_first_step for one in results):.1f} CPU-s"
    )


if __name__ == "__main__":
    main()

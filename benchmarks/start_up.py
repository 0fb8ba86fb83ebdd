"""What the start of the command line and of `import lafs_ray` costs, beside a Python that does nothing.

    python -m benchmarks.start_up --repeats 15

Each command is a process of its own; the repeats of all alternate, after one that is not counted and writes the
compiled files. Processor time is user and system time of the process and its children, from the kernel. Medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import date

from benchmarks.views import cpu_name

LAFS = ("-m", "lafs_ray")
BASELINE = "python -c pass"
COMMANDS: dict[str, tuple[str, ...]] = {
    BASELINE: ("-c", "pass"),
    "import lafs_ray": ("-c", "import lafs_ray"),
    "lafs --help": (*LAFS, "--help"),
    "lafs pretrain --help": (*LAFS, "pretrain", "--help"),
    "lafs config optim.lr": (*LAFS, "config", "optim.lr"),
    "lafs --version": (*LAFS, "--version"),
}


def timed(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Run Python with arguments and without output; return its wall and processor seconds."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        outputs = [(os.POSIX_SPAWN_DUP2, nowhere, number) for number in range(3)]
        since = time.perf_counter()
        process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=outputs)
        _, status, usage = os.wait4(process, 0)
        wall = time.perf_counter() - since
    finally:
        os.close(nowhere)
    if status:
        raise SystemExit(f"{sys.executable} {' '.join(arguments)}: exit code {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print a row for each command: seconds, and their ratio to the baseline's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            sample = timed(arguments)
            if repeat:
                samples[name].append(sample)
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in samples.items()
    }
    machine = f"Python {platform.python_version()}, {cpu_name()}, load {os.getloadavg()[0]:.0f}"
    print(f"{date.today()}, {machine}, {repeats} repeats")
    print("| command | wall, s | processor, s | ratio, wall | ratio, processor |\n|---|---|---|---|---|")
    for name, (wall, processor) in medians.items():
        base_wall, base_processor = medians[BASELINE]
        ratios = f"{wall / base_wall:.1f} | {processor / base_processor:.1f}"
        print(f"| `{name}` | {wall:.3f} | {processor:.3f} | {ratios} |")


if __name__ == "__main__":
    main()

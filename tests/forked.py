"""Processes forked off one that has made the imports, which would cost each of them 3 s of a core."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_IMPORTS = ["torch.distributed", "torch.nn.parallel", "lafs_ray.cli.train", "lafs_ray.training.runner", "tests.ranks"]


def start_method() -> str:
    """Multiprocessing's name for the way to start such processes."""
    multiprocessing.set_forkserver_preload(_IMPORTS)
    return "forkserver"


def run_script(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a Python script like `subprocess.run`: in a process of its own, with files as its output.

    Args:
        command: the script and its arguments.
        cwd: where.
        environment: all variables; those that torch reads when it is imported come too late.
        limit_s: seconds after which it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        arguments = (list(command), str(cwd), dict(environment), [str(file) for file in files])
        process = multiprocessing.get_context(start_method()).Process(target=_run, args=arguments)
        process.start()
        process.join(limit_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, limit_s)
        return subprocess.CompletedProcess(command, process.exitcode, *(file.read_text() for file in files))


def _run(command: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    # Python puts a script's folder there.
    sys.path.insert(0, str(Path(command[0]).parent.resolve()))
    runpy.run_path(command[0], run_name="__main__")

"""What a killed driver leaves of its own Ray is ended, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lafs_ray.engine import ray_guard

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found on Linux")

# A driver whose child calls itself as an agent of Ray does, and another one that does not.
DRIVER = """
import subprocess, sys, time
from lafs_ray.engine.ray_guard import guard
guard(); guard()
agent = subprocess.Popen(["ray::Agent", "600"], executable="/bin/sleep")
tracker = subprocess.Popen(["tracker", "600"], executable="/bin/sleep")
print(agent.pid, tracker.pid, flush=True)
time.sleep(600 if sys.argv[1] == "wait" else 0)
"""

RAY_DRIVER = """
import os, time
import ray
from lafs_ray.engine.ray_session import start_or_join
start_or_join(1)
ray.get(ray.remote(lambda: 1).remote())
print(os.environ["LAFS_LOCAL_RAY"], flush=True)
time.sleep(600)
"""


def start(program: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a driver; return it and its first line."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and that is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_gone(pid: int, limit_s: float) -> bool:
    """Wait for the end of a process; return whether it came."""
    deadline = time.monotonic() + limit_s
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_there(pid)


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_guard__agents_go_with_their_driver(how: str) -> None:
    """However the driver ends: what is Ray's is ended after some seconds, a process of another name goes on."""
    driver, line = start(DRIVER, "wait" if how == "killed" else "end")
    agent, tracker = map(int, line.split())
    try:
        if how == "killed":
            assert is_there(agent)
            os.kill(driver.pid, signal.SIGKILL)
        driver.wait(30)
        assert until_gone(agent, 30)
        assert is_there(tracker)
    finally:
        os.kill(tracker, signal.SIGKILL)
    # The guard ends as well: it names the driver in its command.
    until_gone(guard_of(driver.pid), 30)
    assert guard_of(driver.pid) == 0


def guard_of(driver: int) -> int:
    """Return the guard of a driver, 0 if there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and is_there(int(folder.name)):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if ray_guard.__file__.encode() in command and command[-2].startswith(f"{driver} ".encode()):
                return int(folder.name)
    return 0


@pytest.mark.long
@pytest.mark.ray
def test_ray__nothing_is_left_of_a_killed_driver() -> None:
    """A real Ray: its agents, which would wait for a minute, are gone as well."""
    driver, token = start(RAY_DRIVER)
    before = ray_guard.left_behind(token.strip())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(30)
    assert len(before) > 3, before
    assert all(until_gone(pid, 20) for pid in before)

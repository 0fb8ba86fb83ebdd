"""The processes of a benchmark end with its first error, with Ctrl-C, and with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.process_pool import process_pool, results

ROOT = Path(__file__).parents[1]
# Of a call that must not be waited for.
LONG_S = 250
LIMIT_S = 60
PROGRAM = """
import sys
from benchmarks.process_pool import process_pool, results
from lafs_ray.cli.main import run
from tests.test_process_pool import note_and_sleep, nothing

def main(arguments):
    with process_pool(2, nothing) as pool:
        results([pool.submit(note_and_sleep, arguments[0]) for _ in range(2)])

if __name__ == "__main__":
    raise SystemExit(run(main))
"""


def nothing() -> None:
    """Prepare nothing."""


def fail() -> None:
    """Raise an error."""
    raise ValueError("of a call")


def note_and_sleep(folder: str) -> None:
    """Leave this process's number in a folder, and do not end."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(LONG_S)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


def noted(folder: Path, count: int) -> list[int]:
    """Return the numbers of that many processes, once they have left theirs."""
    until(lambda: len(list(folder.iterdir())) >= count)
    return [int(path.name) for path in folder.iterdir()]


def has_ended(process: int) -> bool:
    """Return whether a process has ended, whether or not its parent has waited for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def fail_beside_a_long_call(notes: Path) -> None:
    """Wait for two calls, the second of which fails once the first has begun."""
    with process_pool(2, nothing) as pool:
        long_call = pool.submit(note_and_sleep, str(notes))
        noted(notes, 1)
        results([long_call, pool.submit(fail)])


def test_results__the_first_error_ends_all(tmp_path: Path) -> None:
    """An error is raised while another call runs, whose process is ended."""
    started = time.monotonic()
    with pytest.raises(ValueError, match="of a call"):
        fail_beside_a_long_call(tmp_path)
    until(lambda: has_ended(*noted(tmp_path, 1)))
    assert time.monotonic() - started < LONG_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_process_pool__ends_with_its_starter(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C for all of them, and a signal for the first alone, end every process; without a traceback."""
    program, notes = tmp_path / "program.py", tmp_path / "notes"
    program.write_text(PROGRAM)
    notes.mkdir()
    with subprocess.Popen(
        [sys.executable, str(program), str(notes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        processes = noted(notes, 2)
        if number == signal.SIGINT:
            os.killpg(starter.pid, number)
        else:
            starter.send_signal(number)
        _, errors = starter.communicate(timeout=LIMIT_S)
    until(lambda: all(has_ended(process) for process in processes))
    assert starter.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in errors, errors

"""The processes of a benchmark end with its first error, with Ctrl-C, and with the process that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.process_pool import process_pool, results

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in Linux's /proc")

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


def until(holds: Callable[[], bool], awaited: str) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < limit, f"waited {LIMIT_S} s for {awaited}"
        time.sleep(0.1)


def noted(folder: Path, count: int, starter: subprocess.Popen[str] | None = None) -> list[int]:
    """Return the numbers of that many processes, once they have left theirs."""

    def are_there() -> bool:
        assert starter is None or starter.poll() is None, starter.communicate()
        return len(list(folder.iterdir())) >= count

    until(are_there, f"{count} processes")
    return [int(path.name) for path in folder.iterdir()]


def status_of(process: int) -> list[str]:
    """Return state, parent, group, session, … of a process as Linux names them; Z, ended, if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ["Z", *("0",) * 3]


def has_ended(process: int) -> bool:
    """Return whether a process has ended, whether or not its parent has waited for it."""
    return status_of(process)[0] == "Z"


def of_session(session: int) -> list[int]:
    """Return the processes of a session."""
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [process for process in processes if status_of(process)[3] == str(session)]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the program in a session of its own, whose processes are killed at the end."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    (folder / "notes").mkdir()
    with subprocess.Popen(
        [sys.executable, str(program), str(folder / "notes")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as starter:
        try:
            yield starter
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(starter.pid, signal.SIGKILL)


def fail_beside_a_long_call(notes: Path) -> None:
    """Wait for two calls, the second of which fails once the first has begun."""
    with process_pool(2, nothing) as pool:
        long_call = pool.submit(note_and_sleep, str(notes))
        noted(notes, 1)
        results([long_call, pool.submit(fail)])


def test_results__the_first_error_ends_all(tmp_path: Path) -> None:
    """An error is raised while another call runs, whose process is ended; signals are handled as before."""
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(ValueError, match="of a call"):
        fail_beside_a_long_call(tmp_path)
    until(lambda: has_ended(*noted(tmp_path, 1)), "its end")
    assert time.monotonic() - began < LONG_S
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_process_pool__ends_with_its_starter(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C for all of them, and a signal for the first alone, end every process; without a traceback."""
    with started(tmp_path) as starter:
        processes = noted(tmp_path / "notes", 2, starter)
        if number == signal.SIGINT:
            os.killpg(starter.pid, number)
        else:
            starter.send_signal(number)
        _, errors = starter.communicate(timeout=LIMIT_S)
        until(lambda: all(has_ended(process) for process in processes), "the end of all")
    message, code = {
        signal.SIGINT: ("interrupted; the same command continues\n", 130),
        signal.SIGTERM: ("stopped by SIGTERM; the same command continues\n", 143),
        signal.SIGKILL: ("", -signal.SIGKILL),
    }[number]
    # The killed one's semaphores are cleaned up, with a warning.
    assert (errors if number != signal.SIGKILL else "", starter.returncode) == (message, code)
    assert "Traceback" not in errors


def test_process_pool__ctrl_c_while_processes_import(tmp_path: Path) -> None:
    """Processes that have not prepared themselves yet leave Ctrl-C to their starter, too."""
    with started(tmp_path) as starter:
        # With their resource tracker.
        until(lambda: len(of_session(starter.pid)) == 4, "both processes")
        os.killpg(starter.pid, signal.SIGINT)
        _, errors = starter.communicate(timeout=LIMIT_S)
    assert (errors, starter.returncode) == ("interrupted; the same command continues\n", 130)

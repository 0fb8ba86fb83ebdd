"""Ctrl-C during imports and while Ray starts."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lafs_ray.interrupt import delayed


def test_exit_at_once__code_and_line() -> None:
    """The process ends with 130 and the message; nothing after the block runs."""
    program = (
        "import signal; from lafs_ray.interrupt import exit_at_once\n"
        "with exit_at_once('told so'):\n    signal.raise_signal(signal.SIGINT)\nprint('went on')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "told so\n")


def test_delayed__at_the_end_of_the_block(capfd: pytest.CaptureFixture[str]) -> None:
    """What runs in the block is not interrupted; the interrupt comes after it, and Python's handler is back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = False
    try:
        with pytest.raises(KeyboardInterrupt), delayed("wait"):  # noqa: PT012 - the end of the inner block raises
            signal.raise_signal(signal.SIGINT)
            done = True
        assert done
        assert capfd.readouterr().err == "wait\n"
        with delayed("wait"):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_delayed__other_handlers_stay() -> None:
    """A handler that is not Python's own is not replaced."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with delayed("wait"):
            signal.raise_signal(signal.SIGINT)
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)

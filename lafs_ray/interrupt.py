"""Ctrl-C where Python's KeyboardInterrupt would do harm: in imports, and while Ray starts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 130

_Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def exit_at_once(message: str = "interrupted") -> Iterator[None]:
    """Within the block, Ctrl-C ends the process with code 130 and a line.

    For imports: C extensions turn an exception there into errors of every kind, or crash at the end of the process.
    """
    with _handling(lambda *_: _end(message)):
        yield


@contextlib.contextmanager
def delayed(message: str) -> Iterator[None]:
    """Within the block, Ctrl-C prints a line and takes effect at the block's end; a second one ends the process.

    For the start of Ray, which crashes when an exception interrupts it.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was pressed.
    """
    pressed: list[int] = []

    def handle(signum: int, _: FrameType | None) -> None:
        if pressed:
            _end("interrupted")
        pressed.append(signum)
        _write(message)

    with _handling(handle):
        yield
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    """Install a handler of SIGINT in the place of Python's own; another one, or none, stays."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(message: str) -> None:
    _write(message)
    os._exit(EXIT_CODE)


def _write(message: str) -> None:
    # Not print: the signal may have come in the middle of one.
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())

"""Processes that make the runs and rows of a benchmark, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def process_pool(count: int, prepare: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Start processes; an error, Ctrl-C or a signal here stops them.

    Args:
        count: of processes.
        prepare: called in each of them first.
        arguments: its arguments.
    """
    spawn = multiprocessing.get_context("spawn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ProcessPoolExecutor(count, spawn, initializer=_start, initargs=(prepare, arguments)) as pool:
        try:
            yield pool
        except BaseException:
            # Leaving the pool would wait for all calls that are left to make.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def results(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for calls, and return what they return; the first error is raised when it occurs, whichever call's it is."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]


def _start(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepare a process, which leaves Ctrl-C to the one that started it, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

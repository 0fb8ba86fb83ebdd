"""Processes that make the runs and rows of a benchmark, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from lafs_ray.errors import Stopped

T = TypeVar("T")


@contextmanager
def process_pool(count: int, prepare: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Start processes; an error, Ctrl-C or SIGTERM here stops them. For the main thread, which gets signals.

    Args:
        count: of processes.
        prepare: called in each of them first.
        arguments: its arguments.

    Raises:
        Stopped: SIGTERM.
    """
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with _handled(signal.SIGTERM, _stop), ProcessPoolExecutor(count, spawn, _start, (prepare, arguments)) as pool:
        try:
            # They are born deaf to Ctrl-C: their imports take seconds, in which `_start` has not been called.
            with _handled(signal.SIGINT, signal.SIG_IGN):
                for _ in range(count):
                    pool.submit(int)
            yield pool
        except BaseException:
            # Leaving the pool would wait for all calls that are left to make.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _handled(number: signal.Signals, handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """Have another handler of a signal within the block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _stop(number: int, _: object) -> None:
    raise Stopped(number, f"stopped by {signal.Signals(number).name}; the same command continues")


def results(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for calls, and return what they return; the first error is raised when it occurs, whichever call's it is."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]


def _start(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepare a process, which leaves Ctrl-C to the one that started it, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

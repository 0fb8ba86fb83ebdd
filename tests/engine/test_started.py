"""A generator that is started before its turn gives the same items, its error, and ends without being waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from lafs_ray.engine.started import Started

LIMIT_S = 20


def test_take__all_items_of_which_the_first_was_there() -> None:
    threads: list[int] = []

    def items() -> Generator[int, None, None]:
        for number in range(3):
            threads.append(threading.get_ident())
            yield number

    started = Started(items())
    assert started._is_done.wait(LIMIT_S)
    assert len(threads) == 1
    assert list(started.take()) == [0, 1, 2]
    mine = threading.get_ident()
    assert [thread == mine for thread in threads] == [False, True, True]


def test_take__nothing_or_the_error() -> None:
    def nothing() -> Generator[int, None, None]:
        yield from ()

    def fails() -> Generator[int, None, None]:
        raise ZeroDivisionError("x / 0")
        yield 0

    assert list(Started(nothing()).take()) == []
    with pytest.raises(ZeroDivisionError, match="x / 0"):
        list(Started(fails()).take())


@pytest.mark.parametrize("is_early", [False, True])
def test_close__ends_the_generator_and_waits_for_nothing(is_early: bool) -> None:
    """Also while its first item is being computed, which may take seconds."""
    go, ended = threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            go.wait(LIMIT_S)
            yield 0
        finally:
            ended.set()

    started = Started(items())
    if not is_early:
        go.set()
        assert started._is_done.wait(LIMIT_S)
    begin = time.monotonic()
    started.close()
    assert time.monotonic() - begin < LIMIT_S / 2
    assert ended.is_set() is not is_early
    go.set()
    assert ended.wait(LIMIT_S)

"""An iterator that is started before its turn, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Started(Generic[_Item]):
    """Computes the first item of a generator in a thread; the others are computed as they are taken.

    Args:
        items: the generator, which nothing else uses.
    """

    def __init__(self, items: Generator[_Item, None, None]) -> None:
        self._items = items
        self._first: list[_Item] = []
        self._error: BaseException | None = None
        self._is_done = threading.Event()
        # Reentrant: the garbage collector may call `close` anywhere.
        self._lock = threading.RLock()
        self._is_closed = False
        threading.Thread(target=self._start, name="started", daemon=True).start()

    def _start(self) -> None:
        try:
            self._first.extend([next(self._items)])
        except StopIteration:
            pass
        except BaseException as error:  # of any kind: it belongs to who takes the items
            self._error = error
        with self._lock:
            self._is_done.set()
            if self._is_closed:
                self._end()

    def take(self) -> Iterator[_Item]:
        """Yield all items.

        Raises:
            BaseException: the one that the generator raised.
        """
        self._is_done.wait()
        if self._error is not None:
            raise self._error
        while self._first:
            yield self._first.pop()
        yield from self._items

    def close(self) -> None:
        """End the generator without waiting: now, or when its first item is there."""
        with self._lock:
            self._is_closed = True
            if self._is_done.is_set():
                self._end()

    def _end(self) -> None:
        self._first.clear()
        self._items.close()

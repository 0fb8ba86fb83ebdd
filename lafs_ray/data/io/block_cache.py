"""What was read from an object store, kept on a local disk up to a size.

Files are kept in blocks of 1 MiB, each a file of its own, named by the hash of URI, the store's
version of the object and place: a changed object has other names, and what is old ages out. A block
carries a checksum; one that is damaged or half-written is fetched again. All processes of a node
may share a folder. Blocks read longest ago go first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

BLOCK_BYTES = 1 << 20
_RUN_BLOCKS = 8
_TRAILER = struct.Struct("<4sIQ")
_MARK = b"lafs"
# A process looks at the whole folder after writing this part of the limit.
_LOOKS = 64
# How long one process deletes for all.
_LONGEST_LOOK_S = 1.0


@dataclass(frozen=True)
class BlockCache:
    """A folder of blocks; plain values, so that it travels to other processes.

    Args:
        folder: on a local disk; made if missing.
        limit_bytes: what all blocks may take. Several processes may exceed it by a 64th each for a
            moment.
    """

    folder: str
    limit_bytes: int

    def open(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            DataError: it cannot.
        """
        with filesystem.atomic_write(os.path.join(self.folder, "README")) as file:
            file.write(b"Blocks of object stores, kept by lafs_ray; may be deleted at any time.\n")

    def _path(self, uri: str, version: str, block: int) -> str:
        name = hashlib.blake2b(f"{uri}\0{version}\0{block}".encode(), digest_size=16).hexdigest()
        return os.path.join(self.folder, name[:2], f"{name}.block")

    def get(self, uri: str, version: str, block: int, size: int) -> bytes | None:
        """A block of this many bytes; None where it is not kept, or damaged."""
        path = self._path(uri, version, block)
        try:
            with open(path, "rb") as file:
                content = file.read(size + _TRAILER.size + 1)
            if len(content) == size + _TRAILER.size:
                mark, checksum, stated = _TRAILER.unpack_from(content, size)
                data = content[:size]
                if (mark, stated) == (_MARK, size) and zlib.crc32(data) == checksum:
                    os.utime(path)  # Read just now: the last to go.
                    return data
            os.unlink(path)
        except OSError:
            pass
        return None

    def put(self, uri: str, version: str, block: int, data: bytes) -> None:
        """Keep a block; where that fails (a full disk), it is fetched anew the next time."""
        path = self._path(uri, version, block)
        temporary = f"{path}.{uuid.uuid4().hex[:12]}.partial"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data + _TRAILER.pack(_MARK, zlib.crc32(data), len(data)))
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if _written.add(self.folder, len(data), self.limit_bytes // _LOOKS):
            self.shrink()

    def shrink(self) -> None:
        """Delete what was read longest ago until the blocks take less than the limit.

        One process at a time; others go on without waiting, and leave it a file that says to look
        again, as it may have looked before they wrote. Who keeps on being told so stops after a
        second: whoever writes next goes on.
        """
        again, begin = Path(self.folder, "again"), time.monotonic()
        with contextlib.suppress(OSError), open(os.path.join(self.folder, "lock"), "ab") as lock:
            # Left before the lock is tried, it is seen by whoever holds the lock at that time. A
            # full disk takes no new file; then there is the more to delete.
            with contextlib.suppress(OSError):
                again.touch()
            told = True
            while told and time.monotonic() - begin < _LONGEST_LOOK_S:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                again.unlink(missing_ok=True)
                self._delete_oldest()
                fcntl.flock(lock, fcntl.LOCK_UN)
                told = again.exists()

    def _delete_oldest(self) -> None:
        blocks = sorted(self._blocks())
        total = sum(size for _, size, _ in blocks)
        # Room for what all may write before the next look.
        target = self.limit_bytes - self.limit_bytes // 16
        for _, size, path in blocks:
            if total <= target:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _blocks(self) -> Iterator[tuple[int, int, str]]:
        """(last use in ns, bytes, path) of each file, leftovers of killed processes included."""
        for folder in os.scandir(self.folder):
            if len(folder.name) == 2:
                for entry in os.scandir(folder.path):
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat()
                        yield info.st_mtime_ns, info.st_size, entry.path


class _Written:
    """Bytes that this process has added to each folder since it last looked at it."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, folder: str, size: int, enough: int) -> bool:
        """Count; whether it is time to look."""
        with self._lock:
            # A process that begins does not know what is there.
            total = self._bytes.get(folder, enough) + size
            self._bytes[folder] = 0 if total > enough else total
            return total > enough


_written = _Written()


class CachedFile:
    """One version of one object: blocks from the cache, what is missing from the store.

    What came from the store is kept only by `keep`, after the caller has seen that the object is
    still the same. Several threads may call `read_at` at once.

    Args:
        cache: the cache.
        uri: of the object.
        version: of the object.
        size: of the object in bytes.
    """

    def __init__(self, cache: BlockCache, uri: str, version: str, size: int) -> None:
        self._cache, self._uri, self._version, self._size = cache, uri, version, size
        self._input = filesystem.open_input(uri)
        self._fetched: dict[int, bytes] = {}

    def __enter__(self) -> CachedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()

    @property
    def untouched(self) -> bool:
        """Whether the cache had everything."""
        return not self._fetched

    def read_at(self, nbytes: int, offset: int) -> Any:
        """These bytes; shorter only where the object ends.

        Raises:
            DataError: they cannot be read.
        """
        end = min(offset + nbytes, self._size)
        first, stop = offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        blocks = {block: self._kept(block) for block in range(first, stop)}
        for begin, after in _neighbors([b for b, data in blocks.items() if data is None]):
            blocks.update(self._fetch(begin, after))
        whole = b"".join(data or b"" for data in blocks.values())
        start = offset - first * BLOCK_BYTES
        return memoryview(whole)[start : start + max(end - offset, 0)]

    def keep(self) -> None:
        """Put what was fetched into the cache."""
        while self._fetched:
            block, data = self._fetched.popitem()
            self._cache.put(self._uri, self._version, block, data)

    def _kept(self, block: int) -> bytes | None:
        if (data := self._fetched.get(block)) is not None:
            return data
        return self._cache.get(self._uri, self._version, block, self._block_size(block))

    def _block_size(self, block: int) -> int:
        return min(BLOCK_BYTES, self._size - block * BLOCK_BYTES)

    def _fetch(self, begin: int, after: int) -> dict[int, bytes]:
        offset = begin * BLOCK_BYTES
        wanted = min(after * BLOCK_BYTES, self._size) - offset
        data = memoryview(self._input.read_at(wanted, offset))
        if len(data) < wanted:
            found = f"{len(data)} bytes at offset {offset}"
            fix = "do not write to a set in use; start again to open it anew"
            raise DataError(self._uri, found=found, expected=f"{wanted} bytes", fix=fix)
        blocks = {
            block: bytes(data[(block - begin) * BLOCK_BYTES :][:BLOCK_BYTES])
            for block in range(begin, after)
        }
        self._fetched.update(blocks)
        return blocks


def _neighbors(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, at most 8 long."""
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1 or i - first == _RUN_BLOCKS:
            yield blocks[first], blocks[i - 1] + 1
            first = i

"""Addresses, byte ranges coalesced into few reads, stale handles of network disks."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from lafs_ray.config.yaml_text import read_yaml
from lafs_ray.data.io import filesystem, listing, reading, retries
from lafs_ray.errors import ConfigError, DataError


def test_resolve__kinds_of_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths become absolute, file:// is a local path, an unknown scheme is refused."""
    monkeypatch.chdir(tmp_path)
    assert reading.resolve("x/y.rec")[1] == str(tmp_path / "x/y.rec")
    assert reading.resolve((tmp_path / "y.rec").as_uri())[1] == str(tmp_path / "y.rec")
    with pytest.raises(DataError, match="nope"):
        reading.resolve("nope://bucket/y.rec")


def test_read_ranges__coalesced_reads_equal_single_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limits of gap and read, and from any file system, a range has its own bytes."""
    data = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "a.rec").write_bytes(data)
    offsets = np.array([0, 10, 500, 520, 4000, 9990])
    sizes = np.array([10, 20, 20, 0, 300, 10])
    expected = [data[o : o + s] for o, s in zip(offsets, sizes, strict=True)]
    for gap, read in [(0, 1), (100, 400), (10_000, 10_000)]:
        monkeypatch.setattr(reading, "_MAX_GAP_BYTES", gap)
        monkeypatch.setattr(reading, "_MAX_READ_BYTES", read)
        ranges = reading.ByteRanges(str(tmp_path / "a.rec"), offsets, sizes)
        assert [bytes(found) for found in reading.read_ranges([ranges])] == expected
    # A SubTreeFileSystem is not local in name, as S3 is not: its reads go through the threads.
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(reading, "resolve", lambda uri: (remote, Path(uri).name))
    monkeypatch.setattr(reading, "_MAX_GAP_BYTES", 0)
    ranges = reading.ByteRanges("mem://a.rec", offsets, sizes)
    before = threading.active_count()
    found = reading.read_ranges([ranges])
    first = bytes(next(found))
    # None is there that the garbage collector would have to wait for if the generator were left behind.
    assert threading.active_count() == before
    assert [first, *map(bytes, found)] == expected


def test_network_disk__stale_handles_are_reopened(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESTALE and EIO of NFS are retried with a new handle; six in a row are an error."""
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    path = on_disk / "a.rec"

    class Handle:
        def __init__(self, failures: list[int]) -> None:
            self._failures, self._file = failures, fs.LocalFileSystem().open_input_file(str(path))

        def size(self) -> int:
            return path.stat().st_size

        def read_at(self, nbytes: int, offset: int) -> object:
            if self._failures:
                number = self._failures.pop()
                raise OSError(number, os.strerror(number))
            return self._file.read_at(nbytes, offset)

        def close(self) -> None:
            self._file.close()

    class Disk:
        def __init__(self, failures: list[int]) -> None:
            self.failures, self.opened = failures, 0

        def open_input_file(self, _: str) -> Handle:
            self.opened += 1
            return Handle(self.failures)

    disk = Disk([errno.ESTALE, errno.EIO])
    with reading.Input(str(path), disk, str(path)) as file:
        assert bytes(file.read_at(8, 4)) == path.read_bytes()[4:12]
    assert disk.opened == 3
    assert [0.25 <= waits[0] <= 0.5, 0.5 <= waits[1] <= 1.0] == [True, True]
    waits.clear()
    disk = Disk([errno.ESTALE] * 6)
    with reading.Input(str(path), disk, str(path)) as file, pytest.raises(DataError) as error:
        file.read_at(8, 4)
    assert error.value.subject == f"{path}, bytes 4 to 12"
    assert "Stale file handle; gave up after 6 attempts in" in error.value.found
    assert len(waits) == 5
    disk = Disk([errno.EACCES])
    with reading.Input(str(path), disk, str(path)) as file, pytest.raises(DataError) as error:
        file.read_at(8, 4)
    assert (error.value.found, disk.opened) == ("no permission to read it", 1)


def test_read_files__waits_with_no_thread(tmp_path: Path) -> None:
    """In order, whatever their number; and between two files no thread is there that would have to be waited for."""
    names = [f"{number:03}" for number in range(300)]
    for name in names:
        (tmp_path / name).write_text(name)
    before = threading.active_count()
    contents = listing.read_files(str(tmp_path), [*names, "missing"])
    assert next(contents) == b"000"
    assert threading.active_count() == before
    rest = list(contents)
    assert rest[:-1] == [name.encode() for name in names[1:]]
    assert isinstance(rest[-1], DataError)


@pytest.mark.timeout(20)
def test_read__pipe(tmp_path: Path) -> None:
    """A pipe, which would block, is refused wherever a file is read; so is a configuration."""
    pipe = tmp_path / "a.pipe"
    os.mkfifo(pipe)
    (tmp_path / "link.rec").symlink_to(pipe)
    for path in (str(pipe), pipe.as_uri(), str(tmp_path / "link.rec")):
        with pytest.raises(DataError, match="a device, pipe or socket"):
            filesystem.read_bytes(path)
        with pytest.raises(DataError, match="a device, pipe or socket"), filesystem.local_file(path):
            pass
        with pytest.raises(DataError, match="a device, pipe or socket"):
            filesystem.file_size(path)
        with pytest.raises(ConfigError, match="a device, pipe or socket"):
            read_yaml(path.removeprefix("file://"))
    (found,) = listing.read_files(str(tmp_path), ["a.pipe"])
    assert isinstance(found, DataError)

"""Image sources of a packing: sets of shards, a folder of images, or a list of images.

A source numbers its records 0…num_records-1 in a fixed order and reads any range of them. A damaged record is returned
with an error; a source that changes while it is read stops the packing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.listing import read_files
from lafs_ray.data.shard import spread
from lafs_ray.errors import DataError

_RECORDS_PER_READ, _BYTES_PER_READ = 1024, 64 << 20
# All of them may be in memory at once, and unaligned photographs have megabytes.
_FILES_PER_READ = 64
_CONCURRENT_FILES, _SAMPLED_FILES = 16, 256


class ImageRow(NamedTuple):
    """A record of a source.

    Args:
        label: -1: none.
        image: encoded image; empty where `error` is set.
        landmarks: (x, y) in pixels, [5, 2]; None: the image is aligned already.
        name: file, and key in a `.rec`, for messages.
        error: reason why the record is unusable, or empty.
    """

    label: int
    image: bytes
    landmarks: NDArray[np.float32] | None
    name: str
    error: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource(ABC):
    """Labeled images in a fixed order.

    Args:
        uri: absolute path or URI.
        kind: `records`, `webdataset`, `parquet`, `folder` or `list`.
        num_records: images, damaged ones included.
        size_bytes: of all images; an estimate for a list of objects in a store.
        fingerprint: hash that changes with the files (for a list: with the list).
        num_identities: labels are below it; None: known after reading all records.
        names: name of each label; None: labels have only numbers.
        has_landmarks: whether images are aligned by landmarks.
    """

    uri: str
    kind: str
    num_records: int
    size_bytes: int
    fingerprint: str
    num_identities: int | None
    names: Sequence[str] | None = None
    has_landmarks: bool = False

    @abstractmethod
    def read(self, first: int, stop: int) -> Iterator[ImageRow]:
        """Read records first…stop-1.

        Raises:
            DataError: the source has changed since it was opened.
        """


def _changed(uri: str, found: tuple[int, int], expected: tuple[int, int]) -> DataError:
    return DataError(
        uri,
        found=f"{found[0]} bytes, modified at {found[1] / 1e9:.3f}",
        expected=f"{expected[0]} bytes, modified at {expected[1] / 1e9:.3f}, as at the start",
        fix="do not change the source during packing; then pack it into an empty folder",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordSource(ImageSource):
    """One or several `.rec`, `.tar` or Parquet files.

    Args:
        faces: the opened set.
        stamps: size in bytes and modification time in ns of each file.
    """

    faces: FaceSet
    stamps: tuple[tuple[int, int], ...]

    def read(self, first: int, stop: int) -> Iterator[ImageRow]:
        """Read records first…stop-1; see `ImageSource`."""
        self._check_unchanged(first, stop)
        mean_bytes = self.size_bytes // max(self.num_records, 1)
        step = max(min(_RECORDS_PER_READ, _BYTES_PER_READ // max(mean_bytes, 1)), 1)
        for begin in range(first, stop, step):
            rows = self.faces.read(np.arange(begin, min(begin + step, stop)))
            columns = (rows.shard.tolist(), rows.key.tolist(), rows.label.tolist())
            for shard, key, label, image, error in zip(*columns, rows.images, rows.errors, strict=True):
                yield ImageRow(label, image, None, f"{self.faces.shard_uris[shard]}, key {key}", error)
        self._check_unchanged(first, stop)

    def _check_unchanged(self, first: int, stop: int) -> None:
        ends = np.searchsorted(self.faces.shard_starts, [first, stop - 1], side="right") - 1
        for shard in range(int(ends[0]), int(ends[1]) + 1):
            uri, expected = self.faces.shard_uris[shard], self.stamps[shard]
            if (stamp := filesystem.file_stamp(uri)) != expected:
                raise _changed(uri, stamp, expected)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFileSource(ImageSource):
    """Image files below a folder, or named in a list.

    Args:
        base: folder that relative file names start from.
        files: file names.
        labels: int32 [n]; -1: none.
        landmarks: float32 [n, 5, 2], nan where an image has none; None: the images are aligned.
        stamps: size in bytes and modification time in ns of each file, int64 [n, 2]; None: not known.
        list_stamp: the same of the list; None: a folder.
    """

    base: str
    files: pa.Array
    labels: NDArray[np.int32]
    landmarks: NDArray[np.float32] | None
    stamps: NDArray[np.int64] | None = None
    list_stamp: tuple[int, int] | None = None

    def read(self, first: int, stop: int) -> Iterator[ImageRow]:
        """Read records first…stop-1; see `ImageSource`."""
        if self.list_stamp and (stamp := filesystem.file_stamp(self.uri)) != self.list_stamp:
            raise _changed(self.uri, stamp, self.list_stamp)
        for begin in range(first, stop, _FILES_PER_READ):
            numbers = range(begin, min(begin + _FILES_PER_READ, stop))
            files = self.files[numbers.start : numbers.stop].to_pylist()
            contents = read_files(self.base, files)
            for number, file, content in zip(numbers, files, contents, strict=True):
                yield self._row(number, file, content)

    def _row(self, number: int, file: str, content: bytes | DataError) -> ImageRow:
        is_absolute = reading.is_uri(file) or file[0] == "/"
        name = file if is_absolute else filesystem.join(self.base, file)
        if self.stamps is not None:
            self._check_unchanged(self.stamps[number].tolist(), name, content)
        label = int(self.labels[number])
        if isinstance(content, DataError):
            return ImageRow(label, b"", None, name, f"found {content.found}; expected an image")
        if self.landmarks is None:
            return ImageRow(label, content, None, name, "")
        points = self.landmarks[number]
        is_known = np.isfinite(points).all()
        error = "" if is_known else "found no landmarks; expected five points"
        return ImageRow(label, content, points, name, error)

    def _check_unchanged(self, stamp: list[int], name: str, content: bytes | DataError) -> None:
        found = (len(content), stamp[1]) if isinstance(content, bytes) else (0, 0)
        if reading.local_path(self.base) is not None and os.path.exists(name):
            # In an object store this would cost a second request per file: there, sizes suffice.
            found = filesystem.file_stamp(name)
        if found != tuple(stamp):
            raise _changed(name, found, (stamp[0], stamp[1]))


def file_stamps(base: str, files: pa.Array) -> tuple[NDArray[np.int64] | None, int]:
    """Return size and modification time of files, as `ImageFileSource.stamps`, and the bytes of all.

    On a disk every file is looked up; a missing one has 0 and 0. In an object store a few are, and their mean counts.
    """
    is_local = reading.local_path(base) is not None and not any(map(reading.is_uri, files.to_pylist()))
    some = np.arange(len(files)) if is_local else spread(len(files), _SAMPLED_FILES)

    def stamp(number: int) -> tuple[int, int]:
        file = files[number].as_py()
        path = file if reading.is_uri(file) or file[0] == "/" else filesystem.join(base, file)
        try:
            if is_local:
                status = os.stat(path)
                return status.st_size, status.st_mtime_ns
            return filesystem.file_stamp(path)
        except (OSError, DataError):
            return 0, 0

    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        stamps = np.array(list(pool.map(stamp, some.tolist())), np.int64)
    size_bytes = int(stamps[:, 0].sum()) * len(files) // len(some)
    return (stamps if is_local else None), size_bytes

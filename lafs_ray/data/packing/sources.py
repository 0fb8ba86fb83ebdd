"""What can be packed: `.rec` files, a folder of images, a list of images.

A source numbers its records 0…num_records-1 in a fixed order and reads any range of them. What is
wrong with one record is told in its row; a source that changes while it is read stops the packing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import read_files
from lafs_ray.errors import DataError

_ROWS_PER_READ = 1024
# All of them may be in memory at once, and unaligned photographs have megabytes.
_FILES_PER_READ = 64
_RECORD_BYTES_GUESS = 16_000


class Row(NamedTuple):
    """A record of a source.

    Args:
        label: -1: none.
        image: encoded image; empty where `error` says why.
        landmarks: (x, y) in pixels, [5, 2]; None: the image is aligned already.
        where: names the record for people.
        error: what is wrong with it; empty where nothing is.
    """

    label: int
    image: bytes
    landmarks: NDArray[np.float32] | None
    where: str
    error: str


class Source(Protocol):
    """A number of labeled images in a fixed order."""

    @property
    def uri(self) -> str:
        """Where it is, absolute."""
        ...

    @property
    def kind(self) -> str:
        """`records`, `folder` or `list`."""
        ...

    @property
    def num_records(self) -> int:
        """Images in it, sound or not."""
        ...

    @property
    def size_bytes(self) -> int:
        """Of all its images; a guess where looking would mean opening them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when a file of the source does (of a list: the list)."""
        ...

    @property
    def num_identities(self) -> int | None:
        """Labels are below it; None: known when all records have been read."""
        ...

    @property
    def names(self) -> Sequence[str] | None:
        """What each label stands for; None: for the same number in the source."""
        ...

    def read(self, first: int, stop: int) -> Iterator[Row]:
        """Records first…stop-1.

        Raises:
            DataError: the source has changed since it was opened.
        """
        ...


def _changed(uri: str, found: tuple[int, int], expected: tuple[int, int]) -> DataError:
    return DataError(
        uri,
        found=f"{found[0]} bytes, changed at {found[1] / 1e9:.3f}",
        expected=f"{expected[0]} bytes, changed at {expected[1] / 1e9:.3f}, as at the start",
        fix="leave the source alone while it is packed; then pack it into an empty folder",
    )


@dataclass(frozen=True, eq=False)
class RecordSource:
    """One or several `.rec` files.

    Args:
        uri: as it was named.
        faces: the opened set.
        stamps: size and time of the last change of each file.
    """

    uri: str
    faces: FaceSet
    stamps: tuple[tuple[int, int], ...]
    kind: str = "records"

    @property
    def num_records(self) -> int:
        """Images in the set."""
        return self.faces.num_images

    @property
    def size_bytes(self) -> int:
        """Of the images' records."""
        return int(self.faces.sizes.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Of names, sizes, indexes and times of change."""
        return _digest(self.faces.fingerprint, str([changed for _, changed in self.stamps]))

    @property
    def num_identities(self) -> int | None:
        """As the set lists them."""
        return self.faces.num_identities

    @property
    def names(self) -> Sequence[str] | None:
        """Labels have only numbers."""
        return None

    def read(self, first: int, stop: int) -> Iterator[Row]:
        """Records first…stop-1; see `Source`."""
        self._check_unchanged(first, stop)
        for begin in range(first, stop, _ROWS_PER_READ):
            rows = self.faces.read(np.arange(begin, min(begin + _ROWS_PER_READ, stop)))
            columns = (rows.shard.tolist(), rows.key.tolist(), rows.label.tolist())
            for shard, key, label, image, error in zip(
                *columns, rows.images, rows.errors, strict=True
            ):
                where = f"{self.faces.shard_uris[shard]}, key {key}"
                yield Row(label, image, None, where, error)
        self._check_unchanged(first, stop)

    def _check_unchanged(self, first: int, stop: int) -> None:
        ends = np.searchsorted(self.faces.shard_starts, [first, stop - 1], side="right") - 1
        for shard in range(int(ends[0]), int(ends[1]) + 1):
            uri, expected = self.faces.shard_uris[shard], self.stamps[shard]
            if (stamp := filesystem.file_stamp(uri)) != expected:
                raise _changed(uri, stamp, expected)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images in files of their own: below a folder, or named in a list.

    Args:
        uri: the folder, or the list.
        kind: `folder` or `list`.
        base: what the files' names are relative to.
        files: their names.
        labels: int32 [n]; -1: none.
        names: what each label stands for.
        fingerprint: of the folder's names, sizes and times; of the list's content.
        stamps: size and time of the last change of each file, int64 [n, 2]; None: not known.
        list_stamp: the same of the list.
        landmarks: float32 [n, 5, 2], nan where an image has none; None: the images are aligned.
    """

    uri: str
    kind: str
    base: str
    files: pa.Array
    labels: NDArray[np.int32]
    names: Sequence[str]
    fingerprint: str
    stamps: NDArray[np.int64] | None = None
    list_stamp: tuple[int, int] | None = None
    landmarks: NDArray[np.float32] | None = None

    @property
    def num_records(self) -> int:
        """Files."""
        return len(self.files)

    @property
    def size_bytes(self) -> int:
        """Of the files; of a list's a guess."""
        if self.stamps is None:
            return self.num_records * _RECORD_BYTES_GUESS
        return int(self.stamps[:, 0].sum())

    @property
    def num_identities(self) -> int:
        """Different labels."""
        return len(self.names)

    def read(self, first: int, stop: int) -> Iterator[Row]:
        """Records first…stop-1; see `Source`."""
        if self.list_stamp and (stamp := filesystem.file_stamp(self.uri)) != self.list_stamp:
            raise _changed(self.uri, stamp, self.list_stamp)
        for begin in range(first, stop, _FILES_PER_READ):
            numbers = range(begin, min(begin + _FILES_PER_READ, stop))
            files = self.files[numbers.start : numbers.stop].to_pylist()
            contents = read_files(self.base, files)
            for number, name, content in zip(numbers, files, contents, strict=True):
                yield self._row(number, name, content)

    def _row(self, number: int, name: str, content: bytes | DataError) -> Row:
        where = (
            name if filesystem.is_uri(name) or name[0] == "/" else filesystem.join(self.base, name)
        )
        if self.stamps is not None:
            self._check_unchanged(number, where, content)
        label, points, error = int(self.labels[number]), None, ""
        if self.landmarks is not None:
            points = self.landmarks[number]
            if not np.isfinite(points).all():
                error = "found no landmarks; expected five points"
        if isinstance(content, DataError):
            return Row(label, b"", None, where, f"found {content.found}; expected an image")
        return Row(label, content, points, where, error)

    def _check_unchanged(self, number: int, where: str, content: bytes | DataError) -> None:
        assert self.stamps is not None, "only a folder's files were looked at"
        size, changed = self.stamps[number].tolist()
        found = (len(content), changed) if isinstance(content, bytes) else (0, 0)
        local = filesystem.local_path(self.base)
        if local is not None and os.path.exists(where):
            # An object store would answer a second request a file; there the size has to do.
            found = filesystem.file_stamp(where)
        if found != (size, changed):
            raise _changed(where, found, (size, changed))


def _digest(*texts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()

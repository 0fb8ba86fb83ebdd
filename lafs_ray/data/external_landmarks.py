"""A landmark cache from the landmarks of another tool: rows of a table are matched with the records of a set.

Rows may be in any order: they are spooled to a temporary file in the set's order, so memory holds a few bytes for each
record. Letters: N landmarks.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.atomic import DISK_FULL, write_errors
from lafs_ray.data.landmark_cache import STAMP, CacheKey, plan_parts, read_entries, read_entry, write_part, write_stamp
from lafs_ray.data.match_records import Find, record_finder
from lafs_ray.data.packed_set import read_json
from lafs_ray.data.points_table import PointRows, PointsTable
from lafs_ray.data.shard import spread
from lafs_ray.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_EXAMPLES = 5
# Images that are compared with the table's checksums.
_COMPARED = 256
_STORED = np.dtype("<f4")


@dataclass(frozen=True)
class ExternalOptions:
    """Options of an import.

    Args:
        tool: name of the tool; None: from the table's metadata.
        tool_version: its version; None: from the metadata.
        images: folder of the image files that `path` names.
        max_missing: records without landmarks that are tolerated; they get the mean of all others.
    """

    tool: str | None = None
    tool_version: str | None = None
    images: str | None = None
    max_missing: int = 0


@dataclass(frozen=True, eq=False)
class ExternalLandmarks:
    """What a run needs of a cache of external landmarks.

    Args:
        weights: hash of the landmarks, in the place of that of a landmark CNN's weights.
        mean: of all faces, float32 [N, 2] in pixels.
        tool: its name.
        version: of the tool.
    """

    weights: str
    mean: NDArray[np.float32]
    tool: str
    version: str

    @property
    def source(self) -> str:
        """The tool and its version."""
        return f"{self.tool} {self.version}"


def open_external(folder: str) -> ExternalLandmarks:
    """Read the description of a cache of external landmarks.

    Raises:
        DataError: there is none, or it is the cache of a landmark CNN.
    """
    uri = filesystem.join(folder, STAMP)
    content = read_json(uri) if filesystem.exists(uri) else {}
    try:
        mean = np.array(content["mean"], np.float32)
        if mean.ndim != 2 or mean.shape[1] != 2 or not np.isfinite(mean).all():
            raise ValueError
        return ExternalLandmarks(str(content["weights"]), mean, str(content["tool"]), str(content["tool_version"]))
    except (KeyError, TypeError, ValueError):
        raise DataError(
            folder,
            found="the cache of a landmark CNN" if "checkpoint" in content else "no landmarks of another tool",
            expected="a folder that lafs cache-landmarks --from POINTS.parquet has written, as landmarks.weights "
            "names no landmark CNN",
            fix="set landmarks.weights to the checkpoint that was cached" if content else "correct landmarks.cache",
        ) from None


def import_landmarks(
    faces: FaceSet, color_order: ColorOrder, table: PointsTable, folder: str, options: ExternalOptions
) -> tuple[int, int]:
    """Write the landmark cache of a set from a table of points.

    Returns:
        N, and the number of records without landmarks, which have the mean of the others.

    Raises:
        ConfigError: an option is missing.
        DataError: rows are of no record or of one twice, records have no row, values are no pixels, or images differ.
    """
    tool, version = _tool(table, options)
    find = record_finder(faces, table, options.images)
    filesystem.require_writable(folder)
    with write_errors(tempfile.gettempdir(), only=DISK_FULL), tempfile.TemporaryFile() as spool:
        gathered = _gather(faces, table, find, spool)
        missing = int((~gathered.seen).sum())
        if missing > options.max_missing:
            raise _missing(faces, table, gathered.seen, options)
        mean = gathered.total / int(gathered.seen.sum())
        digest = hashlib.blake2b(f"{tool} {version} ".encode() + gathered.digest, digest_size=16).hexdigest()
        key = CacheKey(digest, faces.fingerprint, color_order, len(mean), faces.num_images)
        parts = plan_parts(faces.shard_starts)
        done = read_entries(folder, key, parts)
        for part in parts:
            if part in done:
                continue
            rows = _spooled(spool, part.first, part.stop, len(mean))
            rows[~gathered.seen[part.first : part.stop]] = mean
            write_part(folder, key, part, faces.keys[part.first : part.stop], rows)
            entry = read_entry(folder, key, part)
            assert entry is not None, f"{part.name} was written and cannot be read"
            done[part] = entry
            logger.info("%s of %s records", f"{part.stop:,}", f"{faces.num_images:,}")
    details = {"tool": tool, "tool_version": version, "points": table.uri, "filled_with_mean": missing}
    write_stamp(folder, key, [done[part] for part in parts], {**details, "mean": mean.astype(np.float32).tolist()})
    return len(mean), missing


def _tool(table: PointsTable, options: ExternalOptions) -> tuple[str, str]:
    tool, version = options.tool or table.tool, options.tool_version or table.tool_version
    if not tool or not version:
        raise ConfigError(
            "--tool, --tool-version",
            found=f"{'no name' if not tool else 'no version'} of the tool, neither as an option nor in {table.uri}",
            expected="both: landmarks of another version are other landmarks",
            fix="pass --tool NAME --tool-version VERSION, or write landmarks_tool and landmarks_tool_version into the "
            "file's metadata",
        )
    return tool, version


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Landmarks in the set's order, in the spool; which records have some; their sum and their hash."""

    seen: NDArray[np.bool_]
    total: NDArray[np.float64]
    digest: bytes


def _gather(faces: FaceSet, table: PointsTable, find: Find, spool: IO[bytes]) -> _Gathered:
    seen, listed = np.zeros(faces.num_images, np.bool_), np.zeros(faces.num_images, np.bool_)
    unknown, repeated, compared = _Examples(), _Examples(), _Compared(faces)
    total: Any = 0.0
    has_range = False
    for rows in table.rows():
        numbers = find(rows)
        unknown.add(rows, numbers < 0)
        first_of = np.zeros(len(numbers), np.bool_)
        first_of[np.unique(numbers, return_index=True)[1]] = True
        repeats = (numbers >= 0) & (~first_of | listed[numbers])
        repeated.add(rows, repeats)
        compared.add(rows, numbers)
        used = rows.is_found & (numbers >= 0) & ~repeats
        landmarks = rows.landmarks[used[rows.is_found]]
        seen[numbers[used]] = listed[numbers[numbers >= 0]] = True
        has_range |= bool(len(landmarks)) and float(landmarks.max() - landmarks.min()) > 2
        total = total + landmarks.sum(axis=0, dtype=np.float64)
        _spool(spool, numbers[used], landmarks)
    for examples, what in ((unknown, "of no record of the set"), (repeated, "of a record that an earlier row has")):
        if examples.count:
            raise DataError(
                table.uri,
                found=f"{examples.count} of {table.num_rows} rows are {what}: {', '.join(examples.texts)}",
                expected=f"one row for each of the {faces.num_images} records of this set",
                fix="name the set that the tool read" if examples is unknown else "keep one row of each record",
            )
    if seen.any() and not has_range:
        raise DataError(
            table.uri,
            found="landmarks that all lie within 2 pixels",
            expected="pixels of the aligned face, not shares of the image",
            fix="multiply them by the side of the image in pixels",
        )
    compared.check(table)
    return _Gathered(seen, total, _digest(spool, seen))


class _Examples:
    """Count of rows, and the first of them in words."""

    def __init__(self) -> None:
        self.count = 0
        self.texts: list[str] = []

    def add(self, rows: PointRows, which: NDArray[np.bool_]) -> None:
        self.count += int(which.sum())
        for row in np.flatnonzero(which)[: _EXAMPLES - len(self.texts)].tolist():
            names = ", ".join(f"{n} {rows.names[n][row].as_py()}" for n in rows.names if n != "image_crc32")
            self.texts.append(f"row {rows.first + row} ({names})")


class _Compared:
    """Checksums of images in the table, for a sample of the set."""

    def __init__(self, faces: FaceSet) -> None:
        self._faces = faces
        self._sample = spread(faces.num_images, _COMPARED)
        self._crc = np.full(len(self._sample), -1, np.int64)

    def add(self, rows: PointRows, numbers: NDArray[np.int64]) -> None:
        if "image_crc32" not in rows.names or len(self._sample) == 0:
            return
        places = np.searchsorted(self._sample, numbers).clip(max=len(self._sample) - 1)
        hits = np.flatnonzero(self._sample[places] == numbers)
        values = rows.names["image_crc32"].cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        self._crc[places[hits]] = values[hits]

    def check(self, table: PointsTable) -> None:
        """Raise if images are not those that the tool has read."""
        if "image_crc32" not in table.columns:
            logger.info("%s has no image_crc32: rows are matched by name alone", table.uri)
            return
        known = np.flatnonzero(self._crc >= 0)
        images = self._faces.read(self._sample[known]).images
        differ = [n for n, image in zip(known.tolist(), images, strict=True) if zlib.crc32(image) != self._crc[n]]
        if differ:
            raise DataError(
                table.uri,
                found=f"landmarks of other images: {len(differ)} of {len(known)} compared checksums differ, "
                f"first that of record {self._faces.keys[self._sample[differ[0]]]}",
                expected="landmarks of this set",
                fix="name the set that the tool read, or run the tool on this one",
            )


def _spool(spool: IO[bytes], numbers: NDArray[np.int64], landmarks: NDArray[np.float32]) -> None:
    """Write landmarks to their places; neighbors at once."""
    order = np.argsort(numbers, kind="stable")
    numbers, landmarks = numbers[order], landmarks[order].astype(_STORED)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for rows in np.split(np.arange(len(numbers)), breaks):
        if len(rows):
            spool.seek(int(numbers[rows[0]]) * landmarks[0].nbytes)
            spool.write(landmarks[rows[0] : rows[-1] + 1].tobytes())


def _spooled(spool: IO[bytes], first: int, stop: int, num_landmarks: int) -> NDArray[np.float32]:
    width = num_landmarks * 2 * _STORED.itemsize
    spool.seek(first * width)
    data = spool.read((stop - first) * width).ljust((stop - first) * width, b"\0")
    return np.frombuffer(bytearray(data), _STORED).reshape(stop - first, num_landmarks, 2)


def _digest(spool: IO[bytes], seen: NDArray[np.bool_]) -> bytes:
    """Hash all landmarks in the set's order, and which records have some."""
    digest = hashlib.blake2b(np.packbits(seen).tobytes(), digest_size=16)
    for block in _blocks(spool):
        digest.update(block)
    return digest.digest()


def _blocks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while block := spool.read(8 << 20):
        yield block


def _missing(faces: FaceSet, table: PointsTable, seen: NDArray[np.bool_], options: ExternalOptions) -> DataError:
    without = np.flatnonzero(~seen)
    starts = faces.shard_starts
    texts = []
    for number in without[:_EXAMPLES].tolist():
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        texts.append(f"{filesystem.file_name(faces.shard_uris[shard])}, record {faces.keys[number]}")
    return DataError(
        table.uri,
        found=f"no landmarks for {len(without)} of {faces.num_images} records: {'; '.join(texts)}",
        expected=f"landmarks of every record, or of all but {options.max_missing} (--max-missing)",
        fix=f"run the tool on them, or pass --max-missing {len(without)}: they get the mean of all others",
    )

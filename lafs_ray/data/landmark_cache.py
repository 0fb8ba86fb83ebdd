"""Landmarks of every record of a set, found once and stored beside its shards.

    <folder>/part-00000-of-000NN.parquet    `key`, and `landmarks` in float16, a row a record
    <folder>/landmarks.json                 which set, which weights, which parts; written last

A part holds up to 16,384 neighbors of one shard, in file order, and appears whole or not at all: a
job that was killed continues with the parts that are missing. Its landmarks are one page of plain
numbers, so a row is read by its place, as a record is, without reading the rows around it: memory
does not grow with the set, on disk as on an object store. Letters: B images, N landmarks.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import list_tree
from lafs_ray.data.io.ranged_reads import ByteRanges, read_ranges
from lafs_ray.data.packed_set import as_json, read_json
from lafs_ray.errors import DataError

STAMP = "landmarks.json"
FORMAT, VERSION = "lafs_ray cached landmarks", 1
LANDMARK = np.dtype("<f2")

# A minute's work of one core; 13 MB at 196 landmarks.
PART_ROWS = 16_384
_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class Identity:
    """What cached landmarks are of; all of it has to agree before they are used.

    Args:
        weights: hash of the landmark CNN's weights.
        faces: fingerprint of the set, see `FaceSet.fingerprint`.
        color_order: what the images were taken for.
        num_landmarks: N.
        images: records of the set.
    """

    weights: str
    faces: str
    color_order: ColorOrder
    num_landmarks: int
    images: int

    def differences(self, found: dict[str, Any]) -> list[str]:
        """A line for each value that a stamp has otherwise."""
        named = {
            "weights": "landmark CNN with other weights",
            "faces": "another set of faces",
            "color_order": "another color order",
            "num_landmarks": "another number of landmarks",
            "images": "another number of records",
        }
        return [
            f"{text}: {found.get(key)} -> {mine}"
            for (key, text), mine in zip(named.items(), asdict(self).values(), strict=True)
            if found.get(key) != mine
        ]


@dataclass(frozen=True)
class Part:
    """Some neighboring images of one shard: first…stop-1 of all images of the set."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class PartEntry:
    """A finished part as `landmarks.json` lists it.

    Args:
        name: of the file.
        first: number of its first image.
        rows: images in it.
        size_bytes: of the file.
        values_at: where the landmarks of its first image begin.
        damaged: how many of its rows are NaN, because their records cannot be decoded.
    """

    name: str
    first: int
    rows: int
    size_bytes: int
    values_at: int
    damaged: int


@dataclass(frozen=True, eq=False)
class LandmarkCache:
    """Where the landmarks of every image of a set lie: plain numbers, no open files.

    Args:
        folder: of the parts.
        num_landmarks: N.
        parts: in the order of the images, which they cover without a gap.
    """

    folder: str
    num_landmarks: int
    parts: tuple[PartEntry, ...]

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """Landmarks of these images in the order asked, in pixels; NaN: the record is damaged.

        Args:
            index: image numbers, int64 [B].

        Returns:
            float16 [B, N, 2].

        Raises:
            DataError: a part has vanished or changed since the cache was opened.
        """
        unique, inverse = np.unique(index, return_inverse=True)
        starts = np.array([part.first for part in self.parts])
        numbers = np.searchsorted(starts, unique, side="right") - 1
        ranges = [self._ranges(n, unique[numbers == n]) for n in np.unique(numbers).tolist()]
        rows = np.empty((len(unique), self.num_landmarks, 2), dtype=LANDMARK)
        for row, data in zip(rows, read_ranges(ranges), strict=True):
            row.reshape(-1)[:] = np.frombuffer(data, LANDMARK)
        return rows[inverse.reshape(-1)]

    def _ranges(self, number: int, members: NDArray[np.int64]) -> ByteRanges:
        part, width = self.parts[number], row_bytes(self.num_landmarks)
        offsets = part.values_at + (members - part.first) * width
        sizes = np.full(len(members), width, dtype=np.int64)
        return ByteRanges(filesystem.join(self.folder, part.name), offsets, sizes, part.size_bytes)


def row_bytes(num_landmarks: int) -> int:
    """Bytes of one image's landmarks."""
    return 2 * num_landmarks * LANDMARK.itemsize


def plan_parts(shard_starts: NDArray[np.int64]) -> list[Part]:
    """The parts of a set, in order.

    Args:
        shard_starts: as in `FaceSet`.
    """
    ranges = [
        (first, min(first + PART_ROWS, stop))
        for start, stop in zip(shard_starts[:-1].tolist(), shard_starts[1:].tolist(), strict=True)
        for first in range(start, stop, PART_ROWS)
    ]
    return [
        Part(f"part-{number:05d}-of-{len(ranges):05d}.parquet", *limits)
        for number, limits in enumerate(ranges)
    ]


def write_part(
    folder: str,
    identity: Identity,
    part: Part,
    keys: NDArray[np.int64],
    landmarks: NDArray[np.float32],
) -> None:
    """Write the landmarks of a part's images, whole or not at all.

    Args:
        folder: of the cache.
        identity: what the landmarks are of.
        part: which images.
        keys: of their records, int64 [B].
        landmarks: [B, N, 2] in pixels; NaN where a record is damaged.
    """
    values = landmarks.astype(LANDMARK).reshape(len(keys), -1)
    listed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    damaged = int(np.isnan(values).any(axis=1).sum())
    stamp = {**asdict(identity), "first": part.first, "rows": len(keys), "damaged": damaged}
    schema = pa.schema(
        [
            pa.field("key", pa.int64(), nullable=False),
            pa.field("landmarks", listed.type, nullable=False),
        ],
        metadata={"lafs_ray": json.dumps({"format": FORMAT, "version": VERSION, **stamp})},
    )
    content = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(keys, pa.int64()), listed], schema),
        content,
        row_group_size=len(keys),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=2 * values.nbytes + (1 << 20),
    )
    data = content.getvalue()
    start = _values_at(pq.read_metadata(io.BytesIO(data)), values.nbytes)
    # What readers rely on; another version of Arrow might lay pages out in another way.
    assert data[start : start + values.nbytes] == values.tobytes(), "landmarks are not one page"
    with filesystem.atomic_write(filesystem.join(folder, part.name)) as file:
        file.write(data)


def _values_at(metadata: pq.FileMetaData, num_bytes: int) -> int:
    """Where the numbers of the column `landmarks` begin: they are the end of its only page."""
    column = metadata.row_group(0).column(1)
    return int(column.data_page_offset + column.total_compressed_size - num_bytes)


def read_entry(folder: str, identity: Identity, part: Part) -> PartEntry | None:
    """A part that is there already; None where its file is damaged.

    Raises:
        DataError: it is of another set or other weights.
    """
    uri = filesystem.join(folder, part.name)
    width = row_bytes(identity.num_landmarks)
    try:
        with filesystem.open_input(uri) as file:
            size, metadata = file.size(), pq.read_metadata(file)
        stamp = json.loads(metadata.metadata[b"lafs_ray"])
        rows = metadata.num_rows
        start = _values_at(metadata, rows * width)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, IndexError):
        return None
    _refuse_others(uri, identity, stamp)
    if (stamp.get("first"), rows) != (part.first, part.stop - part.first) or start < 0:
        return None
    return PartEntry(part.name, part.first, rows, size, start, int(stamp["damaged"]))


def read_entries(folder: str, identity: Identity, parts: list[Part]) -> dict[Part, PartEntry]:
    """The parts that are finished.

    Raises:
        DataError: one is of another set or other weights.
    """
    present = set(filesystem.list_names(folder))
    there = [part for part in parts if part.name in present]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        entries = pool.map(lambda part: read_entry(folder, identity, part), there)
        return {p: entry for p, entry in zip(there, entries, strict=True) if entry is not None}


def write_stamp(
    folder: str, identity: Identity, entries: list[PartEntry], details: dict[str, str]
) -> None:
    """Declare a cache finished.

    Args:
        folder: of the cache.
        identity: what it is of.
        entries: all its parts.
        details: what else people may want to know, such as the checkpoint's path.
    """
    content = {"format": FORMAT, "version": VERSION, **asdict(identity), **details}
    content["parts"] = [asdict(entry) for entry in entries]
    with filesystem.atomic_write(filesystem.join(folder, STAMP)) as file:
        file.write(as_json(content))


def open_landmarks(folder: str, identity: Identity, command: str) -> LandmarkCache:
    """Open the cached landmarks of a set.

    Args:
        folder: of the cache.
        identity: what they have to be of.
        command: what makes them, for messages.

    Raises:
        DataError: they are missing, not finished, of another set, weights or color order; a part
            is missing or was cut short, or images are not covered.
    """
    uri = filesystem.join(folder, STAMP)
    if not filesystem.exists(uri):
        started = any(name.startswith("part-") for name in filesystem.list_names(folder))
        raise DataError(
            folder,
            found="cached landmarks that are not finished" if started else "no cached landmarks",
            expected=f"{STAMP} and the parts that it lists",
            fix=f"run {command}" + (", which continues where it stopped" if started else ""),
        )
    content = read_json(uri)
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise _bad_stamp(uri, "another format or version", command)
    other = f"{folder.rstrip('/')}-2"
    fill = f"run {command.partition(' --out ')[0]} --out {other}"
    _refuse_others(uri, identity, content, f"{fill} and set landmarks.cache={other}")
    try:
        entries = tuple(PartEntry(**entry) for entry in content["parts"])
        covered = [(entry.first, entry.first + entry.rows) for entry in entries]
    except (TypeError, KeyError) as error:
        raise _bad_stamp(uri, f"keys that are missing or too many ({error})", command) from error
    stops = [0, *(stop for _, stop in covered)]
    if [first for first, _ in covered] != stops[:-1] or stops[-1] != identity.images:
        raise _bad_stamp(uri, f"parts that do not cover {identity.images} records", command)
    _check_files(folder, entries, command)
    return LandmarkCache(filesystem.absolute(folder), identity.num_landmarks, entries)


def _check_files(folder: str, entries: tuple[PartEntry, ...], command: str) -> None:
    sizes = {name: size for name, size, _ in list_tree(folder)}
    for entry in entries:
        if sizes.get(entry.name) != entry.size_bytes:
            size = sizes.get(entry.name)
            raise DataError(
                filesystem.join(folder, entry.name),
                found="no such file" if size is None else f"{size} bytes",
                expected=f"{entry.size_bytes} bytes, as {STAMP} says",
                fix=f"copy the file again, or delete {STAMP} and run {command}",
            )


def _refuse_others(
    uri: str, identity: Identity, found: dict[str, Any], fix: str = "name another --out"
) -> None:
    """Refuse a stamp that is of something else."""
    differences = identity.differences(found)
    if differences:
        raise DataError(
            uri,
            found="\n    ".join(["landmarks of something else (there -> here):", *differences]),
            expected="landmarks of these faces by this landmark CNN",
            fix=fix,
        )


def _bad_stamp(uri: str, found: str, command: str) -> DataError:
    return DataError(
        uri,
        found=found,
        expected=f"the stamp of a cache, version {VERSION}",
        fix=f"delete it and run {command}",
    )

"""Cache of the landmarks of every record of a set.

    <folder>/part-00000-of-000NN.safetensors    `keys` int64 [B], `checksums` uint32 [B] (CRC-32 of the rows of
                                                `landmarks`), `landmarks` float16 [B, N, 2]
    <folder>/landmarks.json                     set, weights and parts; written last

A part holds up to 16,384 consecutive records of one shard, in file order, and is written atomically: a killed job
continues with the missing parts. Rows are read with ranged reads, as records are, so memory does not grow with the set.
Letters: B images, N landmarks.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from safetensors.numpy import save

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.listing import list_tree
from lafs_ray.data.io.reading import ByteRanges, read_ranges
from lafs_ray.data.packed_set import as_json, read_json
from lafs_ray.errors import DataError

STAMP = "landmarks.json"
FORMAT, VERSION = "lafs_ray cached landmarks", 2
LANDMARK = np.dtype("<f2")

# A minute of one core; 13 MB at 196 landmarks.
PART_ROWS = 16_384
_CONCURRENT_FILES = 16
_DAMAGE = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True)
class CacheKey:
    """What cached landmarks are of; all values must match before they are used.

    Args:
        weights: hash of the landmark CNN's weights.
        faces: fingerprint of the set, see `FaceSet.fingerprint`.
        color_order: that the images were decoded with.
        num_landmarks: N.
        images: records of the set.
    """

    weights: str
    faces: str
    color_order: ColorOrder
    num_landmarks: int
    images: int

    def differences(self, found: dict[str, Any]) -> list[str]:
        """Return a line for each value of a stamp that differs."""
        names = {
            "weights": "landmark CNN with other weights",
            "faces": "another set of faces",
            "color_order": "another color order",
            "num_landmarks": "another number of landmarks",
            "images": "another number of records",
        }
        return [
            f"{text}: {found.get(key)} -> {mine}"
            for (key, text), mine in zip(names.items(), asdict(self).values(), strict=True)
            if found.get(key) != mine
        ]


@dataclass(frozen=True)
class Part:
    """Consecutive images of one shard: first…stop-1 of all images of the set."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class PartEntry:
    """A complete part, as listed in `landmarks.json`.

    Args:
        name: of the file.
        first: number of its first image.
        rows: images in it.
        size_bytes: of the file.
        landmarks_offset: byte offset of the landmarks in the file.
        damaged: rows that are NaN, because their records cannot be decoded.
    """

    name: str
    first: int
    rows: int
    size_bytes: int
    landmarks_offset: int
    damaged: int

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, eq=False)
class LandmarkCache:
    """Index of the cached landmarks of a set, without open files.

    Args:
        folder: of the parts.
        num_landmarks: N.
        parts: in the order of the images, all of which they cover.
        checksums: CRC-32 of each image's landmarks, uint32 [images of the set].
    """

    folder: str
    num_landmarks: int
    parts: tuple[PartEntry, ...]
    checksums: NDArray[np.uint32]

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """Read the landmarks of images int64 [B], in this order: float16 [B, N, 2] in pixels; NaN: a damaged record.

        Raises:
            DataError: a part is missing or has changed since the cache was opened, or bytes have changed on the disk.
        """
        unique, inverse = np.unique(index, return_inverse=True)
        starts = np.array([part.first for part in self.parts])
        numbers = np.searchsorted(starts, unique, side="right") - 1
        ranges = [self._ranges(n, unique[numbers == n]) for n in np.unique(numbers).tolist()]
        rows = np.empty((len(unique), self.num_landmarks, 2), dtype=LANDMARK)
        for row, data in zip(rows, read_ranges(ranges), strict=True):
            row.reshape(-1)[:] = np.frombuffer(data, LANDMARK)
        for image, number, row in zip(unique.tolist(), numbers.tolist(), rows, strict=True):
            if zlib.crc32(row.data) != self.checksums[image]:
                uri = filesystem.join(self.folder, self.parts[number].name)
                raise _damaged(uri, f"landmarks of record {image} that do not match their checksum")
        return rows[inverse.reshape(-1)]

    def _ranges(self, number: int, members: NDArray[np.int64]) -> ByteRanges:
        part, width = self.parts[number], row_bytes(self.num_landmarks)
        offsets = part.landmarks_offset + (members - part.first) * width
        sizes = np.full(len(members), width, dtype=np.int64)
        return ByteRanges(filesystem.join(self.folder, part.name), offsets, sizes, part.size_bytes)


def row_bytes(num_landmarks: int) -> int:
    """Return the size in bytes of one image's landmarks."""
    return 2 * num_landmarks * LANDMARK.itemsize


def plan_parts(shard_starts: NDArray[np.int64]) -> list[Part]:
    """Split the images of a set into parts; `shard_starts` as in `FaceSet`."""
    ranges = [
        (first, min(first + PART_ROWS, stop))
        for start, stop in zip(shard_starts[:-1].tolist(), shard_starts[1:].tolist(), strict=True)
        for first in range(start, stop, PART_ROWS)
    ]
    return [
        Part(f"part-{number:05d}-of-{len(ranges):05d}.safetensors", *limits) for number, limits in enumerate(ranges)
    ]


def write_part(
    folder: str, cache_key: CacheKey, part: Part, keys: NDArray[np.int64], landmarks: NDArray[np.float32]
) -> None:
    """Write the landmarks of a part's images, atomically.

    Args:
        folder: of the cache.
        cache_key: what the landmarks are of.
        part: which images.
        keys: of their records, int64 [B].
        landmarks: [B, N, 2] in pixels; NaN where a record is damaged.
    """
    damaged = int(np.isnan(landmarks).any(axis=(1, 2)).sum())
    stamp = {**asdict(cache_key), "first": part.first, "rows": len(keys), "damaged": damaged}
    rows = np.ascontiguousarray(landmarks, LANDMARK)
    checksums = np.array([zlib.crc32(row.data) for row in rows], np.uint32)
    tensors: dict[str, NDArray[Any]] = {"keys": keys, "checksums": checksums, "landmarks": rows}
    # Safetensors orders tensors by the size of their numbers: keys, checksums, landmarks.
    checksum = _checksum(stamp, keys.tobytes() + checksums.tobytes())
    with filesystem.atomic_write(filesystem.join(folder, part.name)) as file:
        file.write(save(tensors, {"lafs_ray": json.dumps({**stamp, "checksum": checksum})}))


def _checksum(stamp: dict[str, Any], index: bytes) -> str:
    return hashlib.blake2b(json.dumps(stamp).encode() + index, digest_size=16).hexdigest()


def _read_index(uri: str) -> tuple[dict[str, Any], int, int, NDArray[np.uint32]]:
    """Return stamp, offset of the landmarks, size and row checksums of a part, all of which its checksum covers.

    Raises:
        KeyError, TypeError, ValueError, RecursionError: the part is damaged or truncated.
    """
    with reading.open_input(uri) as file:
        size = file.size()
        begin = 8 + int.from_bytes(file.read_at(8, 0), "little")
        header = json.loads(bytes(file.read_at(min(begin, size), 8))[: begin - 8])
        start, stop = (begin + offset for offset in header["landmarks"]["data_offsets"])
        if not begin <= start <= stop == size:
            raise ValueError("another size than in the header")
        index = bytes(file.read_at(start - begin, begin))
    stamp: dict[str, Any] = json.loads(header["__metadata__"]["lafs_ray"])
    if stamp.pop("checksum") != _checksum(stamp, index):
        raise ValueError("header, keys or checksums that do not match their own checksum")
    return stamp, start, size, np.frombuffer(index, "<u4", stamp["rows"], 8 * stamp["rows"])


def read_entry(folder: str, cache_key: CacheKey, part: Part) -> PartEntry | None:
    """Read an existing part and compare its checksums; None: it is damaged or truncated.

    Raises:
        DataError: it is of another set or other weights.
    """
    uri = filesystem.join(folder, part.name)
    rows, width = part.stop - part.first, row_bytes(cache_key.num_landmarks)
    try:
        stamp, start, size, checksums = _read_index(uri)
    except _DAMAGE:
        return None
    _check_key(uri, cache_key, stamp)
    if (stamp["first"], stamp["rows"], size - start) != (part.first, rows, rows * width):
        return None
    with reading.open_input(uri) as file:
        data = memoryview(file.read_at(rows * width, start))
    if [zlib.crc32(data[row * width : (row + 1) * width]) for row in range(rows)] != checksums.tolist():
        return None
    return PartEntry(part.name, part.first, rows, size, start, stamp["damaged"])


def read_entries(folder: str, cache_key: CacheKey, parts: list[Part]) -> dict[Part, PartEntry]:
    """Read the complete parts and compare their checksums.

    Raises:
        DataError: one is of another set or other weights.
    """
    present = set(filesystem.list_names(folder))
    existing = [part for part in parts if part.name in present]
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        entries = pool.map(lambda part: read_entry(folder, cache_key, part), existing)
        return {p: entry for p, entry in zip(existing, entries, strict=True) if entry is not None}


def write_stamp(folder: str, cache_key: CacheKey, entries: list[PartEntry], details: dict[str, Any]) -> None:
    """Mark a cache with all these parts as complete; `details` are for readers, such as the checkpoint's path."""
    content = {"format": FORMAT, "version": VERSION, **asdict(cache_key), **details}
    content["parts"] = [asdict(entry) for entry in entries]
    with filesystem.atomic_write(filesystem.join(folder, STAMP)) as file:
        file.write(as_json(content))


def cached_weights(folder: str) -> str:
    """Return the hash of the landmark CNN whose landmarks are cached, or of another tool's landmarks; empty: none."""
    uri = filesystem.join(folder, STAMP)
    return str(read_json(uri).get("weights", "")) if filesystem.exists(uri) else ""


def open_landmarks(folder: str, cache_key: CacheKey, command: str) -> LandmarkCache:
    """Open the cached landmarks of a set.

    Args:
        folder: of the cache.
        cache_key: what they must be of.
        command: to create them, for messages.

    Raises:
        DataError: they are missing, incomplete, or of another set, weights or color order; a part is missing, truncated
            or damaged, or images are not covered. Rows are compared with their checksums when they are read.
    """
    uri = filesystem.join(folder, STAMP)
    if not filesystem.exists(uri):
        started = any(name.startswith("part-") for name in filesystem.list_names(folder))
        raise DataError(
            folder,
            found="incomplete cached landmarks" if started else "no cached landmarks",
            expected=f"{STAMP} and the parts that it lists",
            fix=f"run {command}" + (", which continues with the missing parts" if started else ""),
        )
    content = read_json(uri)
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise _bad_stamp(uri, "another format or version", command)
    other = f"{folder.rstrip('/')}-2"
    fill = f"run {command.partition(' --out ')[0]} --out {other}"
    _check_key(uri, cache_key, content, f"{fill} and set landmarks.cache={other}")
    try:
        entries = TypeAdapter(tuple[PartEntry, ...]).validate_json(json.dumps(content.get("parts")))
    except ValueError as error:
        raise _bad_stamp(uri, "parts with " + " ".join(str(error).split())[:200], command) from None
    covered = [(entry.first, entry.first + entry.rows) for entry in entries]
    stops = [0, *(stop for _, stop in covered)]
    if [first for first, _ in covered] != stops[:-1] or stops[-1] != cache_key.images:
        raise _bad_stamp(uri, f"parts that do not cover {cache_key.images} records", command)
    _check_files(folder, entries, command)
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        checksums = list(pool.map(lambda entry: _read_checksums(folder, entry), entries))
    return LandmarkCache(filesystem.absolute(folder), cache_key.num_landmarks, entries, np.concatenate(checksums))


def _read_checksums(folder: str, entry: PartEntry) -> NDArray[np.uint32]:
    """Return the row checksums of a part that matches its entry in the stamp."""
    uri = filesystem.join(folder, entry.name)
    try:
        stamp, start, size, checksums = _read_index(uri)
    except _DAMAGE as error:
        raise _damaged(uri, f"a part with a damaged header or index: {type(error).__name__} {error}"[:200]) from None
    if PartEntry(entry.name, stamp["first"], stamp["rows"], size, start, stamp["damaged"]) != entry:
        raise _damaged(uri, f"another part than {STAMP} lists")
    return checksums


def _check_files(folder: str, entries: tuple[PartEntry, ...], command: str) -> None:
    sizes = {name: size for name, size, _ in list_tree(folder)}
    for entry in entries:
        if sizes.get(entry.name) != entry.size_bytes:
            size = sizes.get(entry.name)
            raise DataError(
                filesystem.join(folder, entry.name),
                found="no such file" if size is None else f"{size} bytes",
                expected=f"{entry.size_bytes} bytes, according to {STAMP}",
                fix=f"copy the file again, or delete {STAMP} and run {command}",
            )


def _check_key(uri: str, cache_key: CacheKey, found: dict[str, Any], fix: str = "choose another --out") -> None:
    """Raise if a stamp is of other landmarks."""
    differences = cache_key.differences(found)
    if differences:
        raise DataError(
            uri,
            found="\n    ".join(["other landmarks (cached -> needed):", *differences]),
            expected="landmarks of these faces by this landmark CNN",
            fix=fix,
        )


def _damaged(uri: str, found: str) -> DataError:
    fix = f"copy the file again; or delete it and {STAMP}, and run `lafs cache-landmarks` again"
    return DataError(uri, found=found, expected="the landmarks as they were written", fix=fix)


def _bad_stamp(uri: str, found: str, command: str) -> DataError:
    return DataError(
        uri, found=found, expected=f"the stamp of a cache, version {VERSION}", fix=f"delete it and run {command}"
    )

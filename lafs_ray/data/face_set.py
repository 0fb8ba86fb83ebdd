"""A face set: one or more `.rec`, `.tar` or Parquet files, their index read once, images read by number.

A `FaceSet` holds arrays and no open files, 24 bytes per image, so the processes of a node share one copy in Ray's
object store. A damaged record is an error in its row and never raises: the caller decides how many are too many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.reading import ByteRanges
from lafs_ray.data.label_numbers import LabelNumbers
from lafs_ray.data.landmark_cache import LandmarkCache
from lafs_ray.data.mirror_order import MirrorOrder
from lafs_ray.data.packed_set import PackedLabels
from lafs_ray.data.record_reader import ShardReads, read_shards
from lafs_ray.data.set_kinds import open_shards
from lafs_ray.data.set_sample import require_size, sample_images
from lafs_ray.data.shard import Identities, spread
from lafs_ray.data.shard_layout import Layout, ShardLabels

_SAMPLED_IDENTITIES = 64
_ROWS_PER_READ = 4096
_SIZED_IMAGES = 16


@dataclass(frozen=True, eq=False)
class FaceRows:
    """Records of a face set in the order of the requested image numbers, as columns.

    Args:
        shard: number of the file, int32 [n].
        key: the record's key, int64 [n]; in a `.tar` or Parquet file its number there.
        label: the record's first label, int64 [n]; -1: damaged, or no integer ≥ 0.
        images: encoded image (JPEG or PNG) of each row; empty where the record is damaged.
        errors: why the record cannot be used; empty for a sound one.
        landmarks: cached ones in pixels, float16 [n, N, 2], or [n, 2, N, 2] with a `mirror_order`; None without a
            `LandmarkCache`.
    """

    shard: NDArray[np.int32]
    key: NDArray[np.int64]
    label: NDArray[np.int64]
    images: list[bytes]
    errors: list[str]
    landmarks: NDArray[np.float16] | None = None


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Index of all images of a set, numbered shard by shard in file order.

    Args:
        shard_uris: the files.
        shard_sizes: their sizes in bytes.
        shard_starts: number of each shard's first image, then num_images; int64 [shards + 1].
        offsets: byte offset of each record in its file, or number of its row, int64 [num_images].
        sizes: bytes of each record with framing and padding, int64 [num_images]; of a row the mean in its row group.
        keys: of each record in its file, int64 [num_images].
        identities: label table of each shard; None for a plain `.rec` outside a packed set.
        fingerprint: hash of file names, sizes and index; two equal ones are the same set.
        shard_versions: ETag of each object; empty strings on a disk.
        color_order: of the images, from the manifest of a packed set; None: not known.
        landmarks: cached landmarks of every image; None: not used.
        label_numbers: of each shard, what labels are numbered as; empty: labels are those of the records.
        mirror_order: of the cached landmarks, which are then read with those of the mirror images.
        landmark_rows: number of each image there, int64 [num_images]; None: its own, as of a whole set.
        layouts: of each shard; empty: all are `.rec`.
    """

    shard_uris: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard_starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.int64]
    identities: tuple[Identities | PackedLabels | ShardLabels | None, ...]
    fingerprint: str
    shard_versions: tuple[str, ...]
    color_order: ColorOrder | None = None
    landmarks: LandmarkCache | None = None
    label_numbers: tuple[LabelNumbers, ...] = ()
    mirror_order: MirrorOrder | None = None
    landmark_rows: NDArray[np.int64] | None = None
    layouts: tuple[Layout | None, ...] = ()

    @property
    def num_images(self) -> int:
        """Images in all shards."""
        return len(self.keys)

    @property
    def num_identities(self) -> int | None:
        """Number of different identities in all shards; None if a shard does not list them.

        Shards of one set share its labels, so an identity in two shards counts once.
        """
        # All shards of a packed set list the same labels: count them once.
        tables: dict[object, NDArray[np.int64]] = {}
        for table in self.identities:
            if table is None or (isinstance(table, ShardLabels) and not len(table.listed)):
                return None
            same = table.uri if isinstance(table, PackedLabels) else getattr(table, "of_set", table)
            if same not in tables:
                tables[same] = table.listed
        listed = list(tables.values())
        return len(listed[0]) if len(listed) == 1 else len(np.unique(np.concatenate(listed)))

    def read(self, index: NDArray[np.int64]) -> FaceRows:
        """Read the records of these images, in this order; repeats are read once.

        Args:
            index: image numbers in 0 … num_images-1, int64 [n].

        Raises:
            DataError: a file is missing, or has changed since the set was opened.
        """
        assert len(index) == 0 or 0 <= index.min() <= index.max() < self.num_images, "image number"
        landmarks = None
        if self.landmarks is not None:
            landmarks = self.landmarks.read(index if self.landmark_rows is None else self.landmark_rows[index])
            if self.mirror_order is not None:
                landmarks = self.mirror_order.with_mirrored(landmarks)
        unique, inverse = np.unique(index, return_inverse=True)
        shards = np.searchsorted(self.shard_starts, unique, side="right") - 1
        parsed = read_shards([self._reads(n, unique[shards == n]) for n in np.unique(shards).tolist()])
        rows = [parsed[i] for i in inverse.tolist()]
        return FaceRows(
            shard=shards[inverse].astype(np.int32),
            key=self.keys[index],
            label=self._numbered(np.array([label for label, _, _ in rows], dtype=np.int64), shards[inverse]),
            images=[image for _, image, _ in rows],
            errors=[error for _, _, error in rows],
            landmarks=landmarks,
        )

    def _numbered(self, labels: NDArray[np.int64], shards: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return labels of records in these shards as `label_numbers` has them."""
        if not self.label_numbers:
            return labels
        numbers: NDArray[np.int64] = labels.copy()
        for shard in np.unique(shards).tolist():
            members = shards == shard
            numbers[members] = self.label_numbers[shard].of(labels[members])
        return numbers

    def subset(self, index: NDArray[np.int64]) -> FaceSet:
        """Return the set of these images alone, renumbered; identities stay those of the full set.

        Args:
            index: image numbers, ascending, int64 [n].
        """
        assert len(index) == 0 or (np.diff(index) > 0).all(), "image numbers ascend"
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(index).data)
        return replace(
            self,
            shard_starts=np.searchsorted(index, self.shard_starts).astype(np.int64),
            offsets=self.offsets[index],
            sizes=self.sizes[index],
            keys=self.keys[index],
            fingerprint=digest.hexdigest(),
            landmark_rows=index if self.landmark_rows is None else self.landmark_rows[index],
        )

    def _reads(self, shard: int, members: NDArray[np.int64]) -> ShardReads:
        ranges = ByteRanges(
            self.shard_uris[shard],
            self.offsets[members],
            self.sizes[members],
            self.shard_sizes[shard],
            self.shard_versions[shard],
        )
        labels = self.identities[shard]
        known = labels if isinstance(labels, ShardLabels) else None
        return ShardReads(ranges, self.keys[members], self.layout_of(shard), known)

    def layout_of(self, shard: int) -> Layout | None:
        """Return how a shard stores images; None: RecordIO."""
        return self.layouts[shard] if self.layouts else None

    def labels(self) -> NDArray[np.int64]:
        """Return the label of every image, int64 [num_images]; -1 as in `FaceRows.label`.

        They come from identity records, or a packed set's `labels.npy`, if the records of 64 images per shard agree.
        Otherwise, and in a plain file, all are read, as are those near ends of ranges that are rounded. Those of `.tar`
        and Parquet shards are known.
        """
        columns = []
        if self.label_numbers:
            counts = np.diff(self.shard_starts)
            shards = np.repeat(np.arange(len(counts)), counts)
            return self._numbered(replace(self, label_numbers=()).labels(), shards)
        for shard, table in enumerate(self.identities):
            first, stop = self.shard_starts[shard : shard + 2].tolist()
            if isinstance(table, ShardLabels):
                columns.append(table.labels(self.keys[first:stop]))
                continue
            if table is not None:
                labels = self._table_labels(table, first, stop)
                sample = spread(stop - first, _SAMPLED_IDENTITIES)
                if np.array_equal(self.read(first + sample).label, labels[sample]):
                    columns.append(labels)
                    continue
            columns.append(self._read_labels(np.arange(first, stop)))
        return np.concatenate(columns)

    @property
    def label_names(self) -> Sequence[str] | None:
        """Names of the labels 0…num_identities-1 of `.tar` or Parquet shards; None: labels are numbers there."""
        table = self.identities[0]
        return table.of_set.names if isinstance(table, ShardLabels) else None

    @property
    def label_place(self) -> str:
        """Where labels are looked for, for messages."""
        table = self.identities[0]
        return table.of_set.place if isinstance(table, ShardLabels) else "the label of each record"

    def sample(self, most: int) -> NDArray[np.int64]:
        """Return up to `most` image numbers, evenly spaced; those in Parquet files from few row groups."""
        return sample_images(self.shard_starts, self.offsets, self.layouts, most)

    def _table_labels(self, table: Identities | PackedLabels, first: int, stop: int) -> NDArray[np.int64]:
        """Return the labels that a shard's table gives to its images, int64 [stop - first]."""
        keys = self.keys[first:stop]
        labels = table.labels(keys)
        if isinstance(table, Identities) and len(uncertain := np.flatnonzero(table.uncertain(keys))):
            labels[uncertain] = self._read_labels(first + uncertain)
        return labels

    def _read_labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read the labels of these images from their records, int64 [n]."""
        parts = range(0, len(index), _ROWS_PER_READ)
        labels = [self.read(index[begin : begin + _ROWS_PER_READ]).label for begin in parts]
        return np.concatenate(labels) if labels else np.empty(0, np.int64)


def open_faces(path: str, color_order: ColorOrder | None = None, image_size: int | None = None) -> FaceSet:
    """Open a set: a file (`.rec`, `.tar`, `.parquet`), a folder of them, or a pattern such as `s3://bucket/set/*.rec`.

    Reads the indexes, and a few records of each file to check that index and file match; a file without index is
    scanned.

    Args:
        path: where the set is.
        color_order: expected one; None: not checked.
        image_size: expected side in pixels; None: not checked.

    Raises:
        DataError: nothing is there; a file is empty, truncated or not of its kind; file, index and the counts in
            insightface's header, or in a packed set's manifest, contradict each other; or the manifest has the other
            color order or another size.
    """
    opened = open_shards(path, color_order, image_size)
    shards = opened.shards
    counts = [len(shard.keys) for shard in shards]
    digest = hashlib.blake2b(digest_size=16)
    for shard, labels in zip(shards, opened.labels, strict=True):
        name = filesystem.file_name(shard.uri)
        digest.update(f"{name} {shard.size_bytes} {len(shard.keys)}\n".encode())
        columns = [
            shard.offsets,
            shard.sizes,
            shard.keys,
            *([labels.of_key] if isinstance(labels, ShardLabels) else []),
        ]
        for column in columns:
            digest.update(np.ascontiguousarray(column).data)
    layouts = tuple(shard.layout for shard in shards)
    faces = FaceSet(
        shard_uris=tuple(shard.uri for shard in shards),
        shard_sizes=tuple(shard.size_bytes for shard in shards),
        shard_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        offsets=_concatenate([shard.offsets for shard in shards]),
        sizes=_concatenate([shard.sizes for shard in shards]),
        keys=_concatenate([shard.keys for shard in shards]),
        identities=opened.labels,
        fingerprint=digest.hexdigest(),
        color_order=opened.color_order,
        shard_versions=tuple(shard.version for shard in shards),
        layouts=layouts if any(layouts) else (),
    )
    if image_size and faces.layouts:
        require_size(path, faces.read(faces.sample(_SIZED_IMAGES)).images, image_size)
    return faces


def _concatenate(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)

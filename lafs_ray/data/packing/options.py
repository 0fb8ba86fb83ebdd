"""Options of a packing, their validation, and the plan made from them.

Memory: a task of pass 1 collects a sorted run, a task of pass 2 a block of a shard; each may take a
third of `memory_bytes / workers`. In addition: the program itself (about 300 MB per process), the index of the sources
(24 bytes per record of a `.rec`, about 50 per image file) and, in pass 2, 150 bytes per record of a shard.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.bad_records import MaxBad
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.data.packing.exclusion import exclude_records
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.data.packing.sources import ImageSource
from lafs_ray.errors import DataError

MIN_WORKER_BYTES = 32 << 20


@dataclass(frozen=True)
class PackOptions:
    """Options of a packing.

    Args:
        sources: paths or URIs.
        out: folder of the packed set.
        num_shards: None: derived from `shard_bytes`.
        shard_bytes: approximate size of a shard.
        seed: of the shuffled order.
        color_order: of the sources.
        landmarks: list of landmarks for a folder of images.
        exclude: list of records to leave out; None: none.
        rules: required image size, and allowed conversions.
        max_bad: bad records that may be left out.
        memory_bytes: for the images in memory, all workers together.
        workers: concurrent tasks; 0: in this process.
        scratch: folder for temporary files; None: in the folder of the set.
    """

    sources: tuple[str, ...]
    out: str
    num_shards: int | None = None
    shard_bytes: int = 1 << 30
    seed: int = 0
    color_order: ColorOrder = "rgb"
    landmarks: str | None = None
    exclude: str | None = None
    rules: ImageRules = field(default_factory=ImageRules)
    max_bad: MaxBad = field(default_factory=MaxBad)
    memory_bytes: int = 2 << 30
    workers: int = 0
    scratch: str | None = None

    @property
    def task_bytes(self) -> int:
        """Memory for the images of one task."""
        return self.memory_bytes // max(self.workers, 1) // 3


@dataclass(frozen=True, eq=False)
class PackPlan:
    """What both passes read.

    Args:
        options: as validated.
        out: absolute path or URI of the packed set.
        sources: in the order of their records.
        starts: number of each source's first record, then of all records; int64 [sources + 1].
        size_bytes: of all images.
        num_shards: of the packed set.
        request: everything that determines the bytes of the set, as JSON content.
    """

    options: PackOptions
    out: str
    sources: tuple[ImageSource, ...]
    starts: NDArray[np.int64]
    size_bytes: int
    num_shards: int
    request: dict[str, Any]

    @property
    def max_bad(self) -> int:
        """Bad records that may be left out."""
        return self.options.max_bad.of(self.num_records)

    @property
    def num_records(self) -> int:
        """Records in all sources."""
        return int(self.starts[-1])

    @property
    def shard_starts(self) -> NDArray[np.int64]:
        """First position of each shard, then `num_records`; int64 [num_shards + 1]."""
        return np.arange(self.num_shards + 1, dtype=np.int64) * self.num_records // self.num_shards

    @property
    def scratch(self) -> str:
        """Folder for temporary files."""
        return self.scratch_of(self.request)

    def scratch_of(self, request: dict[str, Any]) -> str:
        """Return the folder for temporary files of a request on the same output folder."""
        if self.options.scratch is None:
            return filesystem.join(self.out, "scratch")
        # Other packings may use the same scratch folder.
        digest = hashlib.blake2b((self.out + json.dumps(request)).encode(), digest_size=6)
        return filesystem.join(filesystem.absolute(self.options.scratch), f"pack-{digest.hexdigest()}")


def make_plan(options: PackOptions, sources: tuple[ImageSource, ...] | None = None) -> PackPlan:
    """Validate the options and open the sources, unless they are given.

    Raises:
        DataError: an option is out of range or contradicts another; a source is missing, unreadable or given twice; the
            set would lie inside it.
    """
    check_options(options)
    out = filesystem.absolute(options.out)
    if sources is None:
        sources = tuple(open_source(path, options.landmarks) for path in options.sources)
    _check_sources(options, sources)
    if options.exclude is not None:
        sources = exclude_records(sources, options.exclude)
    starts = np.cumsum([0, *(source.num_records for source in sources)]).astype(np.int64)
    size_bytes = sum(source.size_bytes for source in sources)
    num_shards = options.num_shards or max(math.ceil(size_bytes / options.shard_bytes), 1)
    if num_shards > starts[-1]:
        found = f"{num_shards} shards for {starts[-1]} images"
        expected = "at least one image per shard"
        raise DataError("--shards", found=found, expected=expected, fix="reduce --shards")
    request = {
        "sources": [
            {
                "uri": source.uri,
                "kind": source.kind,
                "images": source.num_records,
                "size_bytes": source.size_bytes,
                "fingerprint": source.fingerprint,
                "aligned_by_landmarks": source.has_landmarks,
            }
            for source in sources
        ],
        "seed": options.seed,
        "num_shards": num_shards,
        "color_order": options.color_order,
        "images": asdict(options.rules),
    }
    return PackPlan(options, out, sources, starts, size_bytes, num_shards, request)


def check_options(options: PackOptions) -> None:
    """Check what can be checked without opening the sources.

    Raises:
        DataError: an option is out of range; the set would lie inside a source.
    """
    _check_ranges(options)
    _check_out(options, filesystem.absolute(options.out))


def _check_ranges(options: PackOptions) -> None:
    limits = [
        ("--seed", options.seed, 0, 2**63 - 1),
        ("--shards", 1 if options.num_shards is None else options.num_shards, 1, 99_999),
        ("--shard-size", options.shard_bytes, 1 << 10, 1 << 50),
        ("--size", options.rules.size, 1, 10_000),
        ("--quality", options.rules.quality, 1, 100),
        ("--workers", options.workers, 0, 10_000),
        ("--memory", options.memory_bytes, max(options.workers, 1) * MIN_WORKER_BYTES, 1 << 60),
    ]
    for name, value, low, high in limits:
        if not low <= value <= high:
            expected = f"{low} to {high}"
            if name == "--memory":
                expected = f"at least {low}: {MIN_WORKER_BYTES} bytes per worker"
            raise DataError(name, found=str(value), expected=expected, fix=f"change {name}")


def _check_out(options: PackOptions, out: str) -> None:
    for path in options.sources:
        source = filesystem.absolute(path)
        inside = (out.rstrip("/") + "/").startswith(source.rstrip("/") + "/")
        if inside and filesystem.is_folder(source):
            raise DataError(
                options.out,
                found=f"a path inside the source {path}",
                expected="a folder outside the sources",
                fix="choose another folder for the set",
            )


def _check_sources(options: PackOptions, sources: Sequence[ImageSource]) -> None:
    uris = [source.uri for source in sources]
    for path, uri in zip(options.sources, uris, strict=True):
        if uris.count(uri) > 1:
            raise DataError(
                path,
                found="the same source twice",
                expected="each source once: otherwise each identity gets two labels",
                fix="remove the duplicate",
            )
    if options.rules.size != 112 and any(source.has_landmarks for source in sources):
        found = f"{options.rules.size} with landmarks"
        expected = "112, the size that faces are aligned to"
        raise DataError("--size", found=found, expected=expected, fix="remove --size")

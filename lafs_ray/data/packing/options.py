"""What a user may ask of a packing.

Memory: a task of pass 1 gathers a run, a task of pass 2 a block of a shard; each may take a third
of `memory_bytes / workers`. On top come the program itself (about 300 MB a process), the index of
the sources (24 bytes a record of `.rec`, about 50 a file) and, in pass 2, 150 bytes a record of a
shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import ColorOrder
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.open_source import open_source
from lafs_ray.data.packing.sources import Source
from lafs_ray.errors import DataError

MIN_WORKER_BYTES = 32 << 20


@dataclass(frozen=True)
class PackOptions:
    """What a user asks for.

    Args:
        sources: paths or URIs.
        out: folder of the set.
        num_shards: None: as many as make shards of `shard_bytes`.
        shard_bytes: size of a shard, about.
        seed: of the order.
        color_order: of the sources.
        landmarks: list of landmarks for a folder of images.
        rules: for images.
        max_bad: records that may be left out.
        memory_bytes: for the images in the memory of all workers together.
        workers: tasks at a time; 0: in this process.
        scratch: folder for temporary files.
    """

    sources: tuple[str, ...]
    out: str
    num_shards: int | None = None
    shard_bytes: int = 1 << 30
    seed: int = 0
    color_order: ColorOrder = "rgb"
    landmarks: str | None = None
    rules: ImageRules = field(default_factory=ImageRules)
    max_bad: int = 100
    memory_bytes: int = 2 << 30
    workers: int = 0
    scratch: str | None = None

    @property
    def task_bytes(self) -> int:
        """Memory that the images of one task may take."""
        return self.memory_bytes // max(self.workers, 1) // 3


def check_options(options: PackOptions) -> None:
    """Refuse what cannot be.

    Raises:
        DataError: an option is out of its range; it is named with it.
    """
    limits = [
        ("--seed", options.seed, 0, 2**63 - 1),
        ("--shards", 1 if options.num_shards is None else options.num_shards, 1, 99_999),
        ("--shard-size", options.shard_bytes, 1 << 10, 1 << 50),
        ("--size", options.rules.size, 1, 10_000),
        ("--quality", options.rules.quality, 1, 100),
        ("--max-bad", options.max_bad, 0, 1 << 50),
        ("--workers", options.workers, 0, 10_000),
        ("--memory", options.memory_bytes, max(options.workers, 1) * MIN_WORKER_BYTES, 1 << 60),
    ]
    for name, value, low, high in limits:
        if not low <= value <= high:
            expected = f"{low} to {high}"
            if name == "--memory":
                expected = f"at least {low}: {MIN_WORKER_BYTES} bytes for each worker"
            fix = f"choose another {name}"
            raise DataError(name, found=str(value), expected=expected, fix=fix)


def open_sources(options: PackOptions, out: str) -> tuple[Source, ...]:
    """The sources, in the order asked.

    Raises:
        DataError: one is missing, cannot be read or is named twice; the set would lie inside of
            it; or landmarks and `--size` contradict each other.
    """
    folders = [path for path in options.sources if filesystem.is_folder(filesystem.absolute(path))]
    for path in folders:
        inside = filesystem.absolute(path).rstrip("/") + "/"
        if (out.rstrip("/") + "/").startswith(inside):
            raise DataError(
                options.out,
                found=f"a place inside the source {path}",
                expected="a folder outside of the sources",
                fix="choose another folder for the set",
            )
    sources = tuple(open_source(path, options.landmarks) for path in options.sources)
    uris = [source.uri for source in sources]
    for path, uri in zip(options.sources, uris, strict=True):
        if uris.count(uri) > 1:
            raise DataError(
                path,
                found="the same source twice",
                expected="each source once: its people would become twice as many",
                fix="name it once",
            )
    is_aligned = any(getattr(source, "landmarks", None) is not None for source in sources)
    if is_aligned and options.rules.size != 112:
        found = f"{options.rules.size} with landmarks"
        fix = "leave --size out"
        raise DataError("--size", found=found, expected="112, where landmarks are put", fix=fix)
    return sources


def request_of(options: PackOptions, sources: Sequence[Source], num_shards: int) -> dict[str, Any]:
    """What decides the bytes of the set, as JSON has it."""
    described = [
        {
            "uri": source.uri,
            "kind": source.kind,
            "images": source.num_records,
            "size_bytes": source.size_bytes,
            "fingerprint": source.fingerprint,
            "aligned_by_landmarks": getattr(source, "landmarks", None) is not None,
        }
        for source in sources
    ]
    request = {
        "sources": described,
        "seed": options.seed,
        "num_shards": num_shards,
        "color_order": options.color_order,
        "images": asdict(options.rules),
    }
    return dict(json.loads(json.dumps(request)))

"""What is to be packed: the sources opened, and the request that a set is known by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lafs_ray.data import storage
from lafs_ray.data.packing.opening import open_source
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.sources import Source
from lafs_ray.errors import DataError


def open_sources(options: PackOptions, out: str) -> tuple[Source, ...]:
    """The sources, in the order asked.

    Raises:
        DataError: one is missing, cannot be read or is named twice; the set would lie inside of
            it; or landmarks and `--size` contradict each other.
    """
    folders = [path for path in options.sources if storage.is_folder(storage.absolute(path))]
    for path in folders:
        inside = storage.absolute(path).rstrip("/") + "/"
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
        "colour_order": options.colour_order,
        "images": asdict(options.rules),
    }
    return dict(json.loads(json.dumps(request)))

"""Is a packed set still what its manifest says? Every byte is read; every bad file is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import LABEL, LABELS, MANIFEST, Manifest, ShardEntry, read_manifest
from lafs_ray.data.packing.session import Apply
from lafs_ray.data.packing.shard_writer import file_digest
from lafs_ray.data.recordio import index_uri, read_index, scan_records
from lafs_ray.errors import DataError

Checked = tuple[str, Manifest, NDArray[np.int32] | None]


def verify_set(path: str, apply: Apply, say: Callable[[str], object]) -> None:
    """Compare sizes, checksums, counts, indexes and labels of a set with its manifest.

    Args:
        path: the folder of the set, or its manifest.
        apply: runs one task for each shard.
        say: told that all is well.

    Raises:
        DataError: it is not; each bad file is named with its first fault.
    """
    uri = filesystem.absolute(path)
    folder = filesystem.parent(uri) if filesystem.file_name(uri) == MANIFEST else uri
    if not filesystem.exists(filesystem.join(folder, MANIFEST)):
        fix = "pack it first; --inspect looks into any .rec"
        raise DataError(path, found=f"no {MANIFEST} in it", expected="a packed set", fix=fix)
    manifest = read_manifest(filesystem.join(folder, MANIFEST))
    bad = {}
    for name, expected in manifest.checksums.items():
        if fault := _file_fault(filesystem.join(folder, name), expected):
            bad[name] = fault
    labels = None
    if LABELS not in bad:
        data = filesystem.read_bytes(filesystem.join(folder, LABELS))
        labels = np.frombuffer(data[-LABEL.itemsize * manifest.images :], LABEL)
    shared: Checked = (folder, manifest, labels)
    faults = dict(apply(_check_shard, shared, range(len(manifest.shards))))
    bad.update((manifest.shards[n].name, faults[n]) for n in sorted(faults) if faults[n])
    listed = {shard.name for shard in manifest.shards}
    for name in filesystem.list_names(folder):
        if name.endswith(".rec") and name not in listed:
            bad[name] = "not in the manifest"
    if bad:
        lines = "".join(f"\n    {name}: {fault}" for name, fault in bad.items())
        raise DataError(
            path,
            found=f"{len(bad)} bad files:{lines}",
            expected=f"{len(manifest.shards)} shards as {MANIFEST} says",
            fix="copy these files again; where the set was packed, the same jobs/pack.py command "
            "writes damaged shards anew",
        )
    say(
        f"sound: {manifest.images} images, {manifest.identities} identities, "
        f"{len(manifest.shards)} shards, every checksum, index and label"
    )


def _file_fault(uri: str, expected: str) -> str:
    if not filesystem.exists(uri):
        return "missing"
    found = file_digest(uri)
    return "" if found == expected else f"checksum {found}, expected {expected}"


def _check_shard(shared: Checked, number: int) -> tuple[int, str]:
    """Number of the shard and its first fault; an empty text: none."""
    folder, manifest, labels = shared
    entry = manifest.shards[number]
    uri = filesystem.join(folder, entry.name)
    try:
        fault = _fault(uri, entry, _labels_of(manifest, labels, number))
    except DataError as error:
        fault = f"found {error.found}; expected {error.expected} ({error.subject})"
    return number, fault


def _labels_of(manifest: Manifest, labels: NDArray[Any] | None, number: int) -> Any:
    if labels is None:
        return None
    first = sum(shard.images for shard in manifest.shards[:number])
    return labels[first : first + manifest.shards[number].images]


def _fault(uri: str, entry: ShardEntry, labels: NDArray[np.int32] | None) -> str:
    if not filesystem.exists(uri) or not filesystem.exists(index_uri(uri)):
        return "missing" if not filesystem.exists(uri) else "its .idx is missing"
    if (size := filesystem.file_size(uri)) != entry.size_bytes:
        return f"{size} bytes, expected {entry.size_bytes}"
    found = [(offset, int(header.first_label)) for offset, _, header in scan_records(uri)]
    if len(found) != entry.images:
        return f"{len(found)} images, expected {entry.images}"
    keys, offsets = read_index(index_uri(uri))
    in_file = np.array([offset for offset, _ in found])
    if not np.array_equal(keys, np.arange(len(found))) or not np.array_equal(offsets, in_file):
        return "its .idx does not fit"
    for key, (_, label) in enumerate(found):
        if labels is not None and labels[key] != label:
            return f"key {key}: label {label}, expected {labels[key]} as in {LABELS}"
    fault = _file_fault(uri, entry.blake2b)
    return fault or _file_fault(index_uri(uri), entry.index_blake2b)

"""Verification of a packed set against its manifest: reads every byte, reports every bad file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import LABEL, LABELS, MANIFEST, Manifest, ShardEntry, read_manifest
from lafs_ray.data.packing.pack_dir import file_digest
from lafs_ray.data.packing.session import Apply, count_of
from lafs_ray.data.recordio import index_uri, read_index, scan_records
from lafs_ray.errors import DataError

CheckInputs = tuple[str, Manifest, NDArray[np.int32] | None]


def verify_set(path: str, apply: Apply) -> str:
    """Compare sizes, checksums, counts, indexes and labels of a set with its manifest.

    Args:
        path: the folder of the set, or its manifest.
        apply: runs one task per shard.

    Returns:
        What was verified, in one line.

    Raises:
        DataError: a file differs; each bad file is named with its first error.
    """
    uri = filesystem.absolute(path)
    folder = filesystem.parent(uri) if filesystem.file_name(uri) == MANIFEST else uri
    if not filesystem.exists(filesystem.join(folder, MANIFEST)):
        fix = "pack it first; --inspect reads any .rec"
        raise DataError(path, found=f"no {MANIFEST} in it", expected="a packed set", fix=fix)
    manifest = read_manifest(filesystem.join(folder, MANIFEST))
    bad = {
        name: problem
        for name, expected in manifest.checksums.items()
        if (problem := _check_file(filesystem.join(folder, name), expected))
    }
    labels = None
    if LABELS not in bad:
        data = filesystem.read_bytes(filesystem.join(folder, LABELS))
        labels = np.frombuffer(data[-LABEL.itemsize * manifest.images :], LABEL)
    shared: CheckInputs = (folder, manifest, labels)
    problems = dict(apply(_check_shard, shared, range(len(manifest.shards))))
    bad.update((manifest.shards[n].name, problems[n]) for n in sorted(problems) if problems[n])
    listed = {shard.name for shard in manifest.shards}
    for name in filesystem.list_names(folder):
        if name.endswith(".rec") and name not in listed:
            bad[name] = "not in the manifest"
    if bad:
        lines = "".join(f"\n    {name}: {problem}" for name, problem in bad.items())
        raise DataError(
            path,
            found=f"{count_of(len(bad), 'bad file')}:{lines}",
            expected=f"{count_of(len(manifest.shards), 'shard')} as in {MANIFEST}",
            fix="copy these files again; where the set was packed, the same `lafs pack` command "
            "writes damaged shards again",
        )
    return (
        f"verified {manifest.images} images, {manifest.identities} identities, "
        f"{count_of(len(manifest.shards), 'shard')}: all checksums, indexes and labels match"
    )


def _check_file(uri: str, expected: str) -> str:
    if not filesystem.exists(uri):
        return "missing"
    found = file_digest(uri)
    return "" if found == expected else f"checksum {found}, expected {expected}"


def _check_shard(shared: CheckInputs, number: int) -> tuple[int, str]:
    """Return the number of the shard and its first problem, or an empty string."""
    folder, manifest, labels = shared
    entry = manifest.shards[number]
    first = sum(shard.images for shard in manifest.shards[:number])
    expected = None if labels is None else labels[first : first + entry.images]
    try:
        return number, _find_problem(filesystem.join(folder, entry.name), entry, expected)
    except DataError as error:
        return number, f"found {error.found}; expected {error.expected} ({error.subject})"


def _find_problem(uri: str, entry: ShardEntry, labels: NDArray[np.int32] | None) -> str:
    if not filesystem.exists(uri) or not filesystem.exists(index_uri(uri)):
        return "missing" if not filesystem.exists(uri) else "its .idx is missing"
    if (size := filesystem.file_size(uri)) != entry.size_bytes:
        return f"{size} bytes, expected {entry.size_bytes}"
    found = [(offset, int(header.first_label)) for offset, _, header, _ in scan_records(uri)]
    if len(found) != entry.images:
        return f"{len(found)} images, expected {entry.images}"
    keys, offsets = read_index(index_uri(uri))
    in_file = np.array([offset for offset, _ in found])
    if not np.array_equal(keys, np.arange(len(found))) or not np.array_equal(offsets, in_file):
        return "its .idx does not match"
    for key, (_, label) in enumerate(found):
        if labels is not None and labels[key] != label:
            return f"key {key}: label {label}, expected {labels[key]} as in {LABELS}"
    problem = _check_file(uri, entry.blake2b)
    return problem or _check_file(index_uri(uri), entry.index_blake2b)

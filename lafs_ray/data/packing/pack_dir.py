"""The output folder of a packing.

train-00000-of-00040.rec/.idx …    shards; each appears complete or not at all
labels.npy, identities.csv, property, manifest.json    written at the end, the manifest last
pack.json                          the request, until the manifest takes it over
pack.lock                          the process at work
scratch/run-*.run, shard-*.done    sorted runs, and entries of finished shards; deleted at the end
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import (
    CLAIM,
    LABEL,
    LABELS,
    MANIFEST,
    Manifest,
    ShardEntry,
    as_json,
    read_json,
    read_manifest,
)
from lafs_ray.data.packing.options import PackPlan
from lafs_ray.data.recordio import checksum, index_uri
from lafs_ray.errors import DataError

_READ_BYTES = 8 << 20
_PARTIAL = re.compile(
    r"\.(train-\d{5}-of-\d{5}\.(rec|idx)|labels\.npy|identities\.csv|property|manifest\.json"
    r"|pack\.json|pack\.lock|run-\d{12}-\d{12}\.run|shard-\d{5}\.done)\.[0-9a-f]{12}\.partial"
)


@dataclass(frozen=True)
class FinishedShard:
    """A shard that was written.

    Args:
        shard: its number.
        entry: for the manifest.
        labels: of its records, int32 as bytes.
    """

    shard: int
    entry: ShardEntry
    labels: bytes


def shard_name(shard: int, num_shards: int) -> str:
    """Return the file name of a shard."""
    return f"train-{shard:05}-of-{num_shards:05}.rec"


def file_digest(uri: str) -> str:
    """Return the checksum of a file, as in `ShardEntry`.

    Raises:
        DataError: it is missing or cannot be read.
    """
    digest, position = checksum(), 0
    with reading.open_input(uri) as file:
        while data := file.read_at(_READ_BYTES, position):
            digest.update(data)
            position += len(data)
    return str(digest.hexdigest())


def is_intact(folder: str, finished: FinishedShard) -> tuple[int, bool]:
    """Return a shard's number, and whether it and its index have their size and checksums."""
    entry = finished.entry
    uri = filesystem.join(folder, entry.name)
    intact = (
        filesystem.exists(uri)
        and filesystem.exists(index_uri(uri))
        and filesystem.file_size(uri) == entry.size_bytes
        and (file_digest(uri), file_digest(index_uri(uri))) == (entry.blake2b, entry.index_blake2b)
    )
    return finished.shard, intact


class PackDir:
    """Request, finished shards and leftovers in the output folder of a plan."""

    def __init__(self, plan: PackPlan) -> None:
        self._plan = plan
        self._request_uri = filesystem.join(plan.out, CLAIM)
        self._manifest_uri = filesystem.join(plan.out, MANIFEST)

    def write_request(self) -> None:
        """Record the request, so that only the same one continues here.

        Raises:
            DataError: the folder holds another set, or records of another origin.
        """
        plan, found = self._plan, None
        if (manifest := self.manifest()) is not None:
            found = manifest.request
        elif filesystem.exists(self._request_uri):
            found = read_json(self._request_uri)
            if found != plan.request and not filesystem.list_names(plan.scratch_of(found)):
                found = None  # That packing wrote nothing: the folder may be reused.
        if found is not None:
            _check_same(plan.out, found, plan.request)
            return
        foreign = [name for name in filesystem.list_names(plan.out) if name.endswith((".rec", ".idx"))]
        if foreign:
            raise DataError(
                plan.out,
                found=f"{', '.join(foreign[:5])} without {MANIFEST} or {CLAIM}",
                expected="an empty folder, or one where the same command was interrupted",
                fix="choose another folder",
            )
        with filesystem.atomic_write(self._request_uri) as file:
            file.write(as_json(plan.request))

    def remove_partials(self) -> None:
        """Delete partially written files of a process that was killed."""
        for folder in (self._plan.out, self._plan.scratch):
            for name in filesystem.list_names(folder):
                if _PARTIAL.fullmatch(name):
                    filesystem.delete(filesystem.join(folder, name))

    def manifest(self) -> Manifest | None:
        """Return the manifest of an earlier packing, if it finished."""
        return read_manifest(self._manifest_uri) if filesystem.exists(self._manifest_uri) else None

    def finished_shards(self) -> list[FinishedShard]:
        """Return the shards that were finished once; their files may be damaged since."""
        if (manifest := self.manifest()) is not None:
            return self._listed_shards(manifest)
        result = []
        for name in filesystem.list_names(self._plan.scratch):
            if re.fullmatch(r"shard-\d{5}\.done", name):
                data = filesystem.read_bytes(filesystem.join(self._plan.scratch, name))
                digest, _, content = data.partition(b"\n")
                if digest == _digest(content):  # Else it is damaged: the shard is written again.
                    text, _, labels = content.partition(b"\n")
                    result.append(FinishedShard(int(name[6:11]), ShardEntry(**json.loads(text)), labels))
        return result

    def _listed_shards(self, manifest: Manifest) -> list[FinishedShard]:
        uri = filesystem.join(self._plan.out, LABELS)
        if not filesystem.exists(uri) or file_digest(uri) != manifest.checksums[LABELS]:
            return []
        labels = filesystem.read_bytes(uri)[-LABEL.itemsize * manifest.images :]
        sizes = [LABEL.itemsize * entry.images for entry in manifest.shards]
        ends = np.cumsum([0, *sizes]).tolist()
        return [
            FinishedShard(shard, entry, labels[ends[shard] : ends[shard + 1]])
            for shard, entry in enumerate(manifest.shards)
        ]

    def mark_finished(self, finished: FinishedShard) -> None:
        """Record that a shard is finished, so that a restart does not write it again."""
        uri = filesystem.join(self._plan.scratch, f"shard-{finished.shard:05}.done")
        content = json.dumps(asdict(finished.entry)).encode() + b"\n" + finished.labels
        with filesystem.atomic_write(uri) as file:
            file.write(_digest(content) + b"\n" + content)

    def clean_up(self) -> None:
        """Delete the request and the temporary files."""
        filesystem.delete(self._request_uri)
        if filesystem.exists(self._plan.scratch):
            filesystem.delete_tree(self._plan.scratch)


def _digest(content: bytes) -> bytes:
    hashed = checksum()
    hashed.update(content)
    return bytes(hashed.hexdigest().encode())


def _check_same(out: str, found: dict[str, Any], request: dict[str, Any]) -> None:
    old, new = _flatten(found), _flatten(request)
    keys = [key for key in {**old, **new} if old.get(key, "none") != new.get(key, "none")]
    if keys:
        lines = [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys]
        raise DataError(
            out,
            found="a set packed from other sources or options:\n    " + "\n    ".join(lines[:20]),
            expected="the same sources and options, or an empty folder",
            fix="choose another folder, or delete this one to pack again",
        )


def _flatten(content: Any, key: str = "") -> dict[str, Any]:
    """Return {"sources.0.uri": …} for nested objects and lists."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {key: content}
    result: dict[str, Any] = {}
    for name, value in content.items():
        result.update(_flatten(value, f"{key}.{name}" if key else str(name)))
    return result

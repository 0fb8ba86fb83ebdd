"""The output folder of a packing: whose it is, what of it is finished, what is left over.

train-00000-of-00040.rec/.idx …    a shard appears whole or not at all
labels.npy, identities.csv, property, manifest.json    written at the end, the manifest last
pack.json                          what was asked for, until the manifest takes it over
pack.lock                          who is at work
scratch/run-*.run, shard-*.done    runs, and what is known of finished shards; deleted at the end
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np

from lafs_ray.data.io import filesystem
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
from lafs_ray.data.packing.shard_writer import Written, file_digest, shard_name
from lafs_ray.data.recordio import index_uri
from lafs_ray.errors import DataError

_LEFT_OVER = re.compile(
    r"(\.(train-\d{5}-of-\d{5}\.(rec|idx)|labels\.npy|identities\.csv|property|manifest\.json"
    r"|pack\.json|run-\d{12}-\d{12}\.run|shard-\d{5}\.done)\.[0-9a-f]{12}"
    r"|pack\.lock\.[0-9a-f]{32})\.partial"
)


class PackFolder:
    """The folder of one set.

    Args:
        uri: of the folder.
        request: what decides the bytes of the set, as JSON has it.
        num_shards: of the set.
        scratch: folder for temporary files; None: below the set's own.
    """

    def __init__(
        self, uri: str, request: dict[str, Any], num_shards: int, scratch: str | None
    ) -> None:
        self.uri = uri
        self.num_shards = num_shards
        self._request, self._scratch_root = request, scratch
        self.scratch = self._scratch_of(request)

    def _scratch_of(self, request: dict[str, Any]) -> str:
        if self._scratch_root is None:
            return filesystem.join(self.uri, "scratch")
        # Below a folder of the user's choice others may pack as well.
        digest = hashlib.blake2b((self.uri + json.dumps(request)).encode(), digest_size=6)
        return filesystem.join(self._scratch_root, f"pack-{digest.hexdigest()}")

    def claim(self) -> None:
        """Note what is about to be packed.

        Raises:
            DataError: the folder holds another set, or records of another origin.
        """
        before: dict[str, Any] | None = None
        claim = filesystem.join(self.uri, CLAIM)
        if filesystem.exists(filesystem.join(self.uri, MANIFEST)):
            before = read_manifest(filesystem.join(self.uri, MANIFEST)).request
        elif filesystem.exists(claim):
            before = read_json(claim)
            if before != self._request and not filesystem.list_names(self._scratch_of(before)):
                before = None  # Nothing came of it, so others may have the folder.
        if before is not None:
            self._check_same(before)
            return
        foreign = [
            name for name in filesystem.list_names(self.uri) if name.endswith((".rec", ".idx"))
        ]
        if foreign:
            raise DataError(
                self.uri,
                found=f"{', '.join(foreign[:5])} without {MANIFEST} or {CLAIM}",
                expected="an empty folder, or one where the same command was at work",
                fix="choose another folder",
            )
        with filesystem.atomic_write(claim) as file:
            file.write(as_json(self._request))

    def _check_same(self, before: dict[str, Any]) -> None:
        old, new = _flat(before), _flat(self._request)
        keys = [key for key in {**old, **new} if old.get(key, "none") != new.get(key, "none")]
        if keys:
            lines = [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys]
            raise DataError(
                self.uri,
                found="a set that was packed otherwise:\n    " + "\n    ".join(lines[:20]),
                expected="the same sources and options, or an empty folder",
                fix="choose another folder, or delete this one to pack anew",
            )

    def sweep(self) -> None:
        """Delete half-written files of a packer that was killed."""
        for folder in (self.uri, self.scratch):
            for name in filesystem.list_names(folder):
                if _LEFT_OVER.fullmatch(name):
                    filesystem.delete(filesystem.join(folder, name))

    def name(self, shard: int) -> str:
        """File name of a shard."""
        return shard_name(shard, self.num_shards)

    def recorded(self) -> list[Written]:
        """Shards that were finished once; whether they are sound still is not looked at."""
        manifest_uri = filesystem.join(self.uri, MANIFEST)
        if filesystem.exists(manifest_uri):
            return self._of_manifest(read_manifest(manifest_uri))
        result = []
        for name in filesystem.list_names(self.scratch):
            if re.fullmatch(r"shard-\d{5}\.done", name):
                text, _, labels = filesystem.read_bytes(
                    filesystem.join(self.scratch, name)
                ).partition(b"\n")
                result.append(Written(int(name[6:11]), ShardEntry(**json.loads(text)), labels))
        return result

    def _of_manifest(self, manifest: Manifest) -> list[Written]:
        where = filesystem.join(self.uri, LABELS)
        if not filesystem.exists(where) or file_digest(where) != manifest.checksums[LABELS]:
            return []
        labels = filesystem.read_bytes(where)[-LABEL.itemsize * manifest.images :]
        ends = np.cumsum(
            [0, *(LABEL.itemsize * entry.images for entry in manifest.shards)]
        ).tolist()
        return [
            Written(shard, entry, labels[ends[shard] : ends[shard + 1]])
            for shard, entry in enumerate(manifest.shards)
        ]

    def record(self, written: Written) -> None:
        """Note that a shard is finished, so that it need not be written again after a kill."""
        uri = filesystem.join(self.scratch, f"shard-{written.shard:05}.done")
        with filesystem.atomic_write(uri) as file:
            file.write(json.dumps(asdict(written.entry)).encode() + b"\n" + written.labels)

    def finish(self) -> None:
        """Delete what only the packing needed."""
        filesystem.delete(filesystem.join(self.uri, CLAIM))
        if filesystem.exists(self.scratch):
            filesystem.delete_tree(self.scratch)


def is_sound(folder: str, entry: ShardEntry) -> bool:
    """Whether a shard and its index are those that were written: checksums are compared."""
    uri = filesystem.join(folder, entry.name)
    if not (filesystem.exists(uri) and filesystem.exists(index_uri(uri))):
        return False
    if filesystem.file_size(uri) != entry.size_bytes:
        return False
    return (file_digest(uri), file_digest(index_uri(uri))) == (entry.blake2b, entry.index_blake2b)


def _flat(content: Any, key: str = "") -> dict[str, Any]:
    """{"sources.0.uri": …} of nested objects and lists."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {key: content}
    result: dict[str, Any] = {}
    for name, value in content.items():
        result.update(_flat(value, f"{key}.{name}" if key else str(name)))
    return result

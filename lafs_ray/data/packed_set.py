"""Files of a packed set besides its shards: `manifest.json`, and all labels in `labels.npy`.

Packed shards are shuffled, so no range of keys belongs to one identity and their layout is plain. The manifest holds
what plain files cannot: the number of identities, the label of each image (4 bytes per image instead of reading the
set), and the list of shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem, json_text, reading
from lafs_ray.data.io.walk import require_no_dead_link
from lafs_ray.errors import DataError

MANIFEST, CLAIM, LABELS, IDENTITIES = "manifest.json", "pack.json", "labels.npy", "identities.csv"
FORMAT, VERSION = "lafs_ray packed faces", 1
LABEL = np.dtype("<i4")
MAX_LABELS = 1 << 24  # labels are float32 in the file

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 62)]
# Without separators, so that a file is in the folder of its manifest.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ShardEntry:
    """One `.rec` of a packed set.

    Args:
        name: of the file.
        images: records in it; their keys are 0…images-1, in file order.
        size_bytes: of the `.rec`.
        blake2b: checksum of the `.rec`, 16 bytes in hexadecimal.
        index_blake2b: checksum of the `.idx`.
    """

    name: FileName
    images: Count
    size_bytes: Count
    blake2b: Checksum
    index_blake2b: Checksum

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True)
class Manifest:
    """Description of a packed set, the content of `manifest.json`.

    Args:
        images: records in all shards.
        identities: labels are 0…identities-1; 0: a set without labels.
        unlabeled: images without a label (-1 in the file).
        image_size: side of the images in pixels.
        color_order: what decoding gives, according to the packer's option.
        seed: of the order.
        left_out: number of source records that are not in the set, and the first of them by name.
        encoded: images that were re-encoded, because they were aligned or resized.
        sources: what was packed: uri, kind, counts, fingerprint, first label.
        request: options of the packer; the same request makes the same bytes.
        checksums: BLAKE2b of the files besides the shards, by name.
        shards: the `.rec` files in order.
        lafs_ray: version of the packer.
    """

    images: Count
    identities: Annotated[Count, Field(le=MAX_LABELS)]
    unlabeled: Count
    image_size: Count
    color_order: ColorOrder
    seed: Annotated[int, Field(strict=True)]
    left_out: dict[str, Any]
    encoded: int
    sources: tuple[dict[str, Any], ...]
    request: dict[str, Any]
    checksums: dict[FileName, Checksum]
    shards: tuple[ShardEntry, ...]
    lafs_ray: str

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def as_json(self) -> bytes:
        """Encode the content of the file."""
        return as_json({"format": FORMAT, "version": VERSION, **asdict(self)})


def as_json(content: dict[str, Any]) -> bytes:
    """Encode readable JSON, the same bytes for the same content."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(uri: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        content = json_text.read_json(uri)
    except ValueError as error:
        raise _bad_manifest(uri, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _bad_manifest(uri, f"JSON of a {type(content).__name__}, not of an object")
    return content


def read_manifest(uri: str) -> Manifest:
    """Read the manifest in a file.

    Raises:
        DataError: it is missing, of another version, or its values contradict each other.
    """
    content = read_json(uri)
    if (content.pop("format", None), content.pop("version", None)) != (FORMAT, VERSION):
        raise _bad_manifest(uri, "another format or version")
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _bad_manifest(uri, f"{ascii(where)[1:-1]}: {first['msg']}") from None
    if LABELS not in manifest.checksums:
        raise _bad_manifest(uri, f"checksums without {LABELS}")
    if sum(shard.images for shard in manifest.shards) != manifest.images:
        raise _bad_manifest(uri, f"{manifest.images} images, not the sum over its shards")
    return manifest


def _bad_manifest(uri: str, found: str) -> DataError:
    expected = f"a manifest of version {VERSION}, as `lafs pack` writes it"
    return DataError(uri, found=found, expected=expected, fix="copy the file again, or pack again")


@dataclass(frozen=True)
class PackedLabels:
    """Labels of one packed shard, read on demand.

    Args:
        uri: of the set's `labels.npy`.
        first: position of the shard's first label in it.
        images: records of the shard.
        total: labels in the file.
        identities: number in the full set.
    """

    uri: str
    first: int
    images: int
    total: int
    identities: int

    @property
    def listed(self) -> NDArray[np.int64]:
        """Labels of the set, int64 [identities]."""
        return np.arange(self.identities)

    def labels(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read the label of each image key; -1: it has none.

        Raises:
            DataError: `labels.npy` is missing, of another length, or of other records.
        """
        with reading.open_input(self.uri) as file:
            # The labels are the end of the file: its header need not be parsed.
            size = file.size()
            start = size - LABEL.itemsize * self.total
            # Before reading: the manifest may claim more than there is memory for.
            if not 0 < start <= 4096 or self.first + self.images > self.total:
                raise DataError(
                    self.uri,
                    found=f"{size} bytes",
                    expected=f"a header and {self.total} labels of 4 bytes",
                    fix="copy the file again",
                )
            data = file.read_at(LABEL.itemsize * self.images, start + LABEL.itemsize * self.first)
        if len(keys) and not 0 <= keys.min() <= keys.max() < self.images:
            raise DataError(
                self.uri,
                found=f"labels of keys 0 to {self.images - 1}, according to {MANIFEST}",
                expected=f"labels of keys {keys.min()} to {keys.max()}, according to the .idx",
                fix="copy manifest, .rec and .idx again from one place",
            )
        return np.frombuffer(data, LABEL)[keys].astype(np.int64)


@dataclass(frozen=True)
class PackedSet:
    """Metadata of some `.rec` files, from the manifests in their folders.

    Args:
        color_order: of the images; None without a manifest.
        image_sizes: sides of the images in pixels; empty without a manifest.
        labels: of each file; None without a manifest or labels.
    """

    color_order: ColorOrder | None
    image_sizes: frozenset[int]
    labels: tuple[PackedLabels | None, ...]


def find_packed(path: str, uris: Sequence[str], sizes: Sequence[int]) -> PackedSet:
    """Look up the files of a face set in the manifests of their folders.

    Args:
        path: what the user opened; a folder has to hold all shards of its manifest.
        uris: the `.rec` files.
        sizes: their sizes in bytes.

    Raises:
        DataError: packing was not finished, shards are missing, a size differs from the manifest, or two manifests have
            different color orders.
    """
    manifests = {folder: _manifest_in(folder) for folder in dict.fromkeys(map(filesystem.parent, uris))}
    labels = []
    for uri, size in zip(uris, sizes, strict=True):
        manifest, folder = manifests[filesystem.parent(uri)], filesystem.parent(uri)
        labels.append(None if manifest is None else _lookup(manifest, folder, uri, size))
    known = {manifest.color_order for manifest in manifests.values() if manifest is not None}
    if len(known) > 1:
        raise DataError(
            path,
            found="rgb and bgr, according to the manifests",
            expected="shards of one color order",
            fix="train on one of them, or pack their sources into one set",
        )
    alone = manifests.get(filesystem.join(path)) if len(manifests) == 1 else None
    if alone is not None:
        _check_complete(path, alone, uris)
    sizes_px = frozenset(one.image_size for one in manifests.values() if one is not None)
    return PackedSet(known.pop() if known else None, sizes_px, tuple(labels))


def _manifest_in(folder: str) -> Manifest | None:
    uri = filesystem.join(folder, MANIFEST)
    require_no_dead_link(uri)
    if filesystem.exists(uri):
        return read_manifest(uri)
    if filesystem.exists(filesystem.join(folder, CLAIM)):
        raise DataError(
            folder,
            found=f"{CLAIM} without {MANIFEST}",
            expected="a completely packed set",
            fix="run the `lafs pack` command again: it continues where it stopped",
        )
    return None


def _lookup(manifest: Manifest, folder: str, uri: str, size: int) -> PackedLabels | None:
    first = 0
    for shard in manifest.shards:
        if shard.name == filesystem.file_name(uri):
            if shard.size_bytes != size:
                raise DataError(
                    uri,
                    found=f"{size} bytes",
                    expected=f"{shard.size_bytes} bytes, according to {MANIFEST}",
                    fix="copy the file again",
                )
            if manifest.identities == 0:
                return None
            where = filesystem.join(folder, LABELS)
            return PackedLabels(where, first, shard.images, manifest.images, manifest.identities)
        first += shard.images
    raise DataError(
        uri,
        found=f"a .rec that {MANIFEST} in its folder does not list",
        expected=f"the {len(manifest.shards)} listed shards and no others",
        fix="move the file to another folder",
    )


def _check_complete(path: str, manifest: Manifest, uris: Sequence[str]) -> None:
    present = {filesystem.file_name(uri) for uri in uris}
    missing = [shard.name for shard in manifest.shards if shard.name not in present]
    if missing:
        raise DataError(
            path,
            found=f"{len(present)} of {len(manifest.shards)} shards; {missing[0]} is missing",
            expected=f"all shards that {MANIFEST} lists",
            fix="copy the missing ones, or select some with a pattern (train-0000*.rec)",
        )

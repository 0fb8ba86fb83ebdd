"""What stands beside packed shards: `manifest.json`, and the label of every image in `labels.npy`.

Packed shards are shuffled, so no range of keys belongs to one identity and their layout is plain.
The manifest says what plain files cannot: how many identities there are, which label each image
has (4 bytes an image instead of reading the set), and whether all shards have arrived.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

MANIFEST, CLAIM, LABELS, IDENTITIES = "manifest.json", "pack.json", "labels.npy", "identities.csv"
FORMAT, VERSION = "lafs_ray packed faces", 1
LABEL = np.dtype("<i4")
MAX_LABELS = 1 << 24  # labels are float32 in the file
_MOST = 1 << 62


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

    name: str
    images: int
    size_bytes: int
    blake2b: str
    index_blake2b: str


@dataclass(frozen=True)
class Manifest:
    """A packed set as its `manifest.json` describes it.

    Args:
        images: records in all shards.
        identities: labels are 0…identities-1; 0: a set without labels.
        unlabeled: images without a label (-1 in the file).
        image_size: side of the images in pixels.
        color_order: what decoding gives, as the packer was told.
        seed: of the order.
        left_out: how many records of the sources are not in the set, and the first of them by name.
        encoded: images encoded anew, because they were aligned or resized.
        sources: what was packed: uri, kind, counts, fingerprint, first label.
        request: what the packer was asked for; the same request makes the same bytes.
        checksums: blake2b of the files beside the shards, by name.
        shards: the `.rec` files in order.
        lafs_ray: version of the packer.
    """

    images: int
    identities: int
    unlabeled: int
    image_size: int
    color_order: ColorOrder
    seed: int
    left_out: dict[str, Any]
    encoded: int
    sources: tuple[dict[str, Any], ...]
    request: dict[str, Any]
    checksums: dict[str, str]
    shards: tuple[ShardEntry, ...]
    lafs_ray: str

    def as_json(self) -> bytes:
        """The text of the file."""
        return as_json({"format": FORMAT, "version": VERSION, **asdict(self)})


def as_json(content: dict[str, Any]) -> bytes:
    """Readable JSON, the same bytes for the same content."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(filesystem.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise _bad_manifest(uri, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise _bad_manifest(uri, f"JSON that is no object but a {type(content).__name__}")
    return content


def read_manifest(uri: str) -> Manifest:
    """The manifest in a file.

    Raises:
        DataError: it is missing, of another version, or its values do not fit each other.
    """
    content = read_json(uri)
    if (content.pop("format", None), content.pop("version", None)) != (FORMAT, VERSION):
        raise _bad_manifest(uri, "another format or version")
    try:
        shards = tuple(ShardEntry(**shard) for shard in content.pop("shards"))
        sources = tuple(content.pop("sources"))
        manifest = Manifest(**content, shards=shards, sources=sources)
    except (TypeError, KeyError) as error:
        raise _bad_manifest(uri, f"keys that are missing or too many ({error})") from error
    if not _is_possible(manifest):
        raise _bad_manifest(uri, "counts, names or a color order that cannot be")
    return manifest


def _is_possible(manifest: Manifest) -> bool:
    """Whether the values are of their types and fit each other."""
    shards = manifest.shards
    counts = [manifest.images, manifest.identities, manifest.unlabeled, manifest.image_size]
    counts += [count for shard in shards for count in (shard.images, shard.size_bytes)]
    texts = [text for one in shards for text in (one.name, one.blake2b, one.index_blake2b)]
    return (
        all(type(count) is int and 0 <= count < _MOST for count in counts)
        and all(type(text) is str for text in [*texts, *manifest.checksums])
        and sum(shard.images for shard in shards) == manifest.images
        and manifest.identities <= MAX_LABELS
        and manifest.color_order in get_args(ColorOrder)
        and all(isinstance(source, dict) for source in manifest.sources)
        and isinstance(manifest.request, dict)
        and isinstance(manifest.checksums, dict)
    )


def _bad_manifest(uri: str, found: str) -> DataError:
    expected = f"a manifest of version {VERSION}, as jobs/pack.py writes it"
    return DataError(uri, found=found, expected=expected, fix="copy the file again, or pack anew")


@dataclass(frozen=True)
class PackedLabels:
    """The labels of one packed shard, read when they are asked for.

    Args:
        uri: of the set's `labels.npy`.
        first: place of the shard's first label in it.
        images: records of the shard.
        total: labels in the file.
        identities: of the whole set.
    """

    uri: str
    first: int
    images: int
    total: int
    identities: int

    @property
    def listed(self) -> NDArray[np.int64]:
        """The labels that the set knows."""
        return np.arange(self.identities)

    def labels(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of each image key; -1: it has none.

        Raises:
            DataError: `labels.npy` is missing, of another length, or of other records.
        """
        with filesystem.open_input(self.uri) as file:
            # The numbers are the end of the file: its header need not be understood.
            size = file.size()
            start = size - LABEL.itemsize * self.total
            # Before reading: what the manifest says may be more than there is memory for.
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
                found=f"labels of keys 0 to {self.images - 1}, as {MANIFEST} says",
                expected=f"those of keys {keys.min()} to {keys.max()}, as the .idx has them",
                fix="copy manifest, .rec and .idx again from one place",
            )
        return np.frombuffer(data, LABEL)[keys].astype(np.int64)


@dataclass(frozen=True)
class PackedSet:
    """What the manifests beside some `.rec` files say about them.

    Args:
        color_order: of the images; None where no manifest says it.
        image_sizes: sides of the images in pixels, as far as manifests say them.
        labels: of each file, where its manifest knows them.
    """

    color_order: ColorOrder | None
    image_sizes: frozenset[int]
    labels: tuple[PackedLabels | None, ...]


def find_packed(path: str, uris: Sequence[str], sizes: Sequence[int]) -> PackedSet:
    """Look the files of a face set up in the manifests beside them.

    Args:
        path: what the user named; a folder has to hold all shards of its manifest.
        uris: the `.rec` files.
        sizes: their sizes in bytes.

    Raises:
        DataError: packing was not finished, shards are missing, a size differs from the manifest,
            or two manifests have different color orders.
    """
    manifests = {
        folder: _manifest_in(folder) for folder in dict.fromkeys(map(filesystem.parent, uris))
    }
    labels = []
    for uri, size in zip(uris, sizes, strict=True):
        manifest, folder = manifests[filesystem.parent(uri)], filesystem.parent(uri)
        labels.append(None if manifest is None else _lookup(manifest, folder, uri, size))
    known = {manifest.color_order for manifest in manifests.values() if manifest is not None}
    if len(known) > 1:
        expected = "shards of one color order"
        raise DataError(
            path, found="rgb and bgr, as the manifests say", expected=expected, fix=_ONE
        )
    alone = manifests.get(filesystem.join(path)) if len(manifests) == 1 else None
    if alone is not None:
        _check_complete(path, alone, uris)
    sizes_px = frozenset(one.image_size for one in manifests.values() if one is not None)
    return PackedSet(known.pop() if known else None, sizes_px, tuple(labels))


_ONE = "train on one of them, or pack their sources into one set"


def _manifest_in(folder: str) -> Manifest | None:
    uri = filesystem.join(folder, MANIFEST)
    if filesystem.exists(uri):
        return read_manifest(uri)
    if filesystem.exists(filesystem.join(folder, CLAIM)):
        raise DataError(
            folder,
            found=f"{CLAIM} without {MANIFEST}",
            expected="a set whose packing was finished",
            fix="run the jobs/pack.py command again: it continues where it stopped",
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
                    expected=f"{shard.size_bytes} bytes, as {MANIFEST} says",
                    fix="copy the file again",
                )
            if manifest.identities == 0:
                return None
            where = filesystem.join(folder, LABELS)
            return PackedLabels(where, first, shard.images, manifest.images, manifest.identities)
        first += shard.images
    raise DataError(
        uri,
        found=f"a .rec that {MANIFEST} beside it does not list",
        expected=f"the {len(manifest.shards)} shards listed and no others",
        fix="move the file to a folder of its own",
    )


def _check_complete(path: str, manifest: Manifest, uris: Sequence[str]) -> None:
    present = {filesystem.file_name(uri) for uri in uris}
    missing = [shard.name for shard in manifest.shards if shard.name not in present]
    if missing:
        raise DataError(
            path,
            found=f"{len(present)} of {len(manifest.shards)} shards; {missing[0]} is missing",
            expected=f"all shards that {MANIFEST} lists",
            fix="copy the missing ones, or name those wanted with a pattern (train-0000*.rec)",
        )

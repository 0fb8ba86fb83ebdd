"""Pass 2: one shard from its parts of all runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray import __version__
from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import IDENTITIES, LABEL, LABELS, MANIFEST, Manifest, ShardEntry
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.runs import RunFooter, read_rows
from lafs_ray.data.packing.sources import Source
from lafs_ray.data.recordio import (
    Body,
    Header,
    RecordWriter,
    checksum,
    pack,
)
from lafs_ray.errors import DataError

_READ_BYTES = 8 << 20
# Memory of a record's row, its place in the order and its slice, beside its bytes.
_ROW_BYTES = 120


@dataclass(frozen=True)
class Merging:
    """What pass 2 has to know.

    Args:
        out: folder of the set.
        num_shards: of the set.
        runs: all of them, in the order of their records.
        starts: number of each source's first record, then of all records; int64 [sources + 1].
        first_labels: what is added to the labels of each source.
        block_bytes: memory that images may take.
    """

    out: str
    num_shards: int
    runs: tuple[RunFooter, ...]
    starts: NDArray[np.int64]
    first_labels: tuple[int, ...]
    block_bytes: int


@dataclass(frozen=True)
class Written:
    """A shard that is there.

    Args:
        shard: its number.
        entry: for the manifest.
        labels: of its records, int32 as bytes.
    """

    shard: int
    entry: ShardEntry
    labels: bytes


def shard_name(shard: int, num_shards: int) -> str:
    """The file name of a shard."""
    return f"train-{shard:05}-of-{num_shards:05}.rec"


def write_shard(merging: Merging, shard: int) -> Written:
    """Write a shard: header flag 0, label, id its key, id2 its number over all sources.

    Raises:
        DataError: a run is missing, or the disk is full.
    """
    name = shard_name(shard, merging.num_shards)
    rows, runs = _rows_of(merging, shard)
    labels = _final_labels(merging, rows)
    with RecordWriter(filesystem.join(merging.out, name)) as writer:
        images = _images(merging, shard, rows, runs)
        for key, (label, number, image) in enumerate(
            zip(labels.tolist(), rows["number"].tolist(), images, strict=True)
        ):
            writer.write(key, pack(Header(0, float(label), key, number), image))
    entry = ShardEntry(
        name=name,
        images=len(rows),
        size_bytes=writer.size_bytes,
        blake2b=writer.digest.hexdigest(),
        index_blake2b=writer.index_digest.hexdigest(),
    )
    return Written(shard, entry, labels.tobytes())


def _rows_of(merging: Merging, shard: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The rows of a shard in the order of their places, and the run of each."""
    parts, counts = [], []
    for footer in merging.runs:
        with filesystem.open_input(footer.uri) as file:
            parts.append(read_rows(file, footer, shard))
        counts.append(len(parts[-1]))
    rows = np.concatenate(parts)
    order = np.argsort(rows["place"])
    return rows[order], np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]


def _final_labels(merging: Merging, rows: NDArray[Any]) -> NDArray[np.int32]:
    source = np.searchsorted(merging.starts, rows["number"], side="right") - 1
    shifted = rows["label"] + np.array(merging.first_labels, np.int64)[source]
    return np.where(rows["label"] < 0, -1, shifted).astype(LABEL)


def _images(
    merging: Merging, shard: int, rows: NDArray[Any], runs: NDArray[np.int32]
) -> Iterator[Body]:
    """The images of a shard in order; a block of them is in memory at a time."""
    position = [footer.byte_starts[shard] for footer in merging.runs]
    ends = np.cumsum(rows["size"].astype(np.int64) + _ROW_BYTES)
    first = 0
    while first < len(rows):
        spent = ends[first - 1] if first else 0
        stop = max(int(np.searchsorted(ends, spent + merging.block_bytes)), first + 1)
        sizes, members = rows["size"][first:stop].astype(np.int64), runs[first:stop]
        images: list[Body] = [b""] * (stop - first)
        for run in np.unique(members).tolist():
            # The next places of a shard are neighbors in every run: one read.
            mine = np.flatnonzero(members == run)
            cuts = np.concatenate([[0], np.cumsum(sizes[mine])]).tolist()
            data = _span(merging.runs[run].uri, position[run], cuts[-1])
            position[run] += cuts[-1]
            for index, begin, end in zip(mine.tolist(), cuts, cuts[1:], strict=False):
                images[index] = data[begin:end]
        yield from images
        first = stop


def _span(uri: str, offset: int, size: int) -> memoryview:
    with filesystem.open_input(uri) as file:
        data = memoryview(file.read_at(size, offset))
    if len(data) != size:
        fix = "delete the scratch folder and start again"
        found = f"{len(data)} bytes at offset {offset}"
        raise DataError(uri, found=found, expected=f"{size} bytes", fix=fix)
    return data


def file_digest(uri: str) -> str:
    """The checksum of a whole file, as a `ShardEntry` has it.

    Raises:
        DataError: it is missing or cannot be read.
    """
    digest, position = checksum(), 0
    with filesystem.open_input(uri) as file:
        while data := file.read_at(_READ_BYTES, position):
            digest.update(data)
            position += len(data)
    return str(digest.hexdigest())


_NAMED = 100


def describe(
    folder: str,
    options: PackOptions,
    sources: Sequence[Source],
    request: dict[str, Any],
    *,
    runs: Sequence[RunFooter],
    first_labels: Sequence[int],
    written: Sequence[Written],
) -> Manifest:
    """Write what stands beside the shards; the manifest last.

    Args:
        folder: of the set.
        options: what was asked for.
        sources: that were packed.
        request: see `lafs_ray.data.packing.request`.
        runs: of the first pass.
        first_labels: first label of each source, then the number of all labels.
        written: the shards, in order.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """
    labels = np.frombuffer(b"".join(one.labels for one in written), LABEL)
    buffer = io.BytesIO()
    np.save(buffer, labels)
    size = options.rules.size
    files = {
        LABELS: buffer.getvalue(),
        IDENTITIES: _identity_table(sources, first_labels, labels),
        "property": f"{first_labels[-1]},{size},{size}".encode(),
    }
    for name, content in files.items():
        with filesystem.atomic_write(filesystem.join(folder, name)) as file:
            file.write(content)
    left_out = sum(run.left_out for run in runs)
    manifest = Manifest(
        images=len(labels),
        identities=first_labels[-1],
        unlabeled=int((labels < 0).sum()),
        image_size=size,
        color_order=options.color_order,
        seed=options.seed,
        left_out={"images": left_out, "first": named_bad(runs)},
        encoded=sum(run.encoded for run in runs),
        sources=tuple(
            {**described, "first_label": first, "identities": after - first}
            for described, first, after in zip(
                request["sources"], first_labels, first_labels[1:], strict=False
            )
        ),
        request=request,
        checksums={name: file_digest(filesystem.join(folder, name)) for name in files},
        shards=tuple(one.entry for one in written),
        lafs_ray=__version__,
    )
    with filesystem.atomic_write(filesystem.join(folder, MANIFEST)) as file:
        file.write(manifest.as_json())
    return manifest


def named_bad(runs: Sequence[RunFooter]) -> list[str]:
    """The first hundred records that were left out, a line each."""
    in_order = sorted(runs, key=lambda run: run.first)
    return [line for run in in_order for line in run.named][:_NAMED]


def _identity_table(
    sources: Sequence[Source], first_labels: Sequence[int], labels: NDArray[np.int32]
) -> bytes:
    """CSV: what each label of the set stands for, and how many images it has."""
    total = first_labels[-1]
    uris: list[str] = []
    names: list[str] = []
    for source, first, after in zip(sources, first_labels, first_labels[1:], strict=False):
        uris += [source.uri] * (after - first)
        names += source.names if source.names is not None else map(str, range(after - first))
    columns = {
        "label": np.arange(total),
        "source": pa.array(uris, pa.string()),
        "name": pa.array(names, pa.string()),
        "images": np.bincount(labels[labels >= 0], minlength=total),
    }
    buffer = io.BytesIO()
    csv.write_csv(pa.table(columns), buffer)
    return buffer.getvalue()

"""Pass 2: merge the sorted runs into shards; then write the metadata files of the set."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray import __version__
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import IDENTITIES, LABEL, LABELS, MANIFEST, Manifest, ShardEntry
from lafs_ray.data.packing.options import PackPlan
from lafs_ray.data.packing.pack_dir import FinishedShard, file_digest, shard_name
from lafs_ray.data.packing.sorted_runs import SortedRun, first_errors, read_rows
from lafs_ray.data.packing.source_labels import SourceLabels
from lafs_ray.data.recordio import Body, Header, RecordWriter, pack
from lafs_ray.errors import DataError

# Memory of a record's row, its position and its slice, in addition to the image.
_ROW_BYTES = 120


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """Inputs of pass 2.

    Args:
        plan: of the packing.
        runs: all of them, in the order of their records.
        labels: of the sources.
    """

    plan: PackPlan
    runs: tuple[SortedRun, ...]
    labels: SourceLabels


def write_shard(inputs: MergeInputs, shard: int) -> FinishedShard:
    """Write a shard: header flag 0, label, id = key, id2 = record number over all sources.

    Raises:
        DataError: a run is missing, or the disk is full.
    """
    plan = inputs.plan
    name = shard_name(shard, plan.num_shards)
    rows, run_numbers = _read_shard_rows(inputs.runs, shard)
    source = np.searchsorted(plan.starts, rows["number"], side="right") - 1
    labels = inputs.labels.of(rows["label"], source).astype(LABEL)
    images = _read_images(inputs, shard, rows, run_numbers)
    with RecordWriter(filesystem.join(plan.out, name)) as writer:
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
    return FinishedShard(shard, entry, labels.tobytes())


def _read_shard_rows(runs: Sequence[SortedRun], shard: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the rows of a shard in the order of their positions, and the run of each."""
    parts = []
    for run in runs:
        with reading.open_input(run.uri) as file:
            parts.append(read_rows(file, run, shard))
    rows = np.concatenate(parts)
    run_numbers = np.repeat(np.arange(len(runs), dtype=np.int32), [len(part) for part in parts])
    order = np.argsort(rows["position"])
    return rows[order], run_numbers[order]


def _read_images(inputs: MergeInputs, shard: int, rows: NDArray[Any], run_numbers: NDArray[np.int32]) -> Iterator[Body]:
    """Yield the images of a shard in order, with one block of them in memory at a time."""
    offsets = [run.byte_starts[shard] for run in inputs.runs]
    ends = np.cumsum(rows["size"].astype(np.int64) + _ROW_BYTES)
    first = 0
    while first < len(rows):
        begin = ends[first - 1] if first else 0
        block_end = begin + inputs.plan.options.task_bytes
        stop = max(int(np.searchsorted(ends, block_end)), first + 1)
        sizes, members = rows["size"][first:stop].astype(np.int64), run_numbers[first:stop]
        images: list[Body] = [b""] * (stop - first)
        for run in np.unique(members).tolist():
            # The next positions of a shard are one contiguous byte range of every run.
            indices = np.flatnonzero(members == run)
            bounds = np.concatenate([[0], np.cumsum(sizes[indices])]).tolist()
            data = _read_range(inputs.runs[run].uri, offsets[run], bounds[-1])
            offsets[run] += bounds[-1]
            for index, start, end in zip(indices.tolist(), bounds, bounds[1:], strict=False):
                images[index] = data[start:end]
        yield from images
        first = stop


def _read_range(uri: str, offset: int, size: int) -> memoryview:
    with reading.open_input(uri) as file:
        data = memoryview(file.read_at(size, offset))
    if len(data) != size:
        fix = "delete the scratch folder and start again"
        found = f"{len(data)} bytes at offset {offset}"
        raise DataError(uri, found=found, expected=f"{size} bytes", fix=fix)
    return data


def write_metadata(inputs: MergeInputs, shards: Sequence[FinishedShard]) -> Manifest:
    """Write labels, identities, `property` and, last, the manifest.

    Args:
        inputs: of pass 2.
        shards: all of them, in order.

    Raises:
        DataError: the disk is full, or the folder is not writable.
    """
    plan, runs, first_labels = inputs.plan, inputs.runs, inputs.labels.first
    labels = np.frombuffer(b"".join(shard.labels for shard in shards), LABEL)
    buffer = io.BytesIO()
    np.save(buffer, labels)
    size = plan.options.rules.size
    files = {
        LABELS: buffer.getvalue(),
        IDENTITIES: _identity_table(inputs, labels),
        "property": f"{first_labels[-1]},{size},{size}".encode(),
    }
    for name, content in files.items():
        with filesystem.atomic_write(filesystem.join(plan.out, name)) as file:
            file.write(content)
    label_ranges = pairwise(first_labels)
    manifest = Manifest(
        images=len(labels),
        identities=first_labels[-1],
        unlabeled=int((labels < 0).sum()),
        image_size=size,
        color_order=plan.options.color_order,
        seed=plan.options.seed,
        left_out={"images": sum(run.num_bad for run in runs), "first": first_errors(runs)},
        encoded=sum(run.num_reencoded for run in runs),
        sources=tuple(
            {**source, "first_label": first, "identities": stop - first}
            for source, (first, stop) in zip(plan.request["sources"], label_ranges, strict=True)
        ),
        request=plan.request,
        checksums={name: file_digest(filesystem.join(plan.out, name)) for name in files},
        shards=tuple(shard.entry for shard in shards),
        lafs_ray=__version__,
    )
    with filesystem.atomic_write(filesystem.join(plan.out, MANIFEST)) as file:
        file.write(manifest.as_json())
    return manifest


def _identity_table(inputs: MergeInputs, labels: NDArray[np.int32]) -> bytes:
    """Return a CSV with source, name and number of images of each label."""
    total, uris, names = inputs.labels.first[-1], list[str](), list[str]()
    for source, of_source in zip(inputs.plan.sources, inputs.labels.names, strict=True):
        uris += [source.uri] * len(of_source)
        names += of_source
    columns = {
        "label": np.arange(total),
        "source": pa.array(uris, pa.string()),
        "name": pa.array(names, pa.string()),
        "images": np.bincount(labels[labels >= 0], minlength=total),
    }
    buffer = io.BytesIO()
    csv.write_csv(pa.table(columns), buffer)
    return buffer.getvalue()

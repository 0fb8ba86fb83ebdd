"""What stands beside the shards of a packed set: labels, identities, counts and the manifest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray import __version__
from lafs_ray.data import storage
from lafs_ray.data.manifest import IDENTITIES, LABEL, LABELS, MANIFEST, Manifest
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.runs import RunFooter
from lafs_ray.data.packing.sources import Source
from lafs_ray.data.packing.writing import Written, file_digest

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
        with storage.atomic_write(storage.join(folder, name)) as file:
            file.write(content)
    left_out = sum(run.left_out for run in runs)
    manifest = Manifest(
        images=len(labels),
        identities=first_labels[-1],
        unlabelled=int((labels < 0).sum()),
        image_size=size,
        colour_order=options.colour_order,
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
        checksums={name: file_digest(storage.join(folder, name)) for name in files},
        shards=tuple(one.entry for one in written),
        lafs_ray=__version__,
    )
    with storage.atomic_write(storage.join(folder, MANIFEST)) as file:
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

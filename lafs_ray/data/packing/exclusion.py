"""Records that a packing leaves out, by a list such as an audit's `exclude.csv`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.packing.sources import ImageFileSource, ImageRow, ImageSource, RecordSource
from lafs_ray.errors import DataError

_COLUMNS = ("shard", "key")


@dataclass(frozen=True, eq=False, kw_only=True)
class ReducedSource(ImageSource):
    """A source without some of its records.

    Args:
        source: with all of them.
        kept: their numbers there, ascending, int64 [num_records].
    """

    source: ImageSource
    kept: NDArray[np.int64]

    def read(self, first: int, stop: int) -> Iterator[ImageRow]:
        """Read records first…stop-1; see `ImageSource`."""
        numbers = self.kept[first:stop]
        if not len(numbers):
            return
        # Read in one piece: a list leaves out few records.
        begin = int(numbers[0])
        kept = np.zeros(int(numbers[-1]) + 1 - begin, dtype=bool)
        kept[numbers - begin] = True
        for row, is_kept in zip(self.source.read(begin, begin + len(kept)), kept.tolist(), strict=True):
            if is_kept:
                yield row


def exclude_records(sources: tuple[ImageSource, ...], uri: str) -> tuple[ImageSource, ...]:
    """Leave out the records that a list names.

    Args:
        sources: of the packing.
        uri: a `.csv` or `.parquet` with the columns shard (the `.rec`; empty for image files) and key (of the record,
            or the file name relative to its folder); further columns are ignored.

    Raises:
        DataError: the list is missing or damaged, names a record that no source has, or leaves nothing of a source.
    """
    listed = _read(uri)
    digest = hashlib.blake2b("\n".join(sorted(map(str, listed))).encode(), digest_size=16).hexdigest()
    found: set[tuple[str, str]] = set()
    reduced = []
    for source in sources:
        names = _names(source)
        excluded = np.array([name in listed for name in names], dtype=bool)
        found.update(name for name, is_out in zip(names, excluded.tolist(), strict=True) if is_out)
        reduced.append(_without(source, excluded, digest, uri) if excluded.any() else source)
    unknown = sorted(listed - found)
    if unknown:
        raise DataError(
            uri,
            found=f"{' '.join(unknown[0]).strip()}, which no source has; such rows: {len(unknown)} of {len(listed)}",
            expected="records of the sources: shard and key as `--inspect` and the audit name them",
            fix="pack the set that was audited, from the same place, or remove these rows",
        )
    return tuple(reduced)


def _read(uri: str) -> set[tuple[str, str]]:
    try:
        with reading.open_input(uri) as file:
            if uri.endswith(".parquet"):
                table = pq.read_table(file)
            else:
                text = csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
                table = csv.read_csv(file, convert_options=text)
        columns = [table[name].cast(pa.string()).to_pylist() for name in _COLUMNS]
    except DAMAGE as error:
        raise DataError(
            uri,
            found=str(error).splitlines()[0],
            expected="a .csv or .parquet with the columns shard and key",
            fix="give the exclude.csv of an audit, or write the two columns",
        ) from None
    return {(filesystem.absolute(shard) if shard else "", key) for shard, key in zip(*columns, strict=True)}


def _names(source: ImageSource) -> list[tuple[str, str]]:
    """Return shard and key of each record, as a list names them."""
    if isinstance(source, RecordSource):
        faces = source.faces
        shards = np.searchsorted(faces.shard_starts, np.arange(source.num_records), side="right") - 1
        uris = [filesystem.absolute(uri) for uri in faces.shard_uris]
        return [(uris[shard], str(key)) for shard, key in zip(shards.tolist(), faces.keys.tolist(), strict=True)]
    assert isinstance(source, ImageFileSource), source.kind
    return [("", name) for name in source.files.to_pylist()]


def _without(source: ImageSource, excluded: NDArray[np.bool_], digest: str, uri: str) -> ReducedSource:
    kept = np.flatnonzero(~excluded)
    if not len(kept):
        raise DataError(uri, found=f"all records of {source.uri}", expected="some that remain", fix="remove the source")
    return ReducedSource(
        uri=source.uri,
        kind=source.kind,
        num_records=len(kept),
        size_bytes=source.size_bytes * len(kept) // source.num_records,
        fingerprint=hashlib.blake2b(f"{source.fingerprint} without {digest}".encode(), digest_size=16).hexdigest(),
        num_identities=source.num_identities,
        names=source.names,
        has_landmarks=source.has_landmarks,
        source=source,
        kept=kept,
    )

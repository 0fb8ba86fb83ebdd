"""A part of an aligning: the faces of a range of photos in one Parquet file."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lafs_ray.data.aligning.photos import PhotoResult, PhotoRules, align_faces
from lafs_ray.data.detection.base import Backend, detector_of
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.parquet_table import read_parquet
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.packing.sources import ImageRow, ImageSource
from lafs_ray.errors import DataError

POINTS = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
"""Columns of the five points, as in a list of images."""

ROWS = pa.schema(
    [
        ("number", pa.int64()),
        ("path", pa.large_string()),
        ("label", pa.int32()),
        ("status", pa.string()),
        ("faces", pa.int32()),
        ("score", pa.float32()),
        ("eye_px", pa.float32()),
        *((name, pa.float32()) for name in POINTS),
        ("orientation", pa.int8()),
        ("second_search", pa.bool_()),
        ("reason", pa.string()),
        ("image", pa.binary()),
    ]
)
"""A row for each face that is kept, and one for each photo without."""

_SUMMARY = b"lafs_ray.part"
_MOST_PHOTOS, _LEAST_PHOTOS, _PARTS = 512, 64, 100


@dataclass(frozen=True)
class Part:
    """Photos first…stop-1 of a source."""

    source: int
    first: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"part-{self.source:03}-{self.first:012}-{self.stop:012}.parquet"


@dataclass(frozen=True)
class Counts:
    """What became of photos.

    Args:
        photos: all of them.
        faces: kept.
        statuses: photos by `Status`.
        several: photos with several faces within the rules.
        second_search: photos whose faces were found by the second search.
        turned: photos that EXIF metadata turns.
        size_bytes: of the aligned faces.
    """

    photos: int = 0
    faces: int = 0
    statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    several: int = 0
    second_search: int = 0
    turned: int = 0
    size_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        names = {**self.statuses, **other.statuses}
        return Counts(
            self.photos + other.photos,
            self.faces + other.faces,
            {name: self.statuses.get(name, 0) + other.statuses.get(name, 0) for name in names},
            self.several + other.several,
            self.second_search + other.second_search,
            self.turned + other.turned,
            self.size_bytes + other.size_bytes,
        )


@dataclass(frozen=True)
class FinishedPart:
    """A part that was written."""

    part: Part
    counts: Counts


@dataclass(frozen=True, eq=False)
class AlignJob:
    """What the tasks of an aligning share.

    Args:
        sources: of the photos.
        backend: of the detector.
        rules: how photos become faces.
        folder: of the parts.
    """

    sources: tuple[ImageSource, ...]
    backend: Backend
    rules: PhotoRules
    folder: str

    def parts(self) -> list[Part]:
        """Return all parts, the same for any number of workers."""
        result = []
        for number, source in enumerate(self.sources):
            step = min(max(source.num_records // _PARTS, _LEAST_PHOTOS), _MOST_PHOTOS)
            starts = range(0, source.num_records, step)
            result += [Part(number, first, min(first + step, source.num_records)) for first in starts]
        return result


def write_part(job: AlignJob, part: Part) -> FinishedPart:
    """Align the photos of a part and write its file.

    Raises:
        DataError: the source has changed, or the disk is full.
    """
    detector, counts, rows = detector_of(job.backend), Counts(), list[dict[str, Any]]()
    for number, row in enumerate(job.sources[part.source].read(part.first, part.stop), part.first):
        result = PhotoResult("unreadable", row.error) if row.error else align_faces(detector, row.image, job.rules)
        new_rows = list(_rows(number, row, result))
        rows += new_rows
        counts += _counts(result, new_rows)
    summary = {_SUMMARY: json.dumps(dataclasses.asdict(counts)).encode()}
    table = pa.Table.from_pylist(rows, ROWS.with_metadata(summary))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression={name: "zstd" if name != "image" else "none" for name in ROWS.names})
    with filesystem.atomic_write(filesystem.join(job.folder, part.name)) as file:
        file.write(buffer.getbuffer())
    return FinishedPart(part, counts)


def _rows(number: int, row: ImageRow, result: PhotoResult) -> Iterator[dict[str, Any]]:
    found = result.found
    common = {
        "number": number,
        "path": row.name,
        "label": row.label,
        "status": result.status,
        "faces": 0 if found is None else found.num_good,
        "orientation": result.orientation,
        "second_search": found is not None and found.second_search and result.status == "aligned",
        "reason": result.reason or None,
    }
    if found is None or not len(found.faces):
        yield common
        return
    faces = found.faces
    for face, points in enumerate(faces.points):
        yield {
            **common,
            "score": faces.scores[face],
            "eye_px": faces.eye_distances[face],
            **dict(zip(POINTS, points.ravel().tolist(), strict=True)),
            "image": result.images[face] if result.images else None,
        }


def _counts(result: PhotoResult, rows: Sequence[dict[str, Any]]) -> Counts:
    return Counts(
        photos=1,
        faces=len(rows) if result.status == "aligned" else 0,
        statuses={result.status: 1},
        several=rows[0]["faces"] > 1,
        second_search=rows[0]["second_search"],
        turned=result.orientation != 1,
        size_bytes=sum(map(len, result.images)),
    )


def finished_part(folder: str, part: Part) -> FinishedPart | None:
    """Return a part that an earlier process wrote; None: it has to be written."""
    uri = filesystem.join(folder, part.name)
    with reading.open_input(uri) as file:
        try:
            metadata = pq.read_schema(file).metadata
            return FinishedPart(part, Counts(**json.loads(metadata[_SUMMARY])))
        except (*DAMAGE, KeyError, TypeError, ValueError):
            return None


def read_part(folder: str, part: Part, columns: Sequence[str]) -> pa.Table:
    """Read columns of a part.

    Raises:
        DataError: the file is missing or damaged.
    """
    uri = filesystem.join(folder, part.name)
    with reading.open_input(uri) as file:
        try:
            return read_parquet(file, columns)
        except DAMAGE as error:
            found = " ".join(str(error).split())
            fix = "delete this file; the same command writes it again"
            raise DataError(uri, found=found, expected="a part written by this job", fix=fix) from error

"""The aligned faces of a source, as the packer reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.data.aligning.parts import AlignJob, FinishedPart, Part, read_part
from lafs_ray.data.packing.sources import ImageRow, ImageSource


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedSource(ImageSource):
    """Aligned faces in the order of their photos.

    Args:
        folder: of the parts.
        parts: of this source, in order.
        starts: number of the first face of each part, then of all; int64 [parts + 1].
    """

    folder: str
    parts: tuple[Part, ...]
    starts: NDArray[np.int64]

    def read(self, first: int, stop: int) -> Iterator[ImageRow]:
        """Read faces first…stop-1; see `ImageSource`."""
        begin = int(np.searchsorted(self.starts, first, side="right")) - 1
        for number in range(begin, len(self.parts)):
            start, end = self.starts[number : number + 2].tolist()
            if start >= stop:
                return
            rows = read_part(self.folder, self.parts[number], ("path", "label", "image"))
            rows = rows.filter(pc.is_valid(rows["image"]))
            assert rows.num_rows == end - start, f"{self.parts[number].name} has {rows.num_rows} faces"
            rows = rows.slice(max(first - start, 0), min(stop, end) - max(first, start))
            for path, label, image in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                yield ImageRow(label, image, None, path, "")


def aligned_sources(job: AlignJob, finished: Sequence[FinishedPart]) -> tuple[AlignedSource, ...]:
    """Return the faces of each source that has any.

    Args:
        job: the aligning.
        finished: all of its parts, in order.
    """
    result = []
    for number, source in enumerate(job.sources):
        own = [one for one in finished if one.part.source == number]
        starts = np.cumsum([0, *(one.counts.faces for one in own)]).astype(np.int64)
        how = json.dumps([source.fingerprint, job.backend.fingerprint, asdict(job.rules)])
        result.append(
            AlignedSource(
                uri=source.uri,
                kind=source.kind,
                num_records=int(starts[-1]),
                size_bytes=sum(one.counts.size_bytes for one in own),
                fingerprint=hashlib.blake2b(how.encode(), digest_size=16).hexdigest(),
                num_identities=source.num_identities,
                names=source.names,
                has_landmarks=True,
                folder=job.folder,
                parts=tuple(one.part for one in own),
                starts=starts,
            )
        )
    return tuple(result)

"""Small `.rec` files for the tests of face sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data import recordio
from lafs_ray.data.face_set import FaceRows, FaceSet, open_faces
from lafs_ray.errors import DataError

GOLDEN = Path(__file__).parent.parent / "golden"
INSIGHTFACE = GOLDEN / "h3_insightface_rec"
PLAIN = GOLDEN / "h5_plain_rec" / "data.rec"


def write_plain(path: Path, num_records: int, payload_bytes: int = 64) -> list[int]:
    """Write a plain file with an index; record k's payload repeats k. Return the offsets."""
    with recordio.RecordWriter(str(path)) as writer:
        return [
            writer.write(key, recordio.pack(recordio.Header(0, float(key), key), bytes([key]) * payload_bytes))
            for key in range(num_records)
        ]


def write_insightface(
    path: Path, image_labels: list[float], ranges: list[tuple[float, ...]], header: tuple[float, float] | None = None
) -> None:
    """Write a file in insightface's layout with these image labels and identity ranges."""
    first = len(image_labels) + 1
    ends = header or (first, first + len(ranges))
    with recordio.RecordWriter(str(path)) as writer:
        writer.write(0, recordio.pack(recordio.Header(2, ends, 0), b""))
        for key, label in enumerate(image_labels, 1):
            writer.write(key, recordio.pack(recordio.Header(0, label, key), b"image %d" % key))
        for key, images in enumerate(ranges, first):
            writer.write(key, recordio.pack(recordio.Header(len(images), images, key), b""))


def rewrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def all_rows(faces: FaceSet) -> FaceRows:
    return faces.read(np.arange(faces.num_images))


def refusal(path: Path | str) -> DataError:
    """Return the error that opening the set raises."""
    with pytest.raises(DataError) as error:
        open_faces(str(path))
    return error.value

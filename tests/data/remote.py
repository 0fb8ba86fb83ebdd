"""Helpers of the tests that read from an object store."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem


def put(uri: str, content: bytes, *, killed: bool = False) -> None:
    with filesystem.atomic_write(uri) as file:
        file.write(content)
        if killed:
            raise RuntimeError("killed")


def rows_of(faces: FaceSet, numbers: Iterable[int]) -> list[bytes]:
    rows = faces.read(np.array(list(numbers)))
    assert rows.errors == [""] * len(rows.images)
    return rows.images

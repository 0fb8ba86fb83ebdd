"""Sources to pack, and the content of packed folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.data.bad_records import MaxBad
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.packed_set import Manifest
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import Apply, apply_in_process, pack_faces
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.errors import DataError
from tests.training.faces import face_jpegs

# Memory for about 20 of the 120 faces of the test set, so that there are many runs, and many blocks per shard.
SMALL_RUNS = 60_000


def packed(sources: Sequence[Path | str], out: Path, apply: Apply = apply_in_process, **options: Any) -> Manifest:
    """Pack, by default in this process; `max_bad` may be a number."""
    if isinstance(options.get("max_bad"), int):
        options["max_bad"] = MaxBad(options["max_bad"])
    return pack_faces(PackOptions(tuple(map(str, sources)), str(out), **options), apply)


def refusal(*arguments: Any, **options: Any) -> DataError:
    """Return the error of a packing that fails."""
    with pytest.raises(DataError) as raised:
        packed(*arguments, **options)
    return raised.value


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def write_folder(folder: Path, classes: dict[str, int], ending: str = ".jpg") -> None:
    """Write images into subfolders: {name of the class: number of images}."""
    jpegs = iter(face_jpegs(sum(classes.values()), seed=3))
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{number}{ending}").write_bytes(next(jpegs))


def write_plain(path: Path, labels: Sequence[float], images: Sequence[bytes]) -> None:
    """Write a plain `.rec` with an index."""
    with RecordWriter(str(path)) as writer:
        for key, (label, image) in enumerate(zip(labels, images, strict=True)):
            writer.write(key, pack(Header(0, label, key), image))


def images_by_label(path: Path | str) -> dict[int, list[bytes]]:
    """Return the images of each label, sorted."""
    faces = open_faces(str(path))
    rows, result = faces.read(np.arange(faces.num_images)), {}
    assert not any(rows.errors)
    for label, image in zip(rows.label.tolist(), rows.images, strict=True):
        result.setdefault(label, []).append(image)
    return {label: sorted(images) for label, images in sorted(result.items())}


def names_below(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))

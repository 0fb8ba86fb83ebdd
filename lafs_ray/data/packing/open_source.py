"""From what a user names to a source: `.rec` files, a folder of images, or a list of them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import list_tree
from lafs_ray.data.packing.lists import ENDINGS, numbered, read_list
from lafs_ray.data.packing.sources import ImageSource, RecordSource, Source
from lafs_ray.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


def open_source(path: str, landmarks: str | None = None) -> Source:
    """Open what a user names: `.rec` files, a list, or a folder of images.

    Args:
        path: a `.rec`, a folder of them or a pattern; a `.csv` or `.parquet`; a folder of images.
        landmarks: a list of five landmarks for the images of a folder, named relative to it.

    Raises:
        DataError: nothing is there, it holds no images, or landmarks were given for `.rec` files.
    """
    uri = filesystem.absolute(path)
    if filesystem.file_name(uri).endswith(ENDINGS):
        source: Source = _open_list(uri)
    elif _holds_images(uri):
        return _open_folder(uri, landmarks)
    elif not uri.endswith(".rec") and not set(uri) & set("*?[") and not filesystem.exists(uri):
        expected = "a .rec file, a pattern of some, a folder of images, or a list (.csv, .parquet)"
        raise DataError(path, found="no such file", expected=expected, fix="check the path")
    else:
        faces = open_faces(uri)
        stamps = tuple(filesystem.file_stamp(shard) for shard in faces.shard_uris)
        source = RecordSource(uri, faces, stamps)
    if landmarks is not None:
        raise DataError(
            landmarks,
            found=f"landmarks for {path}",
            expected="landmarks for a folder of images",
            fix="a list has them as columns of its own; the images of .rec files are aligned",
        )
    return source


def _holds_images(uri: str) -> bool:
    """Whether it is a folder without `.rec` files in it."""
    is_folder = filesystem.is_folder(uri)
    return is_folder and not any(name.endswith(".rec") for name in filesystem.list_names(uri))


def _open_folder(uri: str, landmarks: str | None) -> ImageSource:
    """Images below a folder; the subfolder directly in it is the class.

    Raises:
        DataError: there are no images, or some in classes and some outside.
    """
    found = [file for file in list_tree(uri) if file[0].lower().endswith(IMAGE_ENDINGS)]
    if not found:
        expected = f"images ({', '.join(IMAGE_ENDINGS)}) or .rec files in it"
        raise DataError(uri, found="none of either", expected=expected, fix="check the path")
    # By class, then by name; "/" would sort "a-b/1" before "a/1".
    found.sort(key=lambda file: file[0].split("/"))
    classes = [name.split("/", 1)[0] if "/" in name else "" for name, _, _ in found]
    if "" in classes and len(set(classes)) > 1:
        example = next(name for name, _, _ in found if "/" not in name)
        raise DataError(
            uri,
            found=f"{classes.count('')} images directly in the folder ({example}), others in "
            f"{len(set(classes)) - 1} subfolders",
            expected="a subfolder for each person, or no subfolders (images without labels)",
            fix="move the images that lie outside",
        )
    files = pa.array([name for name, _, _ in found], pa.large_string())
    stamps = np.array([file[1:] for file in found], np.int64)
    labels, names = numbered(pa.array(classes, pa.large_string()))
    if names == [""]:
        labels, names = labels - 1, []
    digest = hashlib.blake2b(stamps.tobytes(), digest_size=16)
    digest.update("\n".join(files.to_pylist()).encode())
    points = None if landmarks is None else _points_of(landmarks, files)
    if landmarks is not None:
        digest.update(filesystem.read_bytes(landmarks))
    return ImageSource(
        uri, "folder", uri, files, labels, names, digest.hexdigest(), stamps, landmarks=points
    )


def _points_of(landmarks: str, files: pa.Array) -> NDArray[np.float32]:
    """The landmarks of each file, nan where the list has none."""
    rows = read_list(landmarks)
    places = pc.index_in(files, value_set=rows.paths)
    if rows.landmarks is None or places.null_count == len(files):
        found = "no landmarks" if rows.landmarks is None else f"names such as {rows.paths[0]}"
        raise DataError(
            landmarks,
            found=found,
            expected=f"columns path, x1, y1 … x5, y5, with paths such as {files[0]}",
            fix="name the images relative to their folder",
        )
    points = np.full((len(files), 5, 2), np.nan, np.float32)
    known = places.is_valid().to_numpy(zero_copy_only=False)
    points[known] = rows.landmarks[places.drop_null().to_numpy()]
    return points


def _open_list(uri: str) -> ImageSource:
    """Images named in a list, relative to its folder."""
    stamp, rows = filesystem.file_stamp(uri), read_list(uri)
    labels = np.full(len(rows.paths), -1, np.int32)
    names: list[str] = []
    if rows.labels is not None:
        labels, names = numbered(rows.labels)
    base = filesystem.parent(uri)
    content: Any = hashlib.blake2b(filesystem.read_bytes(uri), digest_size=16).hexdigest()
    return ImageSource(
        *(uri, "list", base, rows.paths, labels, names, content),
        list_stamp=stamp,
        landmarks=rows.landmarks,
    )

"""Open the sources of a packing by path."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.image_columns import has_images
from lafs_ray.data.io.walk import IMAGE_ENDINGS, find_images
from lafs_ray.data.label_names import numbered
from lafs_ray.data.packing.lists import LIST_SUFFIXES, read_list
from lafs_ray.data.packing.sources import ImageFileSource, ImageSource, RecordSource, file_stamps
from lafs_ray.data.set_files import is_set, kind_of
from lafs_ray.data.shard_layout import RowGroups, TarMembers
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

_KINDS = {type(None): "records", TarMembers: "webdataset", RowGroups: "parquet"}


def open_source(path: str, landmarks: str | None = None) -> ImageSource:
    """Open `.rec`, `.tar` or Parquet files with images, a list of images, or a folder of images.

    Args:
        path: as `open_faces` takes it; a `.csv` or `.parquet` with paths; a folder of images.
        landmarks: a list of five landmarks for the images of a folder, with paths relative to it.

    Raises:
        DataError: nothing is there, it holds no images, or landmarks were given for a set.
    """
    uri = filesystem.absolute(path)
    is_pattern = bool(set(uri) & set("*?[{"))
    is_list = filesystem.file_name(uri).endswith(LIST_SUFFIXES) and not is_pattern
    is_folder = not is_list and filesystem.is_folder(uri)
    if is_folder and not is_set(uri):
        return _open_folder(uri, landmarks)
    if not uri.endswith(".rec") and not is_pattern and not filesystem.exists(uri):
        expected = "a .rec, .tar or .parquet file or pattern, a folder of images, or a list (.csv, .parquet)"
        raise DataError(path, found="no such file", expected=expected, fix="check the path")
    is_list = is_list and not (kind_of(uri) == "parquet" and has_images(uri))
    if landmarks is not None:
        raise DataError(
            landmarks,
            found=f"landmarks for {path}",
            expected="landmarks for a folder of images",
            fix="a list has its landmarks as columns; for photos in shards: lafs align",
        )
    if is_list:
        return _open_list(uri)
    faces = open_faces(uri)
    stamps = tuple(filesystem.file_stamp(shard) for shard in faces.shard_uris)
    times = str([modified for _, modified in stamps])
    return RecordSource(
        uri=uri,
        kind=_KINDS[type(faces.layout_of(0))],
        num_records=faces.num_images,
        size_bytes=int(faces.sizes.sum()),
        fingerprint=_hash(f"{faces.fingerprint}\n{times}\n".encode()),
        num_identities=faces.num_identities,
        names=faces.label_names,
        faces=faces,
        stamps=stamps,
    )


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _open_folder(uri: str, landmarks: str | None) -> ImageFileSource:
    """Open the images below a folder; the subfolder directly in it is the class.

    Raises:
        DataError: there are no images, or some in subfolders and some outside.
    """
    found, passed_over = find_images(uri)
    for line in passed_over.lines():
        logger.warning("%s: %s", uri, line)
    if not found:
        expected = f"images ({', '.join(IMAGE_ENDINGS)}) or .rec files in it"
        raise DataError(uri, found="none of either", expected=expected, fix="check the path")
    classes = [file.name.split("/", 1)[0] if "/" in file.name else "" for file in found]
    _check_classes(uri, classes, [file.name for file in found])
    files = pa.array([file.name for file in found], pa.large_string())
    stamps = np.array([(file.size, file.modified_ns) for file in found], np.int64)
    labels, names = numbered(pa.array(classes, pa.large_string()))
    if names == [""]:
        labels, names = labels - 1, []
    list_content = b"" if landmarks is None else filesystem.read_bytes(landmarks)
    return ImageFileSource(
        uri=uri,
        kind="folder",
        num_records=len(files),
        size_bytes=int(stamps[:, 0].sum()),
        fingerprint=_hash(stamps.tobytes() + "\n".join(files.to_pylist()).encode() + list_content),
        num_identities=len(names),
        names=names,
        has_landmarks=landmarks is not None,
        base=uri,
        files=files,
        labels=labels,
        landmarks=None if landmarks is None else _find_landmarks(landmarks, files),
        stamps=stamps,
    )


def _check_classes(uri: str, classes: list[str], files: list[str]) -> None:
    num_outside = classes.count("")
    if 0 < num_outside < len(files):
        example = next(name for name in files if "/" not in name)
        raise DataError(
            uri,
            found=f"{num_outside} of {len(files)} images directly in the folder ({example}), the others in subfolders",
            expected="one subfolder per identity, or no subfolders (images without labels)",
            fix="move the images that are directly in the folder",
        )


def _find_landmarks(landmarks: str, files: pa.Array) -> NDArray[np.float32]:
    """Return the landmarks of each file, [n, 5, 2]; nan where the list has none.

    Raises:
        DataError: the list has no landmarks, none of these files, or a path twice.
    """
    rows = read_list(landmarks)
    paths = pc.replace_substring_regex(rows.paths, r"^(\./)+", "")
    indices = pc.index_in(files, value_set=paths)
    if rows.landmarks is None or indices.null_count == len(files):
        found = "no landmarks" if rows.landmarks is None else f"paths such as {rows.paths[0]}"
        raise DataError(
            landmarks,
            found=found,
            expected=f"columns path, x1, y1 … x5, y5, with paths such as {files[0]}",
            fix="write paths relative to the folder of images",
        )
    counts = pc.value_counts(paths)
    if repeated := [one["values"] for one in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]:
        raise DataError(
            landmarks,
            found=f"{len(repeated)} path{'s' * (len(repeated) > 1)} more than once, such as {repeated[0]}",
            expected="one face for each image of a folder",
            fix="remove the rows of other faces; to pack several faces of an image, pack a list with landmarks",
        )
    unused = np.flatnonzero(pc.is_in(paths, value_set=files).to_numpy(zero_copy_only=False) == 0)
    if len(unused):
        example = paths[int(unused[0])].as_py()
        logger.warning("%s: %d of %d rows are of no image, such as %s", landmarks, len(unused), len(paths), example)
    points = np.full((len(files), 5, 2), np.nan, np.float32)
    known = indices.is_valid().to_numpy(zero_copy_only=False)
    points[known] = rows.landmarks[indices.drop_null().to_numpy()]
    return points


def _open_list(uri: str) -> ImageFileSource:
    """Open the images named in a list, relative to its folder."""
    stamp, rows = filesystem.file_stamp(uri), read_list(uri)
    labels, names = np.full(len(rows.paths), -1, np.int32), list[str]()
    if rows.labels is not None:
        labels, names = numbered(rows.labels, by_number=True)
    base = filesystem.parent(uri)
    stamps, size_bytes = file_stamps(base, rows.paths)
    if (repeats := len(rows.paths) - len(pc.unique(rows.paths))) and rows.landmarks is None:
        logger.warning("%s: %d row%s of an image that an earlier row has", uri, repeats, "s" * (repeats > 1))
    return ImageFileSource(
        uri=uri,
        kind="list",
        num_records=len(rows.paths),
        size_bytes=size_bytes,
        fingerprint=_hash(filesystem.read_bytes(uri)),
        num_identities=len(names),
        names=names,
        has_landmarks=rows.landmarks is not None,
        base=base,
        files=rows.paths,
        labels=labels,
        landmarks=rows.landmarks,
        stamps=stamps,
        list_stamp=stamp,
    )

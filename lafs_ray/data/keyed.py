"""Faces under the names that a user knows them by: keys of records, or paths of image files.

Read in order, by number, as stored bytes; what is wrong with one is told in its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lafs_ray.data import storage
from lafs_ray.data.faces import FaceSet, open_faces
from lafs_ray.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class KeyedFace:
    """One stored face.

    Args:
        key: of its record, or the file's path relative to the folder.
        shard: the `.rec` file; None for an image file.
        label: None where it has none.
        image: encoded; empty where the record is damaged.
        where: file and key, for messages.
        error: what is wrong; empty where nothing is.
    """

    key: int | str
    shard: str | None
    label: int | None
    image: bytes
    where: str
    error: str


@dataclass(frozen=True, eq=False)
class RecordFaces:
    """The images of `.rec` files.

    Args:
        path: what was opened.
        faces: the set.
    """

    has_shards: ClassVar[bool] = True
    path: str
    faces: FaceSet

    @property
    def num_images(self) -> int:
        """Images in all files."""
        return self.faces.num_images

    def read(self, start: int, stop: int) -> list[KeyedFace]:
        """Faces start…stop-1.

        Raises:
            DataError: a file has vanished or changed.
        """
        rows = self.faces.read(np.arange(start, stop))
        columns = (rows.shard.tolist(), rows.key.tolist(), rows.label.tolist())
        found = []
        for shard, key, label, image, error in zip(*columns, rows.images, rows.errors, strict=True):
            uri = self.faces.shard_uris[shard]
            label = label if label >= 0 else None
            found.append(KeyedFace(key, uri, label, image, f"{uri}, key {key}", error))
        return found


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files below a folder.

    Args:
        path: the folder.
        names: paths relative to it, sorted.
    """

    has_shards: ClassVar[bool] = False
    path: str
    names: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Files."""
        return len(self.names)

    def read(self, start: int, stop: int) -> list[KeyedFace]:
        """Faces start…stop-1; a file that cannot be read is told in its row."""
        return [self._read(name) for name in self.names[start:stop]]

    def _read(self, name: str) -> KeyedFace:
        uri = storage.join(self.path, name)
        try:
            return KeyedFace(name, None, None, storage.read_bytes(uri), uri, "")
        except DataError as error:
            return KeyedFace(name, None, None, b"", uri, f"{uri}: found {error.found}")


def open_keyed(path: str) -> RecordFaces | ImageFiles:
    """Open a folder of image files, or a set as `open_faces` takes it.

    Raises:
        DataError: nothing is there, the folder holds neither images nor `.rec`, or a `.rec` is
            damaged beyond its records.
    """
    if not storage.is_folder(path) or any(n.endswith(".rec") for n in storage.list_names(path)):
        return RecordFaces(path, open_faces(path))
    names = storage.list_names(path, recursive=True)
    images = tuple(name for name in names if name.lower().endswith(IMAGE_ENDINGS))
    if not images:
        raise DataError(
            path,
            found=f"{len(names)} files, none of them an image" if names else "an empty folder",
            expected=f"files ending in {', '.join(IMAGE_ENDINGS)}, or .rec files",
            fix="give the folder of the aligned faces",
        )
    return ImageFiles(path, images)

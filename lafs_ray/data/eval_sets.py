"""Faces to be evaluated, by number: where they lie is decided here, who embeds them elsewhere.

A source is plain data that travels to other processes. Evaluation is exact, so a face that cannot
be read is a mistake that names its file and number; nothing is skipped or replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.align import align_face
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.verification_pairs import Pairs, read_pairs
from lafs_ray.errors import DataError

ColorOrder = Literal["rgb", "bgr"]


class FaceSource(Protocol):
    """Faces numbered from 0."""

    @property
    def num_images(self) -> int:
        """How many."""
        ...

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Faces start…stop-1: RGB, uint8 [stop - start, 112, 112, 3].

        Raises:
            DataError: one of them is missing, does not decode or has another size.
        """
        ...


@dataclass(frozen=True, eq=False)
class PairFaces:
    """The images of a pair file; 2i and 2i+1 are pair i.

    Args:
        uri: the file, for messages.
        pairs: its content.
        color_order: what its images decode to.
    """

    uri: str
    pairs: Pairs
    color_order: ColorOrder

    @property
    def num_images(self) -> int:
        """Two a pair."""
        return len(self.pairs.images)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `FaceSource.read`."""
        images = [
            decoded(
                self.pairs.images[number],
                self.color_order,
                f"{self.uri}, image {number} of pair {number // 2}",
            )
            for number in range(start, stop)
        ]
        return np.stack(images)


@dataclass(frozen=True, eq=False)
class LabeledFaces:
    """The images of a set whose labels are identities.

    Args:
        path: of the set, for messages.
        faces: the opened set.
        color_order: what its images decode to.
    """

    path: str
    faces: FaceSet
    color_order: ColorOrder

    @property
    def num_images(self) -> int:
        """Images of the set."""
        return self.faces.num_images

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Identity of each image, int64 [num_images].

        Raises:
            DataError: an image has no whole number ≥ 0 as its label, or its record is damaged.
        """
        labels = self.faces.labels()
        if (labels < 0).any():
            rows = self.faces.read(np.flatnonzero(labels < 0)[:1])
            raise DataError(
                f"{self.faces.shard_uris[rows.shard[0]]}, key {rows.key[0]}",
                found=rows.errors[0] or f"no identity; {np.count_nonzero(labels < 0)} such records",
                expected="a whole number from 0 as the label of every image",
                fix="evaluate a labeled set, or repair the record",
            )
        return labels

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `FaceSource.read`."""
        rows = self.faces.read(np.arange(start, stop))
        images = []
        for shard, key, data, error in zip(
            rows.shard.tolist(), rows.key.tolist(), rows.images, rows.errors, strict=True
        ):
            where = f"{self.faces.shard_uris[shard]}, key {key}"
            if error:
                raise DataError(
                    where,
                    found=error,
                    expected="a sound record",
                    fix="repair the file: an evaluation leaves no face out",
                )
            images.append(decoded(data, self.color_order, where))
        return np.stack(images)


@dataclass(frozen=True, eq=False)
class TemplateFaces:
    """The images of a template protocol, aligned by their five landmarks.

    Args:
        folder: of the pictures, of any size; they are ordinary ones, which decode to RGB.
        names: file names.
        landmarks: (x, y) of eyes, nose and corners of the mouth in pixels, [N, 5, 2].
    """

    folder: str
    names: list[str]
    landmarks: NDArray[np.float64]

    @property
    def num_images(self) -> int:
        """Lines of the image list."""
        return len(self.names)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See `FaceSource.read`."""
        images = []
        for number in range(start, stop):
            uri = filesystem.join(self.folder, self.names[number])
            where = f"{uri} (image {number + 1} of the list)"
            picture = decoded(filesystem.read_bytes(uri), "rgb", where, size=None)
            images.append(align_face(picture, self.landmarks[number], where))
        return np.stack(images)


def decoded(
    data: bytes, color_order: ColorOrder, where: str, size: int | None = 112
) -> NDArray[np.uint8]:
    """Pixels of a face; a mistake is told with `where` it lies."""
    try:
        return decode_image(data, color_order=color_order, size=size)
    except DataError as error:
        raise DataError(where, found=error.found, expected=error.expected, fix=error.fix) from None


def open_pairs(uri: str, color_order: ColorOrder = "rgb") -> PairFaces:
    """The faces of a pair file.

    Raises:
        DataError: it is missing, damaged, no pair file, or asks for code.
    """
    return PairFaces(uri, read_pairs(uri), color_order)


def open_labeled(path: str, color_order: ColorOrder = "rgb") -> LabeledFaces:
    """The faces of a labeled set: a .rec, a folder of them, a pattern, or a URI of one.

    Raises:
        DataError: nothing is there, or file and index contradict each other.
    """
    return LabeledFaces(path, open_faces(path), color_order)


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
        uri = filesystem.join(self.path, name)
        try:
            return KeyedFace(name, None, None, filesystem.read_bytes(uri), uri, "")
        except DataError as error:
            return KeyedFace(name, None, None, b"", uri, f"{uri}: found {error.found}")


def open_keyed(path: str) -> RecordFaces | ImageFiles:
    """Open a folder of image files, or a set as `open_faces` takes it.

    Raises:
        DataError: nothing is there, the folder holds neither images nor `.rec`, or a `.rec` is
            damaged beyond its records.
    """
    if not filesystem.is_folder(path) or any(
        n.endswith(".rec") for n in filesystem.list_names(path)
    ):
        return RecordFaces(path, open_faces(path))
    names = filesystem.list_names(path, recursive=True)
    images = tuple(name for name in names if name.lower().endswith(IMAGE_ENDINGS))
    if not images:
        raise DataError(
            path,
            found=f"{len(names)} files, none of them an image" if names else "an empty folder",
            expected=f"files ending in {', '.join(IMAGE_ENDINGS)}, or .rec files",
            fix="give the folder of the aligned faces",
        )
    return ImageFiles(path, images)

"""Images by number for inference: from `.rec` files, image files or a pair file.

A source is plain data that travels to other processes. Evaluation is exact: an image that cannot be read or decoded
raises; none is skipped or replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.align import align_face
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.images import ColorOrder, decode_image, decode_resized
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import read_files
from lafs_ray.data.io.walk import IMAGE_ENDINGS, find_images
from lafs_ray.data.set_files import is_set
from lafs_ray.data.verification_pairs import read_pairs
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One stored image.

    Args:
        key: of its record, file name, or number in a pair file.
        data: encoded; empty where it cannot be read.
        where: file and key, for messages.
        error: why it cannot be read, with the file; empty where nothing is wrong.
        shard: the `.rec` file; None for other sources.
        label: identity; None where it has none.
        landmarks: five points (x, y) in pixels to align by, [5, 2]; None: aligned already.
    """

    key: int | str
    data: bytes
    where: str
    error: str = ""
    shard: str | None = None
    label: int | None = None
    landmarks: NDArray[np.float64] | None = None


class ImageSource(Protocol):
    """Encoded images numbered from 0."""

    @property
    def path(self) -> str:
        """What was opened, for messages."""
        ...

    @property
    def num_images(self) -> int:
        """Number of images."""
        ...

    def read(self, start: int, stop: int) -> list[EncodedImage]:
        """Read images start…stop-1; one that cannot be read has an `error`.

        Raises:
            DataError: a file of many images is missing or has changed.
        """
        ...


@dataclass(frozen=True, eq=False)
class RecordImages:
    """Images of a face set.

    Args:
        path: what was opened.
        faces: the set.
    """

    path: str
    faces: FaceSet

    @property
    def num_images(self) -> int:
        """Records in all files."""
        return self.faces.num_images

    def read(self, start: int, stop: int) -> list[EncodedImage]:
        """See `ImageSource.read`."""
        rows = self.faces.read(np.arange(start, stop))
        columns = (rows.shard.tolist(), rows.key.tolist(), rows.label.tolist())
        images = []
        for shard, key, label, data, error in zip(*columns, rows.images, rows.errors, strict=True):
            uri = self.faces.shard_uris[shard]
            label = label if label >= 0 else None
            images.append(EncodedImage(key, data, f"{uri}, key {key}", error, uri, label))
        return images


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a folder.

    Args:
        path: the folder.
        names: relative to it.
        landmarks: of each picture, see `EncodedImage`, [N, 5, 2]; None: aligned faces.
    """

    path: str
    names: Sequence[str]
    landmarks: NDArray[np.float64] | None = None

    @property
    def num_images(self) -> int:
        """Number of files."""
        return len(self.names)

    def read(self, start: int, stop: int) -> list[EncodedImage]:
        """See `ImageSource.read`."""
        images = []
        for number, data in enumerate(read_files(self.path, self.names[start:stop]), start):
            uri = filesystem.join(self.path, self.names[number])
            points = None if self.landmarks is None else self.landmarks[number]
            error = f"{uri}: found {data.found}" if isinstance(data, DataError) else ""
            content = data if isinstance(data, bytes) else b""
            images.append(EncodedImage(self.names[number], content, uri, error, landmarks=points))
        return images


@dataclass(frozen=True, eq=False)
class PairImages:
    """Images of a pair file; 2i and 2i+1 are pair i.

    Args:
        path: the file.
        images: encoded.
    """

    path: str
    images: list[bytes]

    @property
    def num_images(self) -> int:
        """Two per pair."""
        return len(self.images)

    def read(self, start: int, stop: int) -> list[EncodedImage]:
        """See `ImageSource.read`."""
        return [
            EncodedImage(str(n), self.images[n], f"{self.path}, image {n} of pair {n // 2}") for n in range(start, stop)
        ]


@dataclass(frozen=True, eq=False)
class EvalFaces:
    """Decoded faces of an image source.

    Args:
        source: the encoded images.
        color_order: what decoding them gives.
        resize: whether square images of another size are scaled.
    """

    source: ImageSource
    color_order: ColorOrder = "rgb"
    resize: bool = False

    @property
    def num_images(self) -> int:
        """Number of faces."""
        return self.source.num_images

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read faces start…stop-1: RGB, uint8 [stop - start, 112, 112, 3].

        Raises:
            DataError: one of them is missing, does not decode or has another size.
        """
        return np.stack([self._decode(image) for image in self.source.read(start, stop)])

    def _decode(self, image: EncodedImage) -> NDArray[np.uint8]:
        if image.error:
            raise DataError(
                image.where,
                found=image.error,
                expected="a sound record or image file",
                fix="repair the file: an evaluation leaves no face out",
            )
        size = 112 if image.landmarks is None else None
        try:
            if self.resize and image.landmarks is None:
                return decode_resized(image.data, color_order=self.color_order, size=112, always_bicubic=True)
            pixels = decode_image(image.data, color_order=self.color_order, size=size)
        except DataError as error:
            parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
            raise DataError(image.where, **parts) from None
        return pixels if image.landmarks is None else align_face(pixels, image.landmarks)


@dataclass(frozen=True, eq=False)
class PairSet:
    """A verification set.

    Args:
        uri: the pair file.
        faces: images 2i and 2i+1 are pair i.
        same: whether a pair shows one identity, bool [P].
    """

    uri: str
    faces: EvalFaces
    same: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LabeledSet:
    """A set of faces with their identities.

    Args:
        path: of the set.
        faces: its images.
        labels: identity of each, int64 [N].
    """

    path: str
    faces: EvalFaces
    labels: NDArray[np.int64]


def open_pairs(uri: str, color_order: ColorOrder = "rgb", *, resize: bool = False) -> PairSet:
    """Open a pair file; `resize` scales its images to 112 pixels as the released evaluation does (bicubic).

    Raises:
        DataError: it is missing, damaged, no pair file, or its pickle refers to code.
    """
    pairs = read_pairs(uri)
    return PairSet(uri, EvalFaces(PairImages(uri, pairs.images), color_order, resize), pairs.same)


def open_labeled(path: str, color_order: ColorOrder = "rgb") -> LabeledSet:
    """Open a labeled set: a `.rec`, a folder of them, a pattern, or a URI of one.

    Raises:
        DataError: nothing is there, file and index contradict each other, a record is damaged, or an image has no
            integer ≥ 0 as its label.
    """
    faces = open_faces(path)
    labels = faces.labels()
    unlabeled = np.flatnonzero(labels < 0)
    if len(unlabeled):
        rows = faces.read(unlabeled[:1])
        raise DataError(
            f"{faces.shard_uris[rows.shard[0]]}, key {rows.key[0]}",
            found=rows.errors[0] or f"no identity; records without one: {len(unlabeled)}",
            expected="an integer ≥ 0 as the label of every image",
            fix="evaluate a labeled set, or repair the record",
        )
    source = RecordImages(path, faces)
    return LabeledSet(path, EvalFaces(source, color_order_of(source, color_order)), labels)


def color_order_of(source: ImageSource, otherwise: ColorOrder) -> ColorOrder:
    """Return what a source's images decode to: a packed set knows; `otherwise` for all others."""
    return source.faces.color_order or otherwise if isinstance(source, RecordImages) else otherwise


def open_images(path: str) -> RecordImages | ImageFiles | PairImages:
    """Open a folder of image files, a pair file (.bin), or a set as `open_faces` takes it.

    Raises:
        DataError: nothing is there, the folder holds neither images nor `.rec`, or a `.rec` is damaged beyond its
            records.
    """
    if path.endswith(".bin"):
        return PairImages(path, read_pairs(path).images)
    if not filesystem.is_folder(path) or is_set(path):
        return RecordImages(path, open_faces(path))
    images, passed_over = find_images(path)
    for line in passed_over.lines():
        logger.warning("%s: %s", path, line)
    if not images:
        count = sum(passed_over.counts.values())
        raise DataError(
            path,
            found=f"{count} file{'s' * (count != 1)}, none of them an image" if count else "an empty folder",
            expected=f"files ending in {', '.join(IMAGE_ENDINGS)}, or .rec files",
            fix="give the folder of the aligned faces",
        )
    return ImageFiles(path, tuple(image.name for image in images))

"""What the pictures themselves tell: equal bytes, near-duplicates, sharpness, symmetry.

One pass over a set decodes every picture once, to 56×56 gray where it is a JPEG of twice that. Kept are a digest of the
bytes, a thumbnail, and a descriptor by which near-duplicates are searched; thumbnails and descriptors lie on the disk.
Letters: N pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import EmbeddedSet, Floats, Int64s, VectorFile
from lafs_ray.data.eval_sets import EncodedImage, ImageSource
from lafs_ray.data.images import jpeg_damage
from lafs_ray.errors import DataError

SIDE = 56
# Lowest frequencies of the picture's cosine transform, 8 × 8 less the mean.
_FREQUENCIES, DESCRIPTOR = 8, 63
_READ_AT_ONCE = 256
# A copy shows the other's inner part, at least 0.84 of its side. A coarse comparison of small thumbnails comes first.
_COARSE_SIDE, _COARSE_INNER, _COARSE_SCALES = 40, 26, (0.8, 0.86, 0.93, 1.0, 1.075, 1.16, 1.25)
_COARSE_BLURS, _COARSE_SIMILARITY = (0.0, 2.5), 0.8
_INNER, _SCALES, _BLURS = 36, tuple(float(scale) for scale in np.exp(0.02 * np.arange(-9, 10))), (0.7, 2.0)
# Details between the two blurs tell pictures apart: copies that were cropped and re-encoded correlate by 0.93 or more
# there, different pictures of one identity by at most 0.91 (generated faces; of 60 real ones two lie above, which were
# not looked at, docs/audit.md).
SAME_PICTURE = 0.92
_MIN_CONTRAST = 16
# Descriptors of the inner part at five places are searched for as well.
_CROPPED = 6


@dataclass(frozen=True, eq=False)
class Pictures:
    """Facts about the pictures of a set, by row of its embeddings.

    Args:
        numbers: of each row in its source, int64 [N].
        digests: 64 bits of a hash of the encoded bytes, uint64 [N].
        descriptors: for the search of near-duplicates.
        mean: descriptor that was subtracted.
        thumbnails: path of uint8 [N, 56, 56], gray.
        sharpness: logarithm of the variance of the Laplacian at 56×56, float32 [N].
        symmetry: correlation with the mirror image, float32 [N].
    """

    numbers: Int64s
    digests: NDArray[np.uint64]
    descriptors: VectorFile
    mean: Floats
    thumbnails: str
    sharpness: Floats
    symmetry: Floats

    def open_thumbnails(self) -> NDArray[np.uint8]:
        """Map the thumbnails into memory, read only."""
        return np.memmap(self.thumbnails, np.uint8, "r", shape=(len(self.numbers), SIDE, SIDE))


def read_pictures(embedded: EmbeddedSet, source: ImageSource, folder: str, mean: Floats | None = None) -> Pictures:
    """Read every picture of a set once.

    Args:
        embedded: the rows, in the order of the source.
        source: the set that was embedded.
        folder: for thumbnails and descriptors.
        mean: descriptor that is subtracted; None: that of this set.

    Raises:
        DataError: the source is not the one that was embedded.
    """
    count = embedded.num_rows
    thumbnails, descriptors = f"{folder}/thumbnails.raw", f"{folder}/descriptors.raw"
    small: NDArray[np.uint8] = np.memmap(thumbnails, np.uint8, "w+", shape=(count, SIDE, SIDE))
    described: Floats = np.memmap(descriptors, np.float32, "w+", shape=(count, DESCRIPTOR))
    numbers, digests = np.zeros(count, np.int64), np.zeros(count, np.uint64)
    sharpness, symmetry = np.zeros(count, np.float32), np.zeros(count, np.float32)
    for row, (number, image) in enumerate(_in_order(embedded, source)):
        numbers[row] = number
        digests[row] = np.frombuffer(hashlib.blake2b(image.data, digest_size=8).digest(), np.uint64)[0]
        gray = _gray(image.data)
        sharpness[row] = np.log1p(cv2.Laplacian(gray, cv2.CV_32F).var())
        small[row], described[row] = gray, _descriptor(gray)
        symmetry[row] = _correlation(gray, gray[:, ::-1])
    mean = _normalize(described, mean)
    vectors = VectorFile(descriptors, count, DESCRIPTOR)
    return Pictures(numbers, digests, vectors, mean, thumbnails, sharpness, symmetry)


def _in_order(embedded: EmbeddedSet, source: ImageSource) -> Iterator[tuple[int, EncodedImage]]:
    """Yield number and image of each embedded row; images that were left out are skipped."""
    row, wanted = 0, embedded.where(0)
    for start in range(0, source.num_images, _READ_AT_ONCE):
        for offset, image in enumerate(source.read(start, min(start + _READ_AT_ONCE, source.num_images))):
            if str(image.key) != wanted[1] or not _is_named(image.shard or "", wanted[0]):
                continue
            yield start + offset, image
            row += 1
            if row == embedded.num_rows:
                return
            wanted = embedded.where(row)
    raise DataError(
        embedded.uri,
        found=f"{' '.join(wanted).strip()}, which {source.path} does not have in this place",
        expected="embeddings of the set, in its order",
        fix="embed the set again, or give its path with --faces",
    )


def _is_named(path: str, name: str) -> bool:
    """Return whether a shard is the one that was named when it was embedded, perhaps by a relative path."""
    return path == name or path.endswith("/" + re.sub(r"^(\.{1,2}/)+", "", name))


def _gray(data: bytes) -> NDArray[np.uint8]:
    """Decode to gray, at half the size where that is cheap; a damaged picture is black."""
    pixels = None
    if data and not jpeg_damage(data):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    if pixels is None:
        return np.zeros((56, 56), np.uint8)
    gray: NDArray[np.uint8] = cv2.resize(pixels, (56, 56), interpolation=cv2.INTER_AREA)
    return gray


def _descriptor(thumbnail: NDArray[np.uint8]) -> Floats:
    """Return the low frequencies of a thumbnail, float32 [63], without brightness and at length 1."""
    low: Floats = cv2.dct(thumbnail.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    unit: Floats = low / np.float32(max(float(np.linalg.norm(low)), 1e-6))
    return unit


def _normalize(described: Floats, mean: Floats | None = None) -> Floats:
    """Subtract the mean descriptor, which all aligned faces share, and normalize again, in place; return the mean."""
    if mean is None:
        mean = described.mean(axis=0, dtype=np.float64).astype(np.float32)
    for start in range(0, len(described), 1 << 14):
        rows = described[start : start + (1 << 14)] - mean
        described[start : start + (1 << 14)] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return mean


def cropped_descriptors(pictures: Pictures, folder: str) -> list[VectorFile]:
    """Write the descriptors of the inner parts of all pictures, at five places each."""
    thumbnails, size = pictures.open_thumbnails(), SIDE - _CROPPED
    corners = [(y, x) for y in (0, _CROPPED) for x in (0, _CROPPED)]
    found = []
    for number, (y, x) in enumerate([(_CROPPED // 2, _CROPPED // 2), *corners]):
        path = f"{folder}/descriptors_{number}.raw"
        out: Floats = np.memmap(path, np.float32, "w+", shape=(len(thumbnails), DESCRIPTOR))
        for row, thumbnail in enumerate(thumbnails):
            inner = np.ascontiguousarray(thumbnail[y : y + size, x : x + size])
            out[row] = _descriptor(cv2.resize(inner, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))
        _normalize(out, pictures.mean)
        found.append(VectorFile(path, len(thumbnails), DESCRIPTOR))
    return found


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(cv2.matchTemplate(one, np.ascontiguousarray(other), cv2.TM_CCOEFF_NORMED)[0, 0])


def picture_similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the best correlation of the inner part of one thumbnail with the other, shifted and scaled.

    Above 0.92 for a copy, also one that was re-encoded, or cropped by up to 15 % of its side and scaled back; 0 for
    pictures that already differ at a fourth of the resolution, and for those without contrast.

    Args:
        one: uint8 [56, 56].
        other: uint8 [56, 56].
    """
    if one.max() - one.min() < _MIN_CONTRAST or other.max() - other.min() < _MIN_CONTRAST:
        return 0.0
    small = [cv2.resize(face, (_COARSE_SIDE, _COARSE_SIDE), interpolation=cv2.INTER_AREA) for face in (one, other)]
    if _best(small[0], small[1], _COARSE_INNER, _COARSE_SCALES, _COARSE_BLURS) < _COARSE_SIMILARITY:
        return 0.0
    return _best(one, other, _INNER, _SCALES, _BLURS)


def _best(
    one: NDArray[np.uint8], other: NDArray[np.uint8], inner: int, scales: tuple[float, ...], blurs: tuple[float, float]
) -> float:
    """Return the best correlation of the inner part of `one` with `other` over scales and shifts."""
    side = len(one)
    edge, best = (side - inner) // 2, 0.0
    template = np.ascontiguousarray(_details(one, blurs)[edge : edge + inner, edge : edge + inner])
    for scale in scales:
        size = max(round(side * scale), inner)
        scaled = cv2.resize(other, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        found = cv2.matchTemplate(_details(scaled, blurs), template, cv2.TM_CCOEFF_NORMED)
        best = max(best, float(found.max()))
    return best


def _details(gray: NDArray[np.uint8], blurs: tuple[float, float]) -> Floats:
    pixels: Floats = gray.astype(np.float32)
    fine = cv2.GaussianBlur(pixels, (0, 0), blurs[0]) if blurs[0] else pixels
    return np.asarray(fine - cv2.GaussianBlur(pixels, (0, 0), blurs[1]), np.float32)

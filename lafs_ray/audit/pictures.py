"""What the pictures themselves tell: equal bytes, near-duplicates, alignment, sharpness, symmetry.

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

from lafs_ray.audit.descriptors import DESCRIPTOR, SEARCHED, SIDE, Whitening, fit_whitening, write_descriptors
from lafs_ray.audit.embeddings import EmbeddedSet, Floats, Int64s, VectorFile
from lafs_ray.data.alignment_check import NO_FACE, SCALES, Alignment, alignment_from, correlations_of
from lafs_ray.data.eval_sets import EncodedImage, ImageSource
from lafs_ray.data.images import jpeg_damage
from lafs_ray.errors import DataError

_READ_AT_ONCE = 256
# A copy shows the other's inner part, at least 0.84 of its side. A comparison of small thumbnails comes first, in which
# all scales lie beside each other, so that one search covers them. It costs 0.3 ms, the one of details 3 ms.
_COARSE_SIDE, _COARSE_INNER, _COARSE_BLUR, _COARSE_SIMILARITY = 28, 18, 1.75, 0.75
_COARSE_SCALES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.06, 1.12, 1.18, 1.25)
_INNER, _SCALES, _BLURS = 36, tuple(float(scale) for scale in np.exp(0.02 * np.arange(-9, 10))), (0.7, 2.0)
# Details between the two blurs tell pictures apart: copies that were cropped and re-encoded correlate by 0.93 or more
# there, different pictures of one identity by at most 0.91 (generated faces; of 60 real ones two lie above, which were
# not looked at, docs/audit.md).
SAME_PICTURE = 0.92
_MIN_CONTRAST = 16


@dataclass(frozen=True, eq=False)
class Pictures:
    """Facts about the pictures of a set, by row of its embeddings.

    Args:
        numbers: of each row in its source, int64 [N].
        digests: 64 bits of a hash of the encoded bytes, uint64 [N].
        descriptors: for the search of near-duplicates.
        whitening: of the descriptors.
        thumbnails: path of uint8 [N, 56, 56], gray.
        sharpness: logarithm of the variance of the Laplacian at 56×56, float32 [N].
        symmetry: correlation with the mirror image, float32 [N].
        template: correlations with the templates of an aligned face at the scales of `alignment_check`, float64 [N, S].
    """

    numbers: Int64s
    digests: NDArray[np.uint64]
    descriptors: VectorFile
    whitening: Whitening
    thumbnails: str
    sharpness: Floats
    symmetry: Floats
    template: NDArray[np.float64]

    @property
    def alignment(self) -> Alignment:
        """Whether the faces of the set are aligned."""
        return alignment_from(list(self.template))

    def unaligned(self) -> Int64s:
        """Return rows that do not look like an aligned face, the least one first; none if that is true of the set."""
        if self.alignment.is_aligned is not True:
            return np.zeros(0, np.int64)
        fit = self.template[:, 0]
        order = np.argsort(fit, kind="stable")
        return order[fit[order] < NO_FACE]

    def open_thumbnails(self) -> NDArray[np.uint8]:
        """Map the thumbnails into memory, read only."""
        return open_thumbnails(self.thumbnails, len(self.numbers))


def open_thumbnails(path: str, count: int) -> NDArray[np.uint8]:
    """Map thumbnails into memory, read only: uint8 [N, 56, 56]."""
    return np.memmap(path, np.uint8, "r", shape=(count, SIDE, SIDE))


def read_pictures(
    embedded: EmbeddedSet, source: ImageSource, folder: str, whitening: Whitening | None = None
) -> Pictures:
    """Read every picture of a set once.

    Args:
        embedded: the rows, in the order of the source.
        source: the set that was embedded.
        folder: for thumbnails and descriptors.
        whitening: of the descriptors; None: fitted to this set.

    Raises:
        DataError: the source is not the one that was embedded.
    """
    count = embedded.num_rows
    thumbnails, descriptors = f"{folder}/thumbnails.raw", f"{folder}/descriptors.raw"
    small: NDArray[np.uint8] = np.memmap(thumbnails, np.uint8, "w+", shape=(count, SIDE, SIDE))
    numbers, digests = np.zeros(count, np.int64), np.zeros(count, np.uint64)
    sharpness, symmetry = np.zeros(count, np.float32), np.zeros(count, np.float32)
    template = np.zeros((count, len(SCALES)))
    for row, (number, image) in enumerate(_in_order(embedded, source)):
        numbers[row] = number
        digests[row] = np.frombuffer(hashlib.blake2b(image.data, digest_size=8).digest(), np.uint64)[0]
        gray = _gray(image.data)
        sharpness[row] = np.log1p(cv2.Laplacian(gray, cv2.CV_32F).var())
        small[row] = gray
        symmetry[row] = _correlation(gray, gray[:, ::-1])
        template[row] = correlations_of(gray)
    whitening = whitening or fit_whitening(small)
    write_descriptors(small, whitening, (SIDE, 0, 0), descriptors)
    vectors = VectorFile(descriptors, count, DESCRIPTOR)
    return Pictures(numbers, digests, vectors, whitening, thumbnails, sharpness, symmetry, template)


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
        fix="embed the set again",
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
        return np.zeros((SIDE, SIDE), np.uint8)
    gray: NDArray[np.uint8] = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return gray


def cropped_descriptors(pictures: Pictures, folder: str) -> Iterator[VectorFile]:
    """Write the descriptors of the inner parts of all pictures, one file after the other."""
    thumbnails = pictures.open_thumbnails()
    for number, crop in enumerate(SEARCHED):
        path = f"{folder}/descriptors_{number}.raw"
        write_descriptors(thumbnails, pictures.whitening, crop, path)
        yield VectorFile(path, len(thumbnails), DESCRIPTOR)


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(cv2.matchTemplate(one, np.ascontiguousarray(other), cv2.TM_CCOEFF_NORMED)[0, 0])


def picture_similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the best correlation of the inner part of one thumbnail with the other, shifted and scaled.

    Above 0.92 for a copy, also one that was re-encoded, or cropped by up to 15 % of its side and scaled back; 0 for
    pictures that already differ at half of the resolution, and for those without contrast.

    Args:
        one: uint8 [56, 56].
        other: uint8 [56, 56].
    """
    if one.max() - one.min() < _MIN_CONTRAST or other.max() - other.min() < _MIN_CONTRAST:
        return 0.0
    if _coarse_similarity(one, other) < _COARSE_SIMILARITY:
        return 0.0
    return _best(one, other)


def _coarse_similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the best correlation of small thumbnails over scales and shifts."""
    sides = [round(_COARSE_SIDE * scale) for scale in _COARSE_SCALES]
    scaled = np.zeros((max(sides), sum(sides)), np.float32)
    left = 0
    for side in sides:
        scaled[:side, left : left + side] = _shrunk(other, side)
        # The last row is repeated below, so that the blur adds no edge.
        scaled[side:, left : left + side] = scaled[side - 1, left : left + side]
        left += side
    edge = (_COARSE_SIDE - _COARSE_INNER) // 2
    template = _details(_shrunk(one, _COARSE_SIDE), _COARSE_BLUR)[edge : edge + _COARSE_INNER, edge:][:, :_COARSE_INNER]
    found = cv2.matchTemplate(_details(scaled, _COARSE_BLUR), np.ascontiguousarray(template), cv2.TM_CCOEFF_NORMED)
    return float(found.max())


def _shrunk(face: NDArray[np.uint8], side: int) -> Floats:
    return np.asarray(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _best(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the best correlation of the details of the inner part of `one` with `other` over scales and shifts."""
    side = len(one)
    edge, best = (side - _INNER) // 2, 0.0
    template = np.ascontiguousarray(_fine_details(one)[edge : edge + _INNER, edge : edge + _INNER])
    for scale in _SCALES:
        size = max(round(side * scale), _INNER)
        scaled = cv2.resize(other, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        found = cv2.matchTemplate(_fine_details(scaled), template, cv2.TM_CCOEFF_NORMED)
        best = max(best, float(found.max()))
    return best


def _fine_details(gray: NDArray[np.uint8]) -> Floats:
    pixels: Floats = gray.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(pixels, (0, 0), blur) for blur in _BLURS)
    return np.asarray(fine - coarse, np.float32)


def _details(pixels: Floats, blur: float) -> Floats:
    return np.asarray(pixels - cv2.GaussianBlur(pixels, (0, 0), blur), np.float32)

"""Whether the faces of a set are aligned, from a sample of images and without a detector.

In an aligned face the eyes, the shadow below the nose and the mouth are darker than the cheeks and the bridge of the
nose, at known pixels. So each image is compared with a template of seven spots at insightface's positions: gray values,
band-passed, divided by their local contrast, and correlated over the face. The mean over a sample tells aligned sets
from others; a set of smaller or larger faces also fits a smaller or larger template better. The spots are numbers
chosen by hand, of no face; docs/photos.md has the means that they give, and `python -m benchmarks.alignment` measures
others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.images import decode_image
from lafs_ray.errors import DataError

ALIGNED = 0.18
"""Least mean of an aligned set."""

NO_FACE = 0.05
"""Below it an image of an aligned set is worth a look: three standard deviations below the mean of such a set."""

SLACK = 0.025
"""By how much a template of another scale may fit an aligned set better."""

SCALES = (1.0, 0.6, 0.75, 1.33, 1.6)
"""Scales of the template, from the middle between the eyes."""

SAMPLE_IMAGES = 128
LEAST_IMAGES = 16
"""A sample; fewer images than the second number give no verdict."""

REMEDY = "align them: lafs align PHOTOS OUT (docs/photos.md), from the images that they were made of"

_LEFT, _RIGHT, _NOSE = POSITIONS_PX[:3]
_MOUTH = POSITIONS_PX[3:].mean(axis=0)
# Weight, center (x, y) and standard deviations in pixels: the eyes, mouth and nose are dark, cheeks and bridge bright.
_SPOTS = (
    (-1.0, _LEFT, (7.0, 4.5)),
    (-1.0, _RIGHT, (7.0, 4.5)),
    (-0.4, _MOUTH, (11.0, 3.5)),
    (-0.4, np.add(_NOSE, (0, 4)), (6.0, 3.0)),
    (0.6, np.add(_LEFT, (0, 16)), (7.0, 7.0)),
    (0.6, np.add(_RIGHT, (0, 16)), (7.0, 7.0)),
    (0.6, np.add(_NOSE, (0, -22)), (5.0, 8.0)),
)
_FACE = np.s_[30:108, 12:102]
# Of the band-pass; the wide one is the neighborhood whose contrast divides.
_FINE_PX, _COARSE_PX = 1.5, 12.0
_NOISE = 4.0


@dataclass(frozen=True)
class Alignment:
    """What a sample of images says.

    Args:
        means: of the images' correlations with the template at each of `SCALES`, -1 to 1.
        images: in the sample.
    """

    means: tuple[float, ...]
    images: int

    @property
    def best_scale(self) -> float:
        """Scale whose template fits clearly better than the aligned one; 1: none does."""
        best = int(np.argmax(self.means))
        return SCALES[best] if self.means[best] > self.means[0] + SLACK else 1.0

    @property
    def is_aligned(self) -> bool | None:
        """Whether the faces are aligned; None: too few images to tell."""
        if self.images < LEAST_IMAGES:
            return None
        return self.means[0] >= ALIGNED and self.best_scale == 1.0

    def describe(self) -> str:
        """Describe the verdict in one line."""
        if self.is_aligned is None:
            return f"unknown: {self.images} of at least {LEAST_IMAGES} images"
        figures = f"{self.means[0]:.2f}, aligned from {ALIGNED:g} on, {self.images} images"
        if max(self.means) >= ALIGNED and self.best_scale != 1.0:
            figures += f"; faces of {self.best_scale:g} times the size fit better"
        return f"{'aligned' if self.is_aligned else 'NOT aligned'} ({figures})"

    def warning(self, subject: str) -> str | None:
        """Return a warning with the remedy if the faces are not aligned.

        Args:
            subject: the set.
        """
        if self.is_aligned is not False:
            return None
        return f"{subject}: the faces are {self.describe()}; networks learn little from them. To do: {REMEDY}"


def alignment_from(correlations: Sequence[NDArray[np.float64]]) -> Alignment:
    """Return what the images say of which `correlations_of` returned the correlations."""
    means = np.mean(correlations, axis=0) if len(correlations) else np.zeros(len(SCALES))
    return Alignment(tuple(means.tolist()), len(correlations))


def check_alignment(images: Iterable[NDArray[np.uint8]]) -> Alignment:
    """Check a sample of images, uint8 [S, S, 3] in any order of channels."""
    return alignment_from([correlations_of(image) for image in images])


def check_set(faces: FaceSet) -> Alignment:
    """Check an evenly spaced sample of a set; damaged records are passed over."""
    rows = faces.read(faces.sample(SAMPLE_IMAGES))
    return check_encoded(data for data, error in zip(rows.images, rows.errors, strict=True) if not error)


def check_encoded(images: Iterable[bytes]) -> Alignment:
    """Check a sample of encoded images; those that do not decode are passed over."""
    return check_alignment(_decoded(images))


def _decoded(images: Iterable[bytes]) -> Iterator[NDArray[np.uint8]]:
    for data in images:
        with contextlib.suppress(DataError):
            yield decode_image(data, color_order="rgb", size=None)


def correlations_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the correlations of an image with the template at each of `SCALES`, -1 to 1; 0 for a flat image.

    Args:
        image: uint8 [S, S, 3], in any order of channels, or gray, [S, S].
    """
    if image.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
        image = np.asarray(cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA), np.uint8)
    gray = image.mean(axis=2, dtype=np.float32) if image.ndim == 3 else image.astype(np.float32)
    band = _blurred(gray, _FINE_PX) - _blurred(gray, _COARSE_PX)
    band /= np.sqrt(_blurred(band * band, _COARSE_PX)) + _NOISE
    face = (band[_FACE] - band[_FACE].mean()).ravel().astype(np.float64)
    norm = float(np.linalg.norm(face))
    return np.asarray(_templates() @ face / norm) if norm > 0 else np.zeros(len(SCALES))


def _blurred(image: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), deviation))


@functools.cache
def _templates() -> NDArray[np.float64]:
    """Return the templates of all scales, each with mean 0 and norm 1: [scales, pixels of the face]."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float64)
    middle, rows = (_LEFT + _RIGHT) / 2, []
    for scale in SCALES:
        template = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
        for weight, center, deviations in _SPOTS:
            place, width = middle + scale * (center - middle), scale * np.array(deviations)
            template += weight * np.exp(-(((x - place[0]) / width[0]) ** 2 + ((y - place[1]) / width[1]) ** 2) / 2)
        row = (template[_FACE] - template[_FACE].mean()).ravel()
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)

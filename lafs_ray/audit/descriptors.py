"""Descriptors by which copies of a picture are searched: low frequencies, whitened over the set.

All aligned faces share most of their low frequencies, so that these alone are similar for any two. Centered, and
divided by how much each of them scatters over the set, they tell pictures apart: the cosine of a copy is 0.85 or more,
that of two photographs of one identity 0.6 in the median (real faces). All is linear in the thumbnail:
crop, resize and cosine transform are one matrix on either side. Letters: N pictures, F frequencies on each axis.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import Floats, Int64s

SIDE = 56
_FREQUENCIES = 8
DESCRIPTOR = _FREQUENCIES**2 - 1
# A crop: its side and where it begins, in pixels of the thumbnail.
Crop = tuple[float, float, float]
# The inner parts that are searched for, at five places.
_INNER = 50.0
SEARCHED: tuple[Crop, ...] = tuple(
    (_INNER, y * (SIDE - _INNER), x * (SIDE - _INNER)) for y, x in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
)
# Those that candidates are compared by: by 0, 5, 10 and 15 % smaller, at 1, 4, 9 and 16 places.
_STEP = 0.05
COMPARED: tuple[Crop, ...] = tuple(
    (SIDE * (1 - n * _STEP), y * _STEP * SIDE, x * _STEP * SIDE)
    for n in range(4)
    for y in range(n + 1)
    for x in range(n + 1)
)
# Variance that is added to each frequency's, as a share of the mean one, so that none of few pictures counts alone.
_SHRINKAGE = 0.05
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Whitening:
    """What is subtracted from descriptors, and what they are divided by: float32 [F² − 1] each."""

    mean: Floats
    deviation: Floats

    def apply(self, described: Floats) -> Floats:
        """Whiten descriptors [..., F² − 1], and normalize them again."""
        rows = (described - self.mean) / self.deviation
        unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-6))
        return unit


def fit_whitening(thumbnails: NDArray[np.uint8]) -> Whitening:
    """Fit to the whole pictures of a set, uint8 [N, 56, 56]."""
    total, squares = np.zeros(DESCRIPTOR), np.zeros(DESCRIPTOR)
    for start in range(0, len(thumbnails), _ROWS_AT_ONCE):
        rows = _described(thumbnails[start : start + _ROWS_AT_ONCE], [(SIDE, 0, 0)])[:, 0].astype(np.float64)
        total += rows.sum(axis=0)
        squares += (rows**2).sum(axis=0)
    mean = total / len(thumbnails)
    variance = np.maximum(squares / len(thumbnails) - mean**2, 0)
    deviation = np.sqrt(variance + _SHRINKAGE * variance.mean() + 1e-12)
    return Whitening(mean.astype(np.float32), deviation.astype(np.float32))


def write_descriptors(thumbnails: NDArray[np.uint8], whitening: Whitening, crop: Crop, path: str) -> None:
    """Write the whitened descriptors of one crop of all pictures, float32 [N, F² − 1]."""
    out: Floats = np.memmap(path, np.float32, "w+", shape=(len(thumbnails), DESCRIPTOR))
    for start in range(0, len(thumbnails), _ROWS_AT_ONCE):
        block = thumbnails[start : start + _ROWS_AT_ONCE]
        out[start : start + len(block)] = whitening.apply(_described(block, [crop]))[:, 0]


def crop_similarities(
    first: NDArray[np.uint8], second: NDArray[np.uint8], pairs: Int64s, whitening: Whitening
) -> Floats:
    """Return for pairs how similar the one is to the most similar crop of the other, either way, float32 [n].

    Args:
        first: thumbnails, uint8 [N, 56, 56].
        second: those that the second column means.
        pairs: rows of `first` and of `second`, int64 [n, 2].
        whitening: of the descriptors.
    """
    best = np.full(len(pairs), -1, np.float32)
    for one, other, columns in ((first, second, (0, 1)), (second, first, (1, 0))):
        # Each picture is cropped once, however many pairs it is in.
        order = np.argsort(pairs[:, columns[0]], kind="stable")
        for start in range(0, len(pairs), _ROWS_AT_ONCE):
            part = order[start : start + _ROWS_AT_ONCE]
            cropped, of_cropped = np.unique(pairs[part, columns[0]], return_inverse=True)
            complete, of_complete = np.unique(pairs[part, columns[1]], return_inverse=True)
            crops = whitening.apply(_described(one[cropped], COMPARED))[of_cropped]
            whole = whitening.apply(_described(other[complete], [(SIDE, 0, 0)]))[of_complete, 0]
            best[part] = np.maximum(best[part], np.einsum("ncd,nd->nc", crops, whole).max(axis=1))
    return best


def _described(thumbnails: NDArray[np.uint8], crops: Sequence[Crop]) -> Floats:
    """Return low frequencies of crops, without brightness and at length 1, float32 [n, crops, F² − 1]."""
    pixels = np.asarray(thumbnails, np.float32)
    axes = sorted({(size, begin) for size, *begins in crops for begin in begins})
    number = {axis: place for place, axis in enumerate(axes)}
    maps = np.stack([_frequencies(*axis) for axis in axes])
    # Columns of all crops at once, [n, 56, axes, F], then the rows of each.
    columns = (pixels.reshape(-1, SIDE) @ maps.reshape(-1, SIDE).T).reshape(len(pixels), SIDE, len(axes), _FREQUENCIES)
    out = np.empty((len(pixels), len(crops), DESCRIPTOR), np.float32)
    for place, (size, y, x) in enumerate(crops):
        low = maps[number[size, y]] @ columns[:, :, number[size, x]]
        out[:, place] = low.reshape(len(pixels), -1)[:, 1:]
    unit: Floats = out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), np.float32(1e-6))
    return unit


@functools.cache
def _frequencies(size: float, begin: float) -> Floats:
    """Return the map from a line of pixels to the low frequencies of a part of it, scaled to its length: [F, 56]."""
    places = np.clip((np.arange(SIDE) + 0.5) * size / SIDE - 0.5 + begin, 0, SIDE - 1)
    low = np.floor(places).astype(int)
    resample = np.zeros((SIDE, SIDE))
    np.add.at(resample, (np.arange(SIDE), low), 1 - (places - low))
    np.add.at(resample, (np.arange(SIDE), np.minimum(low + 1, SIDE - 1)), places - low)
    waves = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
    waves[0] *= np.sqrt(0.5)
    return np.asarray(waves @ resample, np.float32)

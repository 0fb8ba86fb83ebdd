"""The 1:1 template protocol of IJB-B and IJB-C; a template is a set of images and video frames.

As in the released code (insightface's `eval_ijbc.py`): flip test, detector score as weight, mean over each medium, sum
over the media of a template, L2 norm, cosine. Features are float64: IJB-C's 469,375 images of width 768 take 2.9 GB,
three times at most. Letters: N images, D width, M templates, P pairs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import center, normalize

TEMPLATE_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_PAIRS_AT_ONCE = 100_000

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class TestMode:
    """Options of the image features, written as in the released code, such as F1N1D1.

    Args:
        flip: F1 adds the embedding of the mirror image.
        keep_norm: N1 keeps the embedding's length, which is small for poor images; N0 makes it 1.
        detector: D1 weights by the detector score.
    """

    # pytest would collect a class named Test….
    __test__ = False

    flip: bool
    keep_norm: bool
    detector: bool

    def __str__(self) -> str:
        return f"F{self.flip:d}N{self.keep_norm:d}D{self.detector:d}"


def parse_mode(text: str) -> TestMode:
    """Parse a test mode such as F1N1D1, the setting of published results.

    Raises:
        DataError: it is not of this form.
    """
    match = re.fullmatch(r"F([01])N([01])D([01])", text)
    if match is None:
        raise DataError(
            "test mode",
            found=repr(text),
            expected="F, N and D with 0 or 1 each, such as F1N1D1",
            fix="F: flip test, N: keep the feature's norm, D: weight by the detector's score",
        )
    return TestMode(*(digit == "1" for digit in match.groups()))


def image_features(embeddings: Floats, detector_scores: Floats, mode: TestMode, *, centered: bool = False) -> Float64s:
    """Compute one feature for each image, float64 [N, D].

    Args:
        embeddings: of the image and of its mirror, [N, 2, D].
        detector_scores: [N].
        mode: the test mode.
        centered: whether the mean over all images is subtracted first (ours, see `embed.center`).
    """
    rows = embeddings[:, 0].astype(np.float64)
    if mode.flip:
        rows += embeddings[:, 1]
    if centered:
        rows = center(rows)
    if not mode.keep_norm:
        rows = normalize(rows)
    if mode.detector:
        rows *= detector_scores[:, None]
    return rows


def template_features(features: Float64s, templates: Int64s, medias: Int64s) -> tuple[Float64s, Int64s]:
    """Pool image features: mean over a medium, sum over a template's media, L2 norm.

    Args:
        features: of images, float64 [N, D].
        templates: int64 [N].
        medias: int64 [N].

    Returns:
        Features float64 [M, D], and the number of each template, ascending, int64 [M].

    Raises:
        DataError: a feature is not finite.
    """
    order = np.lexsort((medias, templates))
    templates, medias = templates[order], medias[order]
    starts = np.append(True, (np.diff(templates) != 0) | (np.diff(medias) != 0)).nonzero()[0]
    counts = np.diff(np.append(starts, len(order)))
    means = np.add.reduceat(features[order], starts) / counts[:, None]
    owners = templates[starts]
    firsts = np.append(True, np.diff(owners) != 0).nonzero()[0]
    return normalize(np.add.reduceat(means, firsts)), owners[firsts]


def pair_scores(features: Float64s, numbers: Int64s, first: Int64s, second: Int64s) -> Float64s:
    """Compute the cosine similarity of each pair of templates, float64 [P].

    Args:
        features: of templates, at length 1, [M, D].
        numbers: of the templates, ascending, [M].
        first: a template's number for each pair, [P].
        second: the other's, [P].
    """
    scores = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        left, right = (features[np.searchsorted(numbers, side[block])] for side in (first, second))
        scores[block] = np.einsum("pd,pd->p", left, right)
    return scores

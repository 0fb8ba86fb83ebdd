"""Cached landmarks of no landmark CNN of the run: their mean, and what identifies them, over all sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config.data import Data
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.external_landmarks import ExternalLandmarks, open_external
from lafs_ray.data.landmark_cache import cached_weights
from lafs_ray.data.landmark_template import mean_landmarks
from lafs_ray.data.mix_order import quantize_shares
from lafs_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class GivenMean:
    """What stands in place of a landmark CNN's weights.

    Args:
        mean: of the landmarks of the sets, by their shares, float32 [N, 2] in pixels.
        landmarks_hash: of the landmarks.
    """

    mean: NDArray[np.float32]
    landmarks_hash: str


def external_mean(config: PretrainConfig) -> GivenMean:
    """Read the caches of another tool that a pretraining run uses.

    Raises:
        DataError: one is missing, of another number of landmarks, or of another tool than the others.
    """
    folders = cache_folders(config.data, config.landmarks.cache)
    found = [open_external(folder) for folder in folders]
    for folder, one in zip(folders, found, strict=True):
        _require_count(config, folder, len(one.mean))
    _require_one_tool(folders, found)
    mean = _mean(config.data, [one.mean for one in found])
    # Faces outside of the sets have no landmarks: they are embedded at the mean.
    return GivenMean(mean, _joined_hash([one.weights for one in found]))


def regression_mean(config: LandmarkConfig) -> GivenMean:
    """Read the mean of the caches that a landmark regression learns.

    Raises:
        DataError: one is missing or damaged, or has another number of landmarks.
    """
    folders = cache_folders(config.data, config.landmarks.cache)
    means = [mean_landmarks(folder, config.model.num_landmarks) for folder in folders]
    return GivenMean(_mean(config.data, means), _joined_hash([cached_weights(folder) for folder in folders]))


def cache_folders(data: Data, cache: str | None) -> list[str]:
    """Return the folder of each set's cached landmarks, which the configuration requires.

    Args:
        data: the sets.
        cache: landmarks.cache.
    """
    folders = [one.landmarks or cache for one in data.sets]
    return [folder for folder in folders if folder is not None]


def _mean(data: Data, means: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    if len(means) == 1:
        return means[0]
    counts = quantize_shares([one.share for one in data.sets])
    return np.average(np.stack(means), axis=0, weights=counts).astype(np.float32)


def _joined_hash(hashes: Sequence[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.blake2b(" ".join(hashes).encode(), digest_size=16).hexdigest()


def _require_count(config: PretrainConfig, cache: str, count: int) -> None:
    if count != config.model.num_landmarks:
        raise DataError(
            cache,
            found=f"{count} landmarks",
            expected=f"{config.model.num_landmarks} (model.num_landmarks)",
            fix=f"set model.num_landmarks={count}, or name another landmarks.cache",
        )


def _require_one_tool(folders: Sequence[str], found: Sequence[ExternalLandmarks]) -> None:
    for folder, one in zip(folders, found, strict=True):
        if one.tool != found[0].tool:
            raise DataError(
                folder,
                found=f"landmarks of {one.source}, and those of {folders[0]} are of {found[0].source}",
                expected="landmarks of one tool in all sets: the i-th is the same point of every face",
                fix="find the landmarks of all sets with one tool",
            )

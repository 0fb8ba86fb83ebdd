from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lafs_ray.models.orientation_tokens import orientation_tokens
from lafs_ray.synthetic.datasets import contact_sheet
from lafs_ray.transforms.orientation_uint8 import sample_orientations


def faces(count: int = 4) -> NDArray[np.uint8]:
    return contact_sheet(0, range(count), 1).reshape(count, 112, 112, 3)


def landmarks(count: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-10, 122, (count, 25, 2)).astype(np.float32)


@pytest.mark.parametrize("patch_size", [8, 18])
def test_sample_orientations__is_the_definition_in_8_bits(patch_size: int) -> None:
    """Tokens are the float ones, rounded; the rounded luma moves some of a flat patch by a few steps more."""
    found = sample_orientations(faces(), landmarks(), patch_size)
    planes = torch.from_numpy(faces()).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = (orientation_tokens(planes, torch.from_numpy(landmarks()), patch_size).numpy() + 1) * 127.5
    assert found.dtype == np.uint8
    assert found.shape == (4, 25, 32)
    difference = np.abs(found - expected)
    # Half a step of rounding; half a gray value in each of nine pixels of weak gradients.
    assert difference.mean() < 1
    assert np.quantile(difference, 0.99) < 10
    assert difference.max() < 30


def test_sample_orientations__of_a_view_in_any_batch_and_number_of_threads() -> None:
    """A view's tokens are equal bit by bit alone, in a batch and with any number of OpenCV's threads."""
    together, threads = sample_orientations(faces(), landmarks(), 18), cv2.getNumThreads()
    try:
        for count in (1, 2, 3):
            cv2.setNumThreads(count)
            alone = [sample_orientations(faces()[row : row + 1], landmarks()[row : row + 1], 18) for row in range(4)]
            assert np.array_equal(np.concatenate(alone), together)
    finally:
        cv2.setNumThreads(threads)

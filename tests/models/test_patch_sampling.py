"""Patches: the recorded numbers, the definition as a loop, gradients, and the plain grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.models.patch_sampling import extract_patches, grid_patches, patch_mosaic
from tests.golden_cases import GoldenCase, load_case, to_unit_range


def _inputs(case: GoldenCase) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(to_unit_range(case.inputs["image_u8"]))
    return images, torch.from_numpy(case.inputs["landmarks"])


def _bilinear(image: Tensor, row: float, column: float) -> Tensor:
    top, left = int(np.floor(row)), int(np.floor(column))
    value = torch.zeros(image.shape[0], dtype=image.dtype)
    for r, weight_r in ((top, 1 - (row - top)), (top + 1, row - top)):
        for c, weight_c in ((left, 1 - (column - left)), (left + 1, column - left)):
            if 0 <= r < image.shape[1] and 0 <= c < image.shape[2]:
                value += weight_r * weight_c * image[:, r, c]
    return value


def _naive_patches(images: Tensor, landmarks: Tensor, p: int) -> Tensor:
    """The definition in `extract_patches`, word by word."""
    batch, channels, height, width = images.shape
    tokens = torch.zeros(batch, landmarks.shape[1], p * p * channels, dtype=images.dtype)
    for b in range(batch):
        for k in range(landmarks.shape[1]):
            for i in range(p):
                for j in range(p):
                    column = (landmarks[b, k, 0].item() + i - p / 2) * width / height - 0.5
                    row = landmarks[b, k, 1].item() + j - p / 2 - 0.5
                    start = (i * p + j) * channels
                    tokens[b, k, start : start + channels] = _bilinear(images[b], row, column)
    return tokens


@pytest.mark.parametrize(
    "name", ["a1_patches_196", "a2_patches_36", "a3_patches_grid", "a4_patches_grad", "a5_patches_49_p16"]
)
def test_extract_patches__recorded_cases(name: str) -> None:
    """Tokens equal the reference's, in value and in order."""
    case = load_case(name)
    images, landmarks = _inputs(case)
    tokens = extract_patches(images, landmarks, case.meta["patch"])
    # 2e-5 is the case's own tolerance: float32 coordinates near 100 resolve 8e-6 px.
    np.testing.assert_allclose(tokens.numpy(), case.outputs["tokens"], rtol=0, atol=2e-5)


def test_extract_patches__gradients() -> None:
    """Gradients reach the image and the landmarks as in the reference."""
    case = load_case("a4_patches_grad")
    images, landmarks = (value.requires_grad_() for value in _inputs(case))
    mosaic = patch_mosaic(extract_patches(images, landmarks, 8), 8)
    mosaic.backward(torch.from_numpy(case.inputs["grad_out_mosaic"]))
    tol = case.meta["tol"]
    assert images.grad is not None
    assert landmarks.grad is not None
    np.testing.assert_allclose(images.grad.numpy(), case.outputs["grad_image"], rtol=0, atol=tol["grad_image_atol"])
    np.testing.assert_allclose(
        landmarks.grad.numpy(),
        case.outputs["grad_landmarks"],
        rtol=tol["grad_landmarks_rtol"],
        atol=tol["grad_landmarks_atol"],
    )


@pytest.mark.parametrize(("height", "width", "patch_size", "channels"), [(12, 12, 4, 3), (10, 15, 3, 1), (16, 8, 2, 2)])
def test_extract_patches__equals_its_definition(height: int, width: int, patch_size: int, channels: int) -> None:
    """The one call equals the loop, for odd patches, non-square images and points outside."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)
    landmarks = torch.rand(2, 5, 2, generator=generator, dtype=torch.float64) * 20 - 4
    torch.testing.assert_close(
        extract_patches(images, landmarks, patch_size),
        _naive_patches(images, landmarks, patch_size),
        rtol=0,
        atol=1e-12,  # float64: only the order of the four products differs
    )


def test_extract_patches__landmarks_are_independent() -> None:
    """A token depends on its own landmark alone: permuting landmarks permutes tokens."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(1, 3, 112, 112, generator=generator)
    landmarks = torch.rand(1, 196, 2, generator=generator) * 111
    order = torch.randperm(196, generator=generator)[:36]
    torch.testing.assert_close(
        extract_patches(images, landmarks[:, order]), extract_patches(images, landmarks)[:, order], rtol=0, atol=0
    )


def test_extract_patches__half_precision_images() -> None:
    """With float32 landmarks the positions keep float32 whatever the images' dtype."""
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    landmarks = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(4)) * 31
    tokens = extract_patches(images, landmarks, 4)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, extract_patches(images.float(), landmarks, 4))


@pytest.mark.parametrize(("height", "width", "patch_size"), [(8, 8, 4), (6, 9, 3), (5, 5, 5)])
def test_grid_patches__equals_its_definition(height: int, width: int, patch_size: int) -> None:
    """Cells row by row; inside a cell row, column, channel; values untouched."""
    images = torch.arange(2 * 3 * height * width, dtype=torch.float32)
    images = images.reshape(2, 3, height, width)
    expected = torch.stack(
        [
            torch.stack(
                [
                    image[:, y : y + patch_size, x : x + patch_size].permute(1, 2, 0).flatten()
                    for y in range(0, height, patch_size)
                    for x in range(0, width, patch_size)
                ]
            )
            for image in images
        ]
    )
    assert torch.equal(grid_patches(images, patch_size), expected)


def test_grid_patches__side_does_not_divide() -> None:
    """A remainder would lose pixels in silence, so it is our bug to ask for one."""
    with pytest.raises(AssertionError, match="10"):
        grid_patches(torch.zeros(1, 3, 10, 8), 4)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lafs_ray.models.orientation_tokens import grid_centers, orientation_tokens
from lafs_ray.models.tokens import grid_tokens, tokens_at


def images(count: int = 2, size: int = 24) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, size, size) * 2 - 1


def cell_by_definition(image: Tensor, top: int, left: int, side: int) -> list[float]:
    """The eight sums of one cell's pixels inside the image, divided by its area."""
    gray = 127.5 * (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])
    size = len(gray)

    def pixel(row: int, column: int) -> float:
        return float(gray[min(max(row, 0), size - 1), min(max(column, 0), size - 1)])

    sums = [0.0] * 8
    for row in range(top, top + side):
        for column in range(left, left + side):
            if not (0 <= row < size and 0 <= column < size):
                continue
            gx = sum(
                w * (pixel(row + d, column + 1) - pixel(row + d, column - 1)) for d, w in ((-1, 1), (0, 2), (1, 1))
            )
            gy = sum(
                w * (pixel(row + 1, column + d) - pixel(row - 1, column + d)) for d, w in ((-1, 1), (0, 2), (1, 1))
            )
            for number in range(8):
                angle = number * math.pi / 4
                along = max(math.cos(angle) * gx + math.sin(angle) * gy, 0.0)
                sums[number] += along**3 / (gx**2 + gy**2 + 1e-3)
    return [value / side**2 for value in sums]


def test_tokens__by_their_definition() -> None:
    """At whole positions, also beyond the edge, a token is the root of its share of the cells' sums."""
    faces, patch = images(), 6
    corners = torch.tensor([[4, 5], [-2, 3], [21, 19]])  # left, top
    landmarks = (corners + patch / 2 + 0.5).expand(2, -1, -1)
    found = orientation_tokens(faces, landmarks, patch)
    assert found.shape == (2, 3, 32)
    for face in range(2):
        for number, (left, top) in enumerate(corners.tolist()):
            cells = [
                value
                for down in (0, 3)
                for right in (0, 3)
                for value in cell_by_definition(faces[face], top + down, left + right, 3)
            ]
            total = sum(cells) + 32.0
            roots = [math.sqrt(value / total + 1e-4) - 0.01 for value in cells]
            expected = [min(2.4 * (root - math.sqrt(1 / 32)), 1.0) for root in roots]
            # Sums of nine float32 products in another order.
            assert found[face, number].tolist() == pytest.approx(expected, abs=1e-4)


def test_tokens__of_another_light() -> None:
    """A linear change of all gray values by half moves tokens of strong gradients little; pixels move by far more."""
    faces, landmarks = images(), torch.full((2, 1, 2), 12.0)
    changed = faces * 0.5 + 0.3
    moved = [
        (tokens_at(changed, landmarks, 8, kind) - tokens_at(faces, landmarks, 8, kind)).abs().mean()
        for kind in ("orientations", "pixels")
    ]
    assert moved[0] < 0.02 < 0.2 < moved[1]


def test_tokens__of_the_grid() -> None:
    """Tokens at `grid_centers` have the cells of the plain grid: a patch's own pixels decide its token."""
    faces, patch = images(1, 24), 8
    before = grid_tokens(faces, patch, "orientations")
    assert torch.equal(before, orientation_tokens(faces, grid_centers(24, 8)[None], 8))
    changed = faces.clone()
    # Gradients reach one pixel further, so the outermost pixels of the patch stay.
    changed[..., 9:15, 9:15] = 0
    differs = (grid_tokens(changed, patch, "orientations") - before).abs().amax(-1)[0]
    assert (differs > 0.01).nonzero().flatten().tolist() == [4]


def test_tokens__gradients_reach_landmarks_and_images() -> None:
    """Both gradients are finite and not zero, also where a patch is flat; a landmark's equals the finite difference."""
    faces = images(1).double().float().requires_grad_()
    landmarks = torch.tensor([[[10.3, 12.6], [-40.0, -40.0]]], requires_grad=True)
    weights = torch.randn(32, generator=torch.Generator().manual_seed(1))
    (orientation_tokens(faces, landmarks, 8)[0, 0] @ weights).backward()
    assert faces.grad is not None
    assert faces.grad.isfinite().all()
    assert faces.grad.abs().max() > 0
    step, pixels = 1e-2, faces.detach()
    places = [torch.tensor([[[10.3 + sign * step, 12.6]]]) for sign in (1, -1)]
    moved = [orientation_tokens(pixels, place, 8)[0, 0] @ weights for place in places]
    assert landmarks.grad is not None
    # Bilinear interpolation is linear in x within a pixel; the root is not, to second order of the step.
    expected = float(moved[0] - moved[1]) / (2 * step)
    assert float(landmarks.grad[0, 0, 0]) == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert landmarks.grad[0, 1].abs().max() == 0
    flat = torch.zeros(1, 3, 24, 24, requires_grad=True)
    orientation_tokens(flat, torch.full((1, 1, 2), 12.0), 8).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()

"""Orientation tokens: histograms of gradient directions in the 2×2 cells of the patch at each landmark.

A linear patch embedding cannot make them from pixels: they need a rectification and a pooling inside the patch. As in
SIFT, HOG and DAISY (eight directions, square-rooted), so that light changes them little. Differentiable in images and
landmarks. Shape letters: B images, N landmarks, p patch side, H and W image sides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DIRECTIONS, CELLS_PER_SIDE = 8, 2
ORIENTATION_DIM = NUM_DIRECTIONS * CELLS_PER_SIDE**2
"""Numbers in a token: cells row by row, the directions of each."""

LUMA = (0.299, 0.587, 0.114)
# Of gradients and histograms, for pixels in 0…255: below them, what is there is noise of the camera and of JPEG.
SMALLEST_SQUARE, SMALLEST_SUM = 1e-3, 32.0
# The square root starts here, where its slope is 50.
ROOT_OFFSET = 1e-4
# Tokens have a mean near 0, or all of them would be alike to an untrained transformer. Four numbers in 100,000
# of real faces are beyond the range.
MIDDLE_ROOT, GAIN = ORIENTATION_DIM**-0.5, 2.4
_MIDDLE = 127.5
_CACHED_IMAGES = 4


def orientation_tokens(images: Tensor, landmarks: Tensor, patch_size: int) -> Tensor:
    """Describe the p×p patch around every landmark.

    Definition, with cells of c = p / 2 pixels and directions d of angle a = d · 45°:

        along = cos(a) · gx + sin(a) · gy                            (Sobel gradients of the luma, 3×3)
        map_d = max(along, 0)³ / (gx² + gy²)                         (0 outside the image)
        cell_d = mean of map_d over the c×c pixels of the cell       (bilinear between whole positions)
        share = √(cell / (Σ cell + 32))                              (sum over the token's 32 numbers)
        token = 2.4 · (share - √(1/32)), within [-1, 1]              (0 where all shares are equal)

    The patch lies as in `extract_patches`.

    Args:
        images: float [B, 3, H, W] in [-1, 1].
        landmarks: float [B, N, 2], pixels, (x, y); positions outside the image are allowed.
        patch_size: p, in pixels, even.

    Returns:
        float32 [B, N, 32] in [-1, 1].
    """
    assert patch_size % CELLS_PER_SIDE == 0, patch_size
    # On a CPU the maps of a few images stay in its cache. Exported graphs have any batch.
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and len(images) > _CACHED_IMAGES:
        parts = zip(torch.split(images, _CACHED_IMAGES), torch.split(landmarks, _CACHED_IMAGES), strict=True)
        return torch.cat([orientation_tokens(*part, patch_size) for part in parts])
    batch, count = landmarks.shape[:2]
    cell = patch_size // CELLS_PER_SIDE
    # A window of the padded maps that starts at row i holds the rows from i - cell on.
    padded = F.pad(direction_maps(images.float()), (cell, cell, cell, cell))
    means = _window_sums(_window_sums(padded, cell, 2), cell, 3) / cell**2
    starts = torch.arange(CELLS_PER_SIDE, device=images.device, dtype=torch.float32) * cell
    down, right = torch.meshgrid(starts, starts, indexing="ij")
    offsets = torch.stack((right, down), dim=-1).reshape(1, 1, -1, 2)
    index = landmarks.float().unsqueeze(2) + offsets + (cell - patch_size / 2 - 0.5)
    size = index.new_tensor((means.shape[3], means.shape[2]))
    grid = (2 * index + 1) / size - 1
    cells = F.grid_sample(means, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    histograms = cells.permute(0, 2, 3, 1).reshape(batch, count, ORIENTATION_DIM)
    shares = histograms / (histograms.sum(-1, keepdim=True) + SMALLEST_SUM)
    roots = (shares + ROOT_OFFSET).sqrt() - math.sqrt(ROOT_OFFSET)
    tokens: Tensor = (GAIN * (roots - MIDDLE_ROOT)).clamp(-1, 1)
    return tokens


def _window_sums(values: Tensor, length: int, dim: int) -> Tensor:
    """Return the sums of each `length` neighbors along a dimension, which is then `length` - 1 shorter.

    Sums of 2, 4, 8, … are added up: 4 additions for 9, where a convolution multiplies 9 times and avg_pool2d is slower
    still.
    """
    count = values.shape[dim] - length + 1
    total: Tensor | None = None
    start, power = 0, 1
    while True:
        if length & power:
            part = values.narrow(dim, start, count)
            total = part if total is None else total + part
            start += power
        power *= 2
        if power > length:
            assert total is not None
            return total
        half = power // 2
        values = values.narrow(dim, 0, values.shape[dim] - half) + values.narrow(dim, half, values.shape[dim] - half)


def direction_maps(images: Tensor) -> Tensor:
    """Return how strongly each pixel's gradient points into each direction: float [B, 8, H, W].

    Args:
        images: float [B, 3, H, W] in [-1, 1].
    """
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    luma = F.pad((images * _MIDDLE * weights).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    smooth, slope = images.new_tensor((1.0, 2.0, 1.0)), images.new_tensor((-1.0, 0.0, 1.0))
    kernels = torch.stack((torch.outer(smooth, slope), torch.outer(slope, smooth))).unsqueeze(1)
    gradient = F.conv2d(luma, kernels)
    # The other half of the directions are opposite to these.
    angles = torch.arange(NUM_DIRECTIONS // 2, device=images.device) * (2 * math.pi / NUM_DIRECTIONS)
    directions = torch.stack((angles.cos(), angles.sin()), dim=1).to(images).view(-1, 2, 1, 1)
    along = F.conv2d(gradient, directions)
    cubes = along**3 / (gradient.square().sum(1, keepdim=True) + SMALLEST_SQUARE)
    forward = cubes.relu()
    return torch.cat((forward, forward - cubes), dim=1)


def grid_centers(size: int, patch_size: int) -> Tensor:
    """Return landmarks whose patches are those of the plain grid, row by row: float32 [(S/p)², 2].

    Args:
        size: S, side of the image in pixels; a multiple of `patch_size`.
        patch_size: p, in pixels.
    """
    steps = torch.arange(0, size, patch_size, dtype=torch.float32) + (patch_size / 2 + 0.5)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)

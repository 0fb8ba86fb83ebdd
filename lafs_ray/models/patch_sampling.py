"""Patches of an image: at landmarks (sampled bilinearly, differentiable) and on the plain grid; their mosaic.

Published weights were trained with the sampling of `face_pre_pro/ViT_face.py`, where patches are transposed and half a
pixel off; both are kept. One `grid_sample` over all landmarks replaces one call per landmark. Shape letters: B images,
C channels, N landmarks, p patch side, H and W image sides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def extract_patches(images: Tensor, landmarks: Tensor, patch_size: int = 8) -> Tensor:
    """Sample a p×p patch around every landmark, bilinearly and with zeros outside the image.

    Definition, with i, j in 0…p-1:

        for each image b, landmark k, offsets i and j, channel c:
            column = (landmarks[b, k, 0] + i - p / 2) * W / H - 0.5 row = landmarks[b, k, 1] + j - p / 2 - 0.5 tokens[b,
            k, (i * p + j) * C + c] = bilinear(images[b, c], row, column)

    Reference: the patch's first axis runs along x (it is transposed), the sample lies half a pixel
    up-left of the nominal position, and both coordinates are divided by the image's height. Gradients flow to the
    images and to the landmarks.

    Args:
        images: float [B, C, H, W], any range.
        landmarks: float [B, N, 2], pixels, (x, y); positions outside the image are allowed. Give them in float32:
            bfloat16 cannot resolve neighboring pixels.
        patch_size: p, in pixels.

    Returns:
        Tokens [B, N, p·p·C] in the wider of the two dtypes.
    """
    batch, channels, height, _ = images.shape
    count = landmarks.shape[1]
    dtype = torch.promote_types(images.dtype, landmarks.dtype)
    offsets = torch.arange(patch_size, device=images.device, dtype=dtype) - patch_size / 2
    along_x, along_y = torch.meshgrid(offsets, offsets, indexing="ij")
    offsets_xy = torch.stack((along_x, along_y), dim=-1).reshape(1, 1, patch_size**2, 2)
    grid = (landmarks.to(dtype).unsqueeze(2) + offsets_xy) / (height / 2) - 1
    samples = F.grid_sample(images.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples.permute(0, 2, 3, 1).reshape(batch, count, patch_size**2 * channels)


def grid_patches(images: Tensor, patch_size: int) -> Tensor:
    """Split images into non-overlapping patches, row by row, without resampling.

    Args:
        images: [B, C, H, W]; H and W are multiples of `patch_size`.
        patch_size: p, in pixels.

    Returns:
        Tokens [B, (H/p)·(W/p), p·p·C], each flattened in the order (row, column, channel).
    """
    batch, channels, height, width = images.shape
    assert height % patch_size == 0, (height, patch_size)
    assert width % patch_size == 0, (width, patch_size)
    rows, columns = height // patch_size, width // patch_size
    cells = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def patch_mosaic(tokens: Tensor, patch_size: int) -> Tensor:
    """Arrange patches to a square image: patch k in row k // r, column k % r of the cells.

    Patches stay as stored: those at landmarks are transposed, as in the reference (`face_pre_pro/ViT_face.py`).

    Args:
        tokens: [B, n, p·p·C]; the first r·r of them are used, r = ⌊√n⌋.
        patch_size: p, in pixels.

    Returns:
        [B, C, r·p, r·p].
    """
    batch, count, _ = tokens.shape
    side = math.isqrt(count)
    cells = tokens[:, : side**2].reshape(batch, side, side, patch_size, patch_size, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * patch_size, side * patch_size)

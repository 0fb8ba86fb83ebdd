"""Tokens of an image, at landmarks or on the plain grid, of either kind of features.

Shape letters: B images, N landmarks, P numbers in a token, p patch side, S image side.
"""

from __future__ import annotations

from torch import Tensor

from lafs_ray.config.train import TokenFeatures
from lafs_ray.models.orientation_tokens import ORIENTATION_DIM, grid_centers, orientation_tokens
from lafs_ray.models.patch_sampling import extract_patches, grid_patches


def token_dim(patch_size: int, features: TokenFeatures) -> int:
    """Return P."""
    return 3 * patch_size**2 if features == "pixels" else ORIENTATION_DIM


def tokens_at(images: Tensor, landmarks: Tensor, patch_size: int, features: TokenFeatures) -> Tensor:
    """Return the tokens at landmarks, [B, N, P] in [-1, 1]; differentiable in images and landmarks.

    Args:
        images: float [B, 3, S, S] in [-1, 1].
        landmarks: float [B, N, 2], pixels, (x, y).
        patch_size: p, in pixels.
        features: `pixels` of the patches, or `orientations`.
    """
    if features == "pixels":
        return extract_patches(images, landmarks, patch_size)
    return orientation_tokens(images, landmarks, patch_size)


def grid_tokens(images: Tensor, patch_size: int, features: TokenFeatures) -> Tensor:
    """Return the tokens of the plain grid, [B, (S/p)², P], row by row; arguments as in `tokens_at`."""
    if features == "pixels":
        return grid_patches(images, patch_size)
    centers = grid_centers(images.shape[-1], patch_size).to(images.device)
    return orientation_tokens(images, centers.expand(images.shape[0], -1, -1), patch_size)

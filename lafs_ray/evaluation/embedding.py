"""Faces to embeddings with a frozen network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lafs_ray.models.fvit import FViT
from lafs_ray.models.patches import extract_patches, grid_patches


class Embedder:
    """Embeds whole faces: all landmarks, no augmentation.

    Args:
        transformer: the frozen backbone.
        landmark_cnn: the frozen landmark CNN; None cuts plain grid patches.
        patch_size: side of a patch, in pixels.
        device: where to compute.
        batch_size: faces at once.
    """

    def __init__(
        self,
        transformer: FViT,
        landmark_cnn: nn.Module | None,
        *,
        patch_size: int = 8,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self._device = torch.device(device)
        self._transformer = transformer.to(self._device).eval()
        self._landmark_cnn = None if landmark_cnn is None else landmark_cnn.to(self._device).eval()
        self._patch_size, self._batch_size = patch_size, batch_size

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings float32 [B, D] of faces uint8 [B, 112, 112, 3] RGB."""
        parts = []
        for start in range(0, len(images), self._batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size]))
            # Ours: the range of training; the reference evaluates on half of it (docs/method.md).
            pixels = batch.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            parts.append(self._transformer.encode(self._tokens(pixels)).float().cpu().numpy())
        return np.concatenate(parts)

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._landmark_cnn is None:
            return grid_patches(pixels, self._patch_size)
        return extract_patches(pixels, self._landmark_cnn(pixels), self._patch_size)

"""From a face to its embedding: landmark CNN, patches and transformer in one module."""

from __future__ import annotations

from torch import Tensor, nn

from lafs_ray.models.fvit import FViT
from lafs_ray.models.patch_sampling import extract_patches, grid_patches, patch_mosaic


class FaceEmbedder(nn.Module):
    """A transformer over patches at landmarks, or over plain grid patches where it has none.

    Args:
        transformer: takes p·p·3 numbers a token.
        landmark_cnn: images to landmarks; None: plain grid patches (DINO-face).
        patch_size: p, in pixels.
    """

    def __init__(self, transformer: FViT, landmark_cnn: nn.Module | None, patch_size: int) -> None:
        super().__init__()
        self.transformer, self.landmark_cnn = transformer, landmark_cnn
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        return self.transformer.encode(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to tokens [B, n, p·p·3], the transformer's input."""
        if self.landmark_cnn is None:
            return grid_patches(images, self.patch_size)
        return extract_patches(images, self.landmark_cnn(images), self.patch_size)

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to attention weights [B, heads, n + 1, n + 1] (`FViT.token_attention`)."""
        return self.transformer.token_attention(self.tokens(images), block)

    def mosaic(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to the mosaic of their patches [B, 3, r·p, r·p] (`patch_mosaic`)."""
        return patch_mosaic(self.tokens(images), self.patch_size)

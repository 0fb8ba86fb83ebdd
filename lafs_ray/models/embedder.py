"""From a face to its embedding: landmark CNN, patches and transformer in one module."""

from __future__ import annotations

from torch import Tensor, nn

from lafs_ray.config.train import Readout, TokenFeatures
from lafs_ray.models.fvit import FViT
from lafs_ray.models.part_fvit import embedding_of
from lafs_ray.models.patch_sampling import patch_mosaic
from lafs_ray.models.readout import Whitening
from lafs_ray.models.tokens import grid_tokens, tokens_at


class FaceEmbedder(nn.Module):
    """A transformer over patches at landmarks, or over plain grid patches where it has none.

    Args:
        transformer: takes tokens of these features.
        landmark_cnn: images to landmarks; None: plain grid patches (DINO-face).
        patch_size: p, in pixels.
        token_features: numbers of a token.
        readout: which outputs make the embedding.
        whitening: applied to it; None: the embedding is what was read.
    """

    def __init__(
        self,
        transformer: FViT,
        landmark_cnn: nn.Module | None,
        patch_size: int,
        token_features: TokenFeatures = "pixels",
        readout: Readout = "class",
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.transformer, self.landmark_cnn = transformer, landmark_cnn
        self.patch_size, self.token_features = patch_size, token_features
        self.readout: Readout = readout
        self.whitening = whitening

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        return embedding_of(self.transformer, self.tokens(images), self.readout, self.whitening)

    def tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to tokens [B, n, P], the transformer's input."""
        return self._tokens(images, self.token_features)

    def attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to attention weights [B, heads, n + 1, n + 1] (`FViT.token_attention`)."""
        return self.transformer.token_attention(self.tokens(images), block)

    def mosaic(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to the mosaic of their patches [B, 3, r·p, r·p] (`patch_mosaic`)."""
        return patch_mosaic(self._tokens(images, "pixels"), self.patch_size)

    def _tokens(self, images: Tensor, features: TokenFeatures) -> Tensor:
        if self.landmark_cnn is None:
            return grid_tokens(images, self.patch_size, features)
        return tokens_at(images, self.landmark_cnn(images), self.patch_size, features)

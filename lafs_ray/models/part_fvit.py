"""PartFViT and GridFViT: an image to its embedding, over patches at landmarks or over the plain grid.

Module names stay flat (`stn.*`, `output_layer.*`, `pos_embedding`, …), as in published checkpoints. Shape letters: B
images, n tokens, N landmarks, D width, S image side in pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from lafs_ray.config.train import Readout, TokenFeatures
from lafs_ray.models.fvit import FViT
from lafs_ray.models.landmark_cnn import LandmarkNetwork
from lafs_ray.models.landmark_head import predict_landmarks
from lafs_ray.models.readout import Whitening, read_out
from lafs_ray.models.tokens import grid_tokens, token_dim, tokens_at


def embedding_of(transformer: FViT, tokens: Tensor, readout: Readout, whitening: Whitening | None = None) -> Tensor:
    """Return the embeddings [B, D] of tokens [B, n, P]: what is read of the outputs, whitened where that is fitted."""
    vectors = transformer.encode(tokens) if readout == "class" else read_out(transformer.outputs(tokens), readout)
    return vectors if whitening is None else whitening(vectors)


class PartFViT(FViT):
    """Image to embedding: landmark CNN, patches at the landmarks, transformer; one flat module.

    The parts are shared with the two arguments, not copied. Ours: composed instead of built inside, so that each part
    can be loaded, frozen or replaced separately; the names stay flat (`stn.*`, `output_layer.*`, `pos_embedding`, …).

    Args:
        landmark_cnn: with parts `stn` and `output_layer`.
        fvit: for tokens of these features.
        patch_size: p, in pixels.
        token_features: numbers of a token.
        readout: which outputs make the embedding.
        whitening: applied to it; None: the embedding is what was read.
    """

    def __init__(
        self,
        landmark_cnn: LandmarkNetwork,
        fvit: FViT,
        patch_size: int = 8,
        token_features: TokenFeatures = "pixels",
        readout: Readout = "class",
        whitening: Whitening | None = None,
    ) -> None:
        nn.Module.__init__(self)
        assert fvit.patch_to_embedding.in_features == token_dim(patch_size, token_features), patch_size
        self.patch_size, self.token_features = patch_size, token_features
        # The published order: optimizer states number parameters by it.
        self.pos_embedding, self.cls_token = fvit.pos_embedding, fvit.cls_token
        self.stn, self.output_layer = landmark_cnn.stn, landmark_cnn.output_layer
        self._share_parts(fvit)
        self.readout: Readout = readout
        self.whitening = whitening

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        return self.embed(images, self.landmarks(images))

    def landmarks(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return predict_landmarks(self.stn, self.output_layer, images)

    def embed(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """Images and landmarks [B, n, 2] in pixels to embeddings [B, D].

        `landmarks` and `embed` are `forward` for callers that need the landmarks too.
        """
        tokens = tokens_at(images, landmarks, self.patch_size, self.token_features)
        return embedding_of(self, tokens, self.readout, self.whitening)


class GridFViT(FViT):
    """Image to embedding over plain grid patches, without landmarks (DINO-face); one flat module.

    Args:
        fvit: for tokens of these features; shared, not copied.
        patch_size: p, in pixels.
        token_features: numbers of a token.
        readout: as in `PartFViT`.
        whitening: as in `PartFViT`.
    """

    def __init__(
        self,
        fvit: FViT,
        patch_size: int = 8,
        token_features: TokenFeatures = "pixels",
        readout: Readout = "class",
        whitening: Whitening | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.patch_size, self.token_features = patch_size, token_features
        self._share_parts(fvit)
        self.readout: Readout = readout
        self.whitening = whitening

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        tokens = grid_tokens(images, self.patch_size, self.token_features)
        return embedding_of(self, tokens, self.readout, self.whitening)

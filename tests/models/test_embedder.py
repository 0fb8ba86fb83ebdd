"""FaceEmbedder: attention weights and mosaics of images, with landmarks and on the plain grid."""

from __future__ import annotations

import pytest
import torch

from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.patch_sampling import extract_patches

SIZE = FViTSize(width=24, depth=2, heads=2, head_dim=8, mlp_width=32)


def embedder(*, landmarks: bool) -> FaceEmbedder:
    torch.manual_seed(0)
    landmark_cnn = LandmarkCNN(9, width=0.25) if landmarks else None
    return FaceEmbedder(FViT(SIZE, 9, 192), landmark_cnn, 8).eval()


@pytest.mark.parametrize("landmarks", [True, False])
@torch.no_grad()
def test_attention__of_images(landmarks: bool) -> None:
    """Weights are those of the tokens that the embedding is computed from, of the chosen block."""
    network, images = embedder(landmarks=landmarks), torch.rand(2, 3, 24, 24) * 2 - 1
    tokens = network.tokens(images)
    assert torch.equal(network(images), network.transformer(tokens))
    for block in (0, -1):
        found = network.attention(images, block)
        assert found.shape == (2, 2, 10, 10)
        assert torch.equal(found, network.transformer.token_attention(tokens, block))
    assert not torch.equal(network.attention(images, 0), network.attention(images))


@torch.no_grad()
def test_mosaic__of_images() -> None:
    """Grid patches give the image again; patches at landmarks stand transposed in rows of cells."""
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    assert torch.equal(embedder(landmarks=False).mosaic(images), images)
    network = embedder(landmarks=True)
    mosaic = network.mosaic(images)
    assert network.landmark_cnn is not None
    patches = extract_patches(images, network.landmark_cnn(images), 8).reshape(2, 9, 8, 8, 3)
    assert mosaic.shape == images.shape
    for k in range(9):
        row, column = 8 * (k // 3), 8 * (k % 3)
        cell = mosaic[:, :, row : row + 8, column : column + 8]
        assert torch.equal(cell, patches[:, k].permute(0, 3, 1, 2))

from __future__ import annotations

import pytest
import torch

from lafs_ray.config.train import Readout
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.readout import Whitening, read_out, readout_dim

SIZE = FViTSize(width=24, depth=1, heads=2, head_dim=8, mlp_width=32)


@torch.no_grad()
def test_embedder__reads_class_token_mean_or_all() -> None:
    """Each readout is of the same outputs, and has the width that `readout_dim` says; whitening comes last."""
    torch.manual_seed(0)
    transformer, images = FViT(SIZE, 9, 192).eval(), torch.rand(2, 3, 24, 24) * 2 - 1
    by_class = FaceEmbedder(transformer, None, 8)
    outputs = transformer.outputs(by_class.tokens(images))
    expected = {"class": outputs[:, 0], "mean": outputs[:, 1:].mean(1), "all": outputs.reshape(2, 240)}
    readout: Readout
    for readout in ("class", "mean", "all"):
        network = FaceEmbedder(transformer, None, 8, readout=readout)
        # The class token alone is normalized apart from the others: sums of 24 numbers in another order.
        torch.testing.assert_close(network(images), expected[readout])
        assert network(images).shape == (2, readout_dim(readout, 9, 24))
    whitening = Whitening(240, 5)
    whitening.mean.normal_()
    whitening.matrix.normal_()
    whitened = FaceEmbedder(transformer, None, 8, readout="all", whitening=whitening)
    torch.testing.assert_close(whitened(images), (expected["all"] - whitening.mean) @ whitening.matrix)


@pytest.mark.parametrize("readout", ["class", "mean", "all"])
def test_read_out__of_one_token(readout: Readout) -> None:
    """Class token [1, 2] and token [3, 4] give what the name says."""
    expected = {"class": [1.0, 2.0], "mean": [3.0, 4.0], "all": [1.0, 2.0, 3.0, 4.0]}
    assert read_out(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), readout).tolist() == [expected[readout]]

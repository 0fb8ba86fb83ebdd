"""Embeddings made on Ray are those of one process, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.eval_sets import open_labeled
from lafs_ray.errors import ConfigError, DataError, find_user_error
from lafs_ray.evaluation.embed import embed_faces
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.training.tasks.networks import build_landmark_network, build_transformer
from tests.training.faces import NO_IMAGE, tiny, write_face_set

pytestmark = pytest.mark.ray


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceEmbedder:
    """A tiny Part fViT; chunks are small, so that the set has four of them."""
    monkeypatch.setattr("lafs_ray.evaluation.embed.CHUNK", 32)
    config = tiny(tmp_path, "unused.rec", "model.size=tiny", kind=PretrainConfig)
    torch.manual_seed(0)
    landmarks = build_landmark_network(config)
    return FaceEmbedder(build_transformer(config), landmarks, config.model.patch_size).eval()


def test_embed_on_ray__equals_one_process(network: FaceEmbedder, face_set_path: str, local_ray: None) -> None:
    """Order and values of two workers are those of one process, bit by bit."""
    from lafs_ray.engine.ray_embed import embed_on_ray

    source = open_labeled(face_set_path).faces
    threads = torch.get_num_threads()
    # As many as Ray gives to an actor of one CPU; sums of other divisions differ in the last bit.
    torch.set_num_threads(1)
    expected = embed_faces(network, source)
    torch.set_num_threads(threads)
    assert expected.shape == (120, 2, 128)
    assert len(np.unique(expected[:, 0], axis=0)) == 120, "no two faces are alike"
    np.testing.assert_array_equal(embed_on_ray(network, source, workers=2), expected)


def test_embed_on_ray__undecodable_face(tmp_path: Path, network: FaceEmbedder, local_ray: None) -> None:
    """A face that a worker cannot decode is an error in the driver, with file and key."""
    from lafs_ray.engine.ray_embed import embed_on_ray

    write_face_set(tmp_path / "a.rec", 8, 10, replaced={70: NO_IMAGE})
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Ray's own, of several layers
        embed_on_ray(network, open_labeled(str(tmp_path / "a.rec")).faces, workers=1)
    error = find_user_error(raised.value)
    assert isinstance(error, DataError)
    assert error.subject == f"{tmp_path}/a.rec, key 71"


def test_connect_for__more_workers_than_cpus(local_ray: None) -> None:
    """A cluster without room for the workers is refused with the arithmetic."""
    from lafs_ray.engine.ray_embed import connect_for

    with pytest.raises(ConfigError, match="cluster's CPUs") as raised:
        connect_for(8, "cpu")
    assert raised.value.expected == "at least 9: --workers 8 × 1 + 1 for reading"

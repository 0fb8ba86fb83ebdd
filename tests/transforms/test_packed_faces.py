from __future__ import annotations

import numpy as np
import pytest
import torch

from lafs_ray.config.views import LandmarkSource
from lafs_ray.transforms.packed_faces import PackedLayout
from lafs_ray.transforms.params import sample_view_params
from tests.transforms.faces import smooth_images, view_settings


@pytest.mark.parametrize("source", ["cached", "per_view", "grid"])
def test_pack__fields_come_back_as_views_of_one_memory(source: LandmarkSource) -> None:
    """What a worker packs is what the device reads, without a copy of it."""
    settings = view_settings(source=source)
    images, zeros = smooth_images(3), np.zeros(3, dtype=np.int64)
    params = sample_view_params(settings, 5, zeros, zeros, np.arange(3))
    points = np.random.default_rng(0).uniform(0, 111, (3, 2, 196, 2)).astype(np.float16) if source == "cached" else None
    layout = PackedLayout(settings)
    rows = torch.from_numpy(layout.pack(images, params, points))
    assert rows.shape == (3, layout.row_bytes)
    faces = layout.unpack(rows)
    for name, field in vars(faces).items():
        assert not field.numel() or field.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr(), name
    for name in ("boxes", "flips", "solarizes", "local_indices"):
        np.testing.assert_array_equal(getattr(faces, name), getattr(params, name))
    np.testing.assert_array_equal(faces.image, images)
    np.testing.assert_array_equal(faces.global_noise, params.landmark_noise_px[:, :2])
    if source != "grid":
        noise = torch.from_numpy(params.landmark_noise_px[:, 2:])
        kept = torch.from_numpy(params.local_indices)[..., None].expand(-1, -1, -1, 2)
        assert torch.equal(faces.local_noise, noise.gather(2, kept))
    if points is not None:
        np.testing.assert_array_equal(faces.landmarks, points)


def test_pack__of_a_part_of_the_rows() -> None:
    """A micro-batch is some rows, whose fields are theirs."""
    settings = view_settings(source="grid")
    zeros = np.zeros(4, dtype=np.int64)
    layout = PackedLayout(settings)
    params = sample_view_params(settings, 5, zeros, zeros, np.arange(4))
    rows = torch.from_numpy(layout.pack(smooth_images(4), params))
    whole, part = layout.unpack(rows), layout.unpack(rows[2:])
    for name, field in vars(part).items():
        assert torch.equal(field, getattr(whole, name)[2:]), name

"""The views of `crops.device: cuda`: the same tokens as on CPU, and what a GPU would do for them, by count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.device_views import count_views
from lafs_ray.config.train import TokenFeatures
from lafs_ray.config.views import LandmarkSource
from lafs_ray.transforms.device_views import DeviceViews
from lafs_ray.transforms.landmark_predictor import DeviceLandmarkPredictor, LandmarkPredictor
from lafs_ray.transforms.packed_faces import PACKED, PackedLayout
from lafs_ray.transforms.params import ViewSettings, sample_view_params
from lafs_ray.transforms.views import MultiViewTransform
from tests.transforms.faces import (
    REMAP_STEPS,
    grid_landmarks,
    known_landmarks,
    lively_cnn,
    smooth_images,
    view_settings,
)

SOURCES: tuple[LandmarkSource, ...] = ("per_view", "per_image", "cached", "template", "grid")
ZEROS, KEYS = np.zeros(4, dtype=np.int64), np.arange(4)


class InBfloat16(nn.Module):
    """The landmarks that a GPU's form predicts, as a landmark CNN of the CPU's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.predict = DeviceLandmarkPredictor(network, torch.device("cpu"))

    def forward(self, scaled: Tensor) -> Tensor:
        return self.predict((scaled + 1) * 127.5)


def packed(settings: ViewSettings, images: NDArray[np.uint8], *landmarks: NDArray[np.float16]) -> dict[str, Tensor]:
    params = sample_view_params(settings, 0, ZEROS[: len(images)], ZEROS[: len(images)], KEYS[: len(images)])
    return {PACKED: torch.from_numpy(PackedLayout(settings).pack(images, params, *landmarks))}


@pytest.mark.parametrize("features", ["pixels", "orientations"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens__are_those_of_a_cpu(source: LandmarkSource, features: TokenFeatures, device: str) -> None:
    """Rounding is what the two forms differ by; both get the same landmarks."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    settings, images = view_settings(source=source, token_features=features), smooth_images(4)
    if source == "per_view":
        # Whole images, which both crop to the same numbers: an untrained CNN makes pixels of a step of 8 bits.
        whole = (1.0, 1.0)
        settings = replace(settings, crop_area=whole, local_crop_area=whole, crop_aspect=whole)
    network: nn.Module | None = None
    cpu_network: nn.Module | None = None
    landmarks: list[NDArray[np.float16]] = []
    if source == "template":
        network = cpu_network = grid_landmarks(196)
    elif source == "cached":
        landmarks = [known_landmarks(LandmarkPredictor(lively_cnn()), images)]
    elif source != "grid":
        network = lively_cnn()
        cpu_network = InBfloat16(network)
    expected = MultiViewTransform(settings, cpu_network, 0)(images, ZEROS, ZEROS, KEYS, *landmarks)
    views = DeviceViews(settings, network, torch.device(device))
    found = views({PACKED: packed(settings, images, *landmarks)[PACKED].to(device)})
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        difference = np.abs(found[name].cpu().numpy().astype(int) - value.astype(int))
        # A CPU rounds to 8 bits after each operation, and its crops differ by 1 of 255 in some pixels, which contrast,
        # saturation and solarize can double; orientations divide by a patch's own contrast.
        mean, most = (0.3, 3) if features == "pixels" else (0.7, 5)
        assert difference.mean() < mean + REMAP_STEPS / 2, (name, difference.mean())
        assert np.quantile(difference, 0.99) <= most + REMAP_STEPS, (name, np.quantile(difference, 0.99))


def test_tokens__without_local_views() -> None:
    """With num_local = 0 there are local tokens of no view."""
    settings = view_settings(source="template", num_local=0)
    found = DeviceViews(settings, grid_landmarks(196), torch.device("cpu"))(packed(settings, smooth_images(2)))
    assert found["local_tokens"].shape == (2, 0, 36, 192)
    assert found["global_tokens"].float().std() > 10


def test_views__pass_pairs_on() -> None:
    """A run with neighbors gets the column that says which rows are pairs; others none."""
    settings, images = view_settings(source="grid"), smooth_images(4)
    views = DeviceViews(settings, None, torch.device("cpu"))
    batch, paired = packed(settings, images), torch.tensor([True, True, False, False])
    assert "paired" not in views(batch)
    assert torch.equal(views({**batch, "paired": paired})["paired"], paired)


def test_landmarks__in_bfloat16() -> None:
    """The network is nearly the same: of an untrained one, whose landmarks move by 25 px, an eighth of that at most."""
    planes = torch.from_numpy(smooth_images(8)).permute(0, 3, 1, 2)
    exact = LandmarkPredictor(lively_cnn())(planes)
    found = DeviceLandmarkPredictor(lively_cnn(), torch.device("cpu"))(planes)
    assert found.dtype == torch.float32
    moved = (found - exact).norm(dim=-1).mean()
    # 47 layers of numbers with 8 bits: found 0.11.
    assert 0 < moved < 0.125 * exact.std(dim=0).norm(dim=-1).mean()


@pytest.mark.parametrize("source", SOURCES)
def test_views__on_a_device_by_count(source: LandmarkSource) -> None:
    """One copy that the host does not wait for, no value read, and as many operators for two images as for five."""
    few, more = count_views(source, 2), count_views(source, 5)
    assert (few.copies["blocking"], few.copies["pinned"], few.reads) == (0, 1, 0)
    assert (more.copies["blocking"], more.copies["pinned"], more.reads) == (0, 1, 0)
    assert few.ops == more.ops
    # Eager, two calls of 340 each for crops and appearance; compiled they are some twenty.
    assert 500 < sum(few.ops.values()) < 1100
    cached_mirror = 784 if source == "cached" else 0  # the landmarks of the mirror image
    assert few.copied < 2 * (46_000 + cached_mirror)

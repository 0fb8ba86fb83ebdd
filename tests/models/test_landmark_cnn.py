"""Landmark CNN: the recorded numbers, published names, normalization, timm as a stand-in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from lafs_ray.errors import ConfigError
from lafs_ray.models.landmark_cnn import LandmarkCNN, TimmLandmarks, build_landmark_cnn, start_on_grid_
from lafs_ray.models.landmark_head import normalize_landmarks
from tests.golden_cases import ROOT, load_case, to_unit_range


def test_landmark_cnn__recorded_case() -> None:
    """Features, raw numbers and landmarks equal the reference's under published names."""
    case = load_case("b1_landmark_196")
    cnn = LandmarkCNN(196).eval()
    cnn.load_state_dict({name: torch.from_numpy(value) for name, value in case.params.items()})
    images = torch.from_numpy(to_unit_range(case.inputs["image_u8"]))
    with torch.no_grad():
        features = cnn.stn(images)
        raw = cnn.output_layer(features.mean(dim=(-2, -1)))
        landmarks = cnn(images)
    # Tolerances of the case: four times the reference's own distance from float64.
    tol = case.meta["tol"]
    for ours, name, atol in (
        (features, "stn_feature", tol["stn_feature_atol"]),
        (raw, "raw", tol["raw_atol"]),
        (landmarks, "landmarks", tol["landmarks_px"]),
    ):
        np.testing.assert_allclose(ours.numpy(), case.outputs[name], rtol=0, atol=atol)


def test_landmark_cnn__published_names_and_shapes() -> None:
    """The state has exactly the published names and shapes of both parts, in their order."""
    keys = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())
    published = [
        (name, tuple(shape))
        for name, shape, *_ in keys["backbone_with_land_true"]["keys"]
        if name.startswith(("stn.", "output_layer."))
    ]
    with torch.device("meta"):
        cnn = LandmarkCNN(196)
    assert [(name, tuple(value.shape)) for name, value in cnn.state_dict().items()] == published
    # docs/method.md: 2.81 M and 0.063 M.
    assert sum(value.numel() for value in cnn.stn.parameters()) == 2_809_816
    assert sum(value.numel() for value in cnn.output_layer.parameters()) == 63_112


@pytest.mark.parametrize(("width", "channels"), [(1.0, 160), (0.5, 80), (0.25, 40), (0.01, 8)])
def test_landmark_cnn__width(width: float, channels: int) -> None:
    """Channel counts scale, rounded up to multiples of 8 and never below 8."""
    cnn = LandmarkCNN(9, width=width).eval()
    assert cnn.stn.out_channels == channels
    convolutions = [module for module in cnn.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.out_channels % 8 == 0 for module in convolutions)
    with torch.no_grad():
        assert cnn(torch.zeros(2, 3, 64, 64)).shape == (2, 9, 2)


@pytest.mark.parametrize("side", [32, 96, 112])
def test_landmark_cnn__landmarks_span_the_image(side: int) -> None:
    """Each image's landmarks reach exactly 0 and S-1 pixels, whatever the image's size."""
    torch.manual_seed(0)
    cnn = LandmarkCNN(16, width=0.25).eval()
    with torch.no_grad():
        landmarks = cnn(torch.rand(3, 3, side, side) * 2 - 1)
    assert torch.equal(landmarks.amin(dim=(1, 2)), torch.zeros(3))
    assert torch.equal(landmarks.amax(dim=(1, 2)), torch.full((3,), side - 1.0))


def test_landmark_cnn__dropout_only_in_training() -> None:
    """In eval mode two calls agree to the bit; in train mode dropout makes them differ."""
    torch.manual_seed(0)
    cnn = LandmarkCNN(16, width=0.25)
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(cnn(images), cnn(images))
        cnn.eval()
        assert torch.equal(cnn(images), cnn(images))


def test_landmark_cnn__autocast_keeps_pixels() -> None:
    """Under bfloat16 autocast landmarks are float32 and finer than bfloat16's steps."""
    torch.manual_seed(0)
    cnn = LandmarkCNN(196, width=0.25).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        landmarks = cnn(torch.rand(1, 3, 64, 64))
    assert landmarks.dtype == torch.float32
    assert not torch.equal(landmarks, landmarks.bfloat16().float())


def test_normalize_landmarks__shares_one_scale() -> None:
    """Minimum and maximum are taken over x and y together; pairs are (x, y)."""
    raw = torch.tensor([[0.0, 1.0, 4.0, 2.0], [-3.0, -1.0, -2.0, -3.0]])
    expected = torch.tensor([[[0.0, 0.25], [1.0, 0.5]], [[0.0, 1.0], [0.5, 0.0]]])
    torch.testing.assert_close(normalize_landmarks(raw, image_side=101), expected * 100)


def test_normalize_landmarks__constant_output() -> None:
    """Equal numbers give zeros and a finite gradient; the other images are untouched."""
    raw = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 0.5, 0.25]], requires_grad=True)
    landmarks = normalize_landmarks(raw)
    landmarks.square().sum().backward()
    assert torch.equal(landmarks[0].detach(), torch.zeros(2, 2))
    assert landmarks[1].max().item() == 111.0
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_landmarks__any_family(name: str) -> None:
    """Models with and without a wide last layer, and of fixed input size, give landmarks."""
    cnn = build_landmark_cnn(f"timm/{name}", 9).eval()
    assert isinstance(cnn, TimmLandmarks)
    with torch.no_grad():
        landmarks = cnn(torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    assert landmarks.shape == (2, 9, 2)
    assert landmarks.amax(dim=(1, 2)).tolist() == [111.0, 111.0]
    assert {key.split(".")[0] for key in cnn.state_dict()} == {"stn", "output_layer"}


def test_build_landmark_cnn__published_network() -> None:
    """`mobilenetv3` is the published network, in the given width."""
    cnn = build_landmark_cnn("mobilenetv3", 36, width=0.5)
    assert isinstance(cnn, LandmarkCNN)
    assert cnn.output_layer[1].weight.shape == (72, 80)


def test_build_landmark_cnn__unknown_timm_name() -> None:
    """A misspelt timm name is answered with close ones."""
    with pytest.raises(ConfigError) as caught:
        build_landmark_cnn("timm/resnet81", 196)
    assert "'resnet81'" in caught.value.found
    assert "resnet18" in caught.value.expected


def test_build_landmark_cnn__unknown_name() -> None:
    """A name without `timm/` that is not ours says which names there are."""
    with pytest.raises(ConfigError) as caught:
        build_landmark_cnn("resnet18", 196)
    assert caught.value.found == "'resnet18'"
    assert "'mobilenetv3'" in caught.value.expected
    assert "'timm/resnet18'" in caught.value.fix


def test_build_landmark_cnn__width_of_a_timm_model() -> None:
    """A width that would have no effect is refused, not ignored."""
    with pytest.raises(ConfigError, match=r"width 0\.5"):
        build_landmark_cnn("timm/resnet18", 196, width=0.5)


def test_start_on_grid__landmarks_begin_near_a_square_grid() -> None:
    """Before training every face has its landmarks close to the grid, but not exactly on it."""
    torch.manual_seed(0)
    network = LandmarkCNN(49, width=0.25).eval()
    start_on_grid_(network)
    with torch.no_grad():
        landmarks = network(torch.randn(4, 3, 112, 112))
    steps = torch.linspace(0, 111, 7)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)
    distances = (landmarks - grid).norm(dim=-1)
    # A cell is 18.5 px wide; the head's remaining weights move landmarks by a few.
    assert distances.max() < 6
    assert distances.max() > 0

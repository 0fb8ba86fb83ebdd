"""Where the landmarks of a view come from: they follow its crop and flip, and the sources agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lafs_ray.config.train import TokenFeatures
from lafs_ray.config.views import LandmarkSource
from lafs_ray.models.landmark_cnn import fuse_batch_norms
from lafs_ray.models.patch_sampling import extract_patches
from lafs_ray.transforms.augment_uint8 import crop_views
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from lafs_ray.transforms.views import MultiViewTransform, extract_tokens, map_landmarks
from tests.transforms.faces import (
    KEYS,
    REMAP_STEPS,
    ZEROS,
    grid_landmarks,
    known_landmarks,
    lively_cnn,
    smooth_images,
    transform_of,
    view_settings,
)


def test_landmarks__of_a_view_in_any_batch() -> None:
    """The CNN's float landmarks are the same bits alone and among others."""
    transform = MultiViewTransform(view_settings(), lively_cnn(width=1.0), 0)
    planes = torch.from_numpy(smooth_images(19)).permute(0, 3, 1, 2).float()
    together = transform.predict_landmarks(planes)
    assert together.std(dim=0).mean() > 0
    for rows in (slice(0, 1), slice(5, 12), slice(3, 19), slice(18, 19)):
        assert torch.equal(transform.predict_landmarks(planes[rows]), together[rows])


def test_landmarks__follow_a_flip() -> None:
    """Mirroring the image and its landmarks mirrors the patches."""
    image = torch.from_numpy(smooth_images(1)).permute(0, 3, 1, 2).float()
    landmarks = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 130 - 10
    whole = np.array([[[0, 0, 112, 112]]], dtype=np.int32)
    mirrored = map_landmarks(landmarks[:, None], torch.from_numpy(whole), torch.tensor([[True]]), 112)[:, 0]
    patches = extract_tokens(image, landmarks, 8).reshape(50, 8, 8, 3)
    found = extract_tokens(image.flip(-1), mirrored, 8).reshape(50, 8, 8, 3)
    # The first axis of a patch runs along x. Sampling positions are exact to 1e-5 pixels.
    difference = found.float() - patches.flip(1).float()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01


@pytest.mark.parametrize("flip", [False, True])
def test_landmarks__follow_a_crop(flip: bool) -> None:
    """A landmark of the image and its place in the crop show the same color."""
    # Color is position, so that any error in the mapping shows.
    position = np.arange(112, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(position, position[:, None], np.uint8(0)), axis=-1)
    boxes = np.array([[[20, 10, 64, 80]]], dtype=np.int32)
    view = crop_views(torch.from_numpy(image[None].copy()), boxes, np.array([[flip]]), 112)
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.rand(1, 30, 2, generator=generator) * 40 + torch.tensor([30.0, 32.0])
    mapped = map_landmarks(landmarks[:, None], torch.from_numpy(boxes), torch.tensor([[flip]]), 112)[:, 0]
    seen = extract_patches(view, mapped, 1)[0, :, :2]
    plain = torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2).float()
    # p = 1 has its only pixel one up-left of the landmark, as larger patches have their middle.
    expected = extract_patches(plain, landmarks, 1)[0, :, :2]
    # The view is rounded to whole numbers after each of two passes.
    assert (seen - expected).abs().max() < 1


def test_per_image__equals_per_view_without_a_crop() -> None:
    """With the identity crop both sources see the same images, mirrored ones too, and find the same landmarks."""
    whole = (1.0, 1.0)
    per_view = view_settings(crop_area=whole, local_crop_area=whole, crop_aspect=whole)
    per_image = replace(per_view, source="per_image")
    images = smooth_images(3)
    first = transform_of(per_view)(images, ZEROS[:3], ZEROS[:3], KEYS[:3])
    second = transform_of(per_image)(images, ZEROS[:3], ZEROS[:3], KEYS[:3])
    plain = [replace(settings, flip=0.0) for settings in (per_view, per_image)]
    one, other = (transform_of(settings)(images, ZEROS[:3], ZEROS[:3], KEYS[:3]) for settings in plain)
    for name, value in first.items():
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        difference = np.abs(value.astype(int) - second[name].astype(int))
        # Mirroring a place twice moves it by 4e-6 px, which turns a byte in a million.
        assert difference.max() <= 1 + REMAP_STEPS, name
        assert (difference != 0).mean() < 1e-4, name


@pytest.mark.parametrize("features", ["pixels", "orientations"])
@pytest.mark.parametrize("source", ["template", "per_image", "per_view"])
def test_tokens__of_mirrored_views_are_those_of_the_mirror_image(
    source: LandmarkSource, features: TokenFeatures
) -> None:
    """As evaluation embeds mirror images: each place of the transformer gets the landmark that it always gets."""
    whole, still = (1.0, 1.0), {"jitter": 0.0, "gray": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": 0.0, "noise_px": 0.0}
    crops = {"crop_area": whole, "local_crop_area": whole, "crop_aspect": whole}
    settings = view_settings(source=source, token_features=features, flip=1.0, num_local=0, **crops, **still)
    images, names = smooth_images(3), (ZEROS[:3], ZEROS[:3], KEYS[:3])
    mirrored = transform_of(settings)(images, *names)["global_tokens"]
    plain = transform_of(replace(settings, flip=0.0))(images[:, :, ::-1].copy(), *names)["global_tokens"]
    difference = np.abs(mirrored.astype(int) - plain.astype(int))
    # A product with the flipped matrix, and places that differ by the last bits of float32.
    assert difference.mean() < 0.05
    assert np.quantile(difference, 0.999) <= 1 + REMAP_STEPS


def test_cached__equals_per_image() -> None:
    """With landmarks that float16 holds, of images as of mirror images, both sources cut the same bits."""
    per_image, fast = view_settings(source="per_image"), fuse_batch_norms(lively_cnn())

    class Halves(nn.Module):
        def forward(self, planes: Tensor) -> Tensor:
            return (fast(planes) * 2).round() / 2

    images, names = smooth_images(5), (ZEROS[:5], ZEROS[:5], KEYS[:5])
    landmarks = known_landmarks(LandmarkPredictor(Halves()), images)
    found = MultiViewTransform(replace(per_image, source="cached"), None, 7)(images, *names, landmarks)
    for name, tokens in MultiViewTransform(per_image, Halves(), 7)(images, *names).items():
        np.testing.assert_array_equal(tokens, found[name], err_msg=name)


def test_cached__equals_per_image_up_to_float16() -> None:
    """Landmarks rounded to float16 cut nearly the same."""
    per_image = view_settings(source="per_image")
    settings = replace(per_image, source="cached")
    images, names = smooth_images(5), (ZEROS[:5], ZEROS[:5], KEYS[:5])
    cnn = lively_cnn(width=1.0)
    landmarks = LandmarkPredictor(cnn)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    rounded = known_landmarks(LandmarkPredictor(cnn), images)
    # Numbers up to 111 px lie between float16's steps of 1/16 px.
    assert np.abs(rounded[:, 0] - landmarks).max() <= 1 / 32
    found = MultiViewTransform(settings, None, 7)(images, *names, rounded)

    exact = MultiViewTransform(per_image, cnn, 7)(images, *names)
    # With OpenCV 4 a sample may besides jump to the next 32nd of a pixel.
    jump = 3 if REMAP_STEPS else 0
    for name, tokens in found.items():
        difference = np.abs(tokens.astype(int) - exact[name].astype(int))
        assert 0 < difference.mean() < 0.2, name
        # A crop enlarges 1/32 px to 1/16 at most, in which these images change by 6 steps at most.
        pixels = exact[name].reshape(*exact[name].shape[:-1], 64, 3)
        at_border = (pixels == 128).all(axis=-1).any(axis=-1)
        assert difference[~at_border].max() <= 6 + jump, name
        # Outside a view lies the middle of the range, 127 steps from white at most: 8 of them in 1/16 px, and one for
        # rounding.
        assert difference.max() <= 9 + jump, name


def test_tokens__of_a_template_are_those_of_its_cached_positions() -> None:
    """Positions of a template move with each crop as the landmarks of a face do, noise included."""
    images = smooth_images(3)
    network = grid_landmarks(196)
    names = (ZEROS[:3], ZEROS[:3], KEYS[:3])
    tokens = MultiViewTransform(view_settings(source="template"), network, 0)(images, *names)
    positions = known_landmarks(network, images)
    expected = MultiViewTransform(view_settings(source="cached"), None, 0)(images, *names, positions)
    for name, value in tokens.items():
        assert np.array_equal(value, expected[name]), name

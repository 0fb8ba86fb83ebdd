"""The fast operations on 8 bits compute what the readable ones in float32 define."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.transforms import augment_float, augment_uint8
from lafs_ray.transforms.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, sample_view_params
from lafs_ray.transforms.views import extract_tokens
from tests.transforms.faces import (
    GRAY,
    REMAP_STEPS,
    blurred,
    changed_appearance,
    changed_color,
    smooth_images,
    view_settings,
)

ZEROS = np.zeros(6, dtype=np.int64)
HUE_SHIFTS = (0.0, 0.1, -0.1, 0.5, -0.5, 0.03)


def planes(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).contiguous()


def make_gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace all channels by the luma."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def with_noise() -> NDArray[np.uint8]:
    """Two smooth images; one of noise, in which neighbors differ most; a white and a black one."""
    images = smooth_images(5)
    images[2] = np.random.default_rng(0).integers(0, 256, images[2].shape)
    images[3], images[4] = 255, 0
    return images


def distance(found: list[NDArray[np.uint8]], expected: Tensor) -> NDArray[np.float32]:
    return np.abs(np.stack(found).astype(np.float32) - expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("fast", "definition", "amounts", "limit"),
    [
        # One rounding to 8 bits is 0.5 at most; half a step more where the matrix is of 10 bits, or where a gray value
        # was rounded the other way.
        (augment_uint8.brighten, BRIGHTNESS, (0.0, 0.6, 1.0, 1.4), 0.51),
        (augment_uint8.contrast, CONTRAST, (0.0, 0.6, 1.0, 1.4), 1.0),
        (augment_uint8.saturate, SATURATION, (0.0, 0.8, 1.0, 1.2), 1.0),
        (augment_uint8.shift_hue, HUE, (0.0, 0.1, -0.1, 0.5, -0.5, 0.03), 0.51),
        (lambda view, _: make_gray(view), GRAY, (0.0,), 1.0),
    ],
)
def test_color__is_its_definition(
    fast: Callable[[NDArray[np.uint8], float], NDArray[np.uint8]],
    definition: int,
    amounts: tuple[float, ...],
    limit: float,
) -> None:
    """Brightness, contrast, saturation, hue and gray, rounded once."""
    images = with_noise()
    for amount in amounts:
        expected = changed_color(planes(images), definition, amount)
        difference = distance([fast(image, amount) for image in images], expected)
        assert difference.max() <= limit, (amount, difference.max())
        assert difference.mean() < 0.35, (amount, difference.mean())


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0])
def test_blur__is_its_definition(sigma: float) -> None:
    """The same Gaussian with weights of 8 bits that add up to one: white stays white."""
    images = with_noise()
    expected = blurred(planes(images), sigma)
    (kernel,) = augment_uint8.blur_kernels(np.array([sigma], dtype=np.float32))
    found = [image if kernel is None else augment_uint8.blur(image, kernel) for image in images]
    difference = distance(found, expected)
    # Each of up to 13 weights is rounded by 1/512 at most; on noise that adds up to a step.
    assert difference.max() <= 2.0, difference.max()
    assert difference.mean() < 0.35, difference.mean()
    assert difference[3:].max() < 1e-3


def test_blur_kernels__are_those_of_opencv() -> None:
    """Half Gaussians equal `getGaussianKernel`, whose weights are rounded and add up to one."""
    sigmas = np.linspace(0, 2, 201, dtype=np.float32)
    kernels = augment_uint8.blur_kernels(sigmas)
    assert kernels[0] is None
    for sigma, kernel in zip(sigmas[1:].tolist(), kernels[1:], strict=True):
        reach = math.ceil(3 * sigma)
        expected = np.rint(cv2.getGaussianKernel(2 * reach + 1, sigma)[:, 0] * 256)
        expected[reach] += 256 - expected.sum()
        if kernel is None:
            assert expected[reach] == 256, sigma
        else:
            np.testing.assert_array_equal(kernel, expected / 256, err_msg=str(sigma))
    assert 0 < sum(kernel is None for kernel in kernels) < 40


def test_gray_views__are_changed_as_color_ones_are() -> None:
    """Blur and solarize of one channel give the bits of three."""
    images = with_noise()
    draws = sample_view_params(view_settings(source="grid"), 3, *(ZEROS[:5],) * 2, np.arange(5))
    one = draws.views(slice(1, 2))
    always = np.ones_like(one.grays)
    sigma = np.full_like(one.blur_sigma_px, 1.3)
    one = replace(one, jitters=~always, grays=always, solarizes=always, blur_sigma_px=sigma)
    (kernel,) = augment_uint8.blur_kernels(sigma[0])
    assert kernel is not None
    expected = [augment_uint8.solarize(augment_uint8.blur(make_gray(image), kernel)) for image in images]
    np.testing.assert_array_equal(augment_uint8.change_pixels(images, one), np.stack(expected))


def test_solarize__is_its_definition() -> None:
    """Equal on whole numbers."""
    images = with_noise()
    for image in images:
        expected = augment_float.solarize(planes(image[None]), torch.tensor([True]))
        np.testing.assert_array_equal(augment_uint8.solarize(image), expected[0].permute(1, 2, 0))


def test_appearance__is_its_definition() -> None:
    """The whole chain of every view, in its own order: some roundings apart."""
    images = smooth_images(6)
    draws = sample_view_params(view_settings(source="grid"), 3, ZEROS, ZEROS, np.arange(6))
    clean = planes(images).repeat_interleave(10, 0)
    # Where a value lies at the threshold, the two may solarize differently: tested by itself.
    draws = replace(draws, solarizes=draws.solarizes & False)
    expected = changed_appearance(clean, draws)
    found = augment_uint8.change_appearance(clean.to(torch.uint8), draws)
    assert found.dtype == torch.uint8
    difference = (found.float() - expected).abs()
    # Six roundings by half a step or less; contrast, hue and saturation pass them on enlarged.
    assert difference.mean() < 0.6, difference.mean()
    assert difference.max() <= 5, difference.max()
    assert (difference.flatten(1).mean(1) < 1).all()


@pytest.mark.parametrize("patch_size", [8, 16])
def test_patches__are_their_definition(patch_size: int) -> None:
    """Bilinear samples, transposed, half a pixel off; outside the view lies the middle."""
    images = smooth_images(3)
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.rand(3, 60, 2, generator=generator) * 170 - 30
    landmarks[0, 0] = torch.tensor([-1000.0, 1e6])
    expected = extract_tokens(planes(images), landmarks, patch_size)
    found = extract_tokens(planes(images).to(torch.uint8), landmarks, patch_size)
    difference = (found.int() - expected.int()).abs()
    # Two roundings.
    assert difference.max() <= 2 + REMAP_STEPS, difference.max()
    assert difference.float().mean() < 0.15, difference.float().mean()


def test_changed_views__do_not_depend_on_their_batch() -> None:
    """A view's bits are the same alone and among others, and the input is left alone."""
    images = with_noise()
    draws = sample_view_params(view_settings(source="grid"), 3, *(ZEROS[:5],) * 2, np.arange(5))
    views = np.repeat(images, 10, axis=0)
    before = views.copy()
    together = augment_uint8.change_pixels(views, draws)
    np.testing.assert_array_equal(views, before)
    for image in range(5):
        rows = slice(10 * image, 10 * image + 10)
        part = augment_uint8.change_pixels(views[rows], draws.images(slice(image, image + 1)))
        np.testing.assert_array_equal(part, together[rows])

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from lafs_ray.compat import import_torchvision
from lafs_ray.transforms import augment_float, augment_uint8
from lafs_ray.transforms.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParams, sample_view_params
from tests.transforms.faces import GRAY, blurred, changed_appearance, changed_color, smooth_images, view_settings


def planes(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).contiguous()


def pixels(views: Tensor) -> NDArray[np.float32]:
    return views.permute(0, 2, 3, 1).numpy()


def draws_of(count: int, **changes: object) -> ViewParams:
    zeros = np.zeros(count, dtype=np.int64)
    settings = view_settings(source="grid", **changes)
    return sample_view_params(settings, 3, zeros, zeros, np.arange(count))


def float_crop(images: Tensor, boxes: NDArray[np.int32], flips: NDArray[np.bool_], size: int) -> Tensor:
    return augment_float.crop_views(images, torch.from_numpy(boxes), torch.from_numpy(flips), size)


@pytest.mark.parametrize("crop", [augment_uint8.crop_views, float_crop])
@pytest.mark.parametrize("size", [112, 48])
def test_crop__is_pils_bicubic_of_a_box(crop, size: int) -> None:  # type: ignore[no-untyped-def]
    """Both ways of cropping give PIL's crop, resize and mirror."""
    images, draws = smooth_images(4), draws_of(4)
    # Noise shows every tap of the kernel.
    images[2:] = np.random.default_rng(0).integers(0, 256, images[2:].shape)
    views = pixels(crop(torch.from_numpy(images), draws.boxes, draws.flips, size))
    views = views.reshape(4, 10, size, size, 3)
    assert (views == views.round()).all()
    for image in range(4):
        for view, (top, left, height, width) in enumerate(draws.boxes[image].tolist()):
            box = (left, top, left + width, top + height)
            expected = Image.fromarray(images[image]).crop(box)
            expected = expected.resize((size, size), Image.Resampling.BICUBIC)
            if draws.flips[image, view]:
                expected = ImageOps.mirror(expected)
            # A sum near a half may be rounded the other way in either of the two passes, and the second pass's weights,
            # whose sizes add up to 1.25, may pass that on.
            difference = np.abs(views[image, view] - np.asarray(expected, dtype=np.float32))
            assert difference.max() <= 2
            assert difference.mean() < 0.02


def test_crop__of_the_whole_image_changes_nothing() -> None:
    """The identity crop returns the image's own numbers."""
    images = smooth_images(2)
    boxes = np.broadcast_to(np.array([0, 0, 112, 112], dtype=np.int32), (2, 1, 4))
    views = augment_uint8.crop_views(torch.from_numpy(images), boxes, np.zeros((2, 1), bool), 112)
    np.testing.assert_array_equal(pixels(views), images)


def test_bicubic_weights__equal_their_definition() -> None:
    """The matrices hold Keys' kernel with a = -1/2, renormalized inside the box."""

    def keys(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    for start, length, size in ((3, 17, 24), (2, 20, 7)):
        expected = np.zeros((size, 24))
        scale = max(length / size, 1)
        for row in range(size):
            center = start + (row + 0.5) * length / size
            for pixel in range(start, start + length):
                expected[row, pixel] = keys((pixel + 0.5 - center) / scale)
        expected /= expected.sum(axis=1, keepdims=True)
        box = torch.tensor([start]), torch.tensor([length])
        weights = augment_float.bicubic_weights(*box, 24, size, dtype=torch.float64)
        np.testing.assert_allclose(weights[0], expected, atol=1e-12)
        # Positions of at most 112 px are 7e-6 px off in float32, and the kernel's slope is below 2.
        np.testing.assert_allclose(augment_float.bicubic_weights(*box, 24, size)[0], expected, atol=2e-5)
        mirrored = augment_float.bicubic_weights(*box, 24, size, torch.tensor([True]), torch.float64)
        np.testing.assert_allclose(mirrored[0], expected[::-1], atol=1e-12)


@pytest.mark.parametrize(
    ("operation", "enhance"),
    [(BRIGHTNESS, ImageEnhance.Brightness), (CONTRAST, ImageEnhance.Contrast), (SATURATION, ImageEnhance.Color)],
)
def test_color__is_pils(operation, enhance) -> None:  # type: ignore[no-untyped-def]
    """Brightness, contrast and saturation are PIL's blends."""
    images, factors = smooth_images(4), (0.6, 0.9, 1.2, 1.4)
    views = changed_color(planes(images), operation, *factors)
    for image, factor, view in zip(images, factors, pixels(views), strict=True):
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor), dtype=np.float32)
        # PIL cuts the fraction off; its gray is rounded from 16-bit fixed point.
        assert np.abs(view - expected).max() <= 1.5


def test_gray__is_pils_luma() -> None:
    """Gray is PIL's conversion to L."""
    images = smooth_images(2)
    views = changed_color(planes(images), GRAY, 0.0)
    for image, view in zip(images, pixels(views), strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)
        # Fixed point and float32 may round a half differently.
        assert np.abs(view - expected[..., None]).max() <= 1


def test_hue__is_a_turn_of_hsv() -> None:
    """Hue shift equals colorsys pixel by pixel, and torchvision's on tensors."""
    shifts = (0.1, -0.1, 0.5, 0.03)
    images = smooth_images(4)
    images[0, 0, 0] = (7, 7, 7)
    images[0, 0, 1] = 0
    images[0, 0, 2] = (9, 200, 200)
    views = changed_color(planes(images), HUE, *shifts)
    for image, shift, view in zip(images, shifts, pixels(views), strict=True):
        for row, column in ((0, 0), (0, 1), (0, 2), *np.random.default_rng(1).integers(0, 112, (200, 2))):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[row, column] / 255.0))
            expected = 255 * np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
            # float32 against float64; the steps of the hue circle amplify by 6.
            np.testing.assert_allclose(view[row, column], expected, atol=1e-3)
    import_torchvision()
    from torchvision.transforms.functional import adjust_hue

    for image, shift, view in zip(planes(images), shifts, views, strict=True):
        expected = adjust_hue(image / 255, shift) * 255
        assert (view - expected).abs().max() < 1e-2


def test_blur__equals_its_definition() -> None:
    """Blur is a normalized Gaussian cut at three sigma with repeated edges."""
    sigmas = np.array([2.0, 1.3, 0.4, 0.1], dtype=np.float32)
    views = planes(smooth_images(4, size=20))
    expected = []
    for view, sigma in zip(views.double().numpy(), sigmas.tolist(), strict=True):
        reach = math.ceil(3 * sigma)
        taps = np.array([math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)])
        taps /= taps.sum()
        padded = np.pad(view, ((0, 0), (0, 0), (reach, reach)), mode="edge")
        view = sum(tap * padded[:, :, k : k + 20] for k, tap in enumerate(taps))
        padded = np.pad(view, ((0, 0), (reach, reach), (0, 0)), mode="edge")
        expected.append(sum(tap * padded[:, k : k + 20] for k, tap in enumerate(taps)))
    views = blurred(views, *sigmas.tolist())
    # 26 additions of float32 numbers below 256.
    np.testing.assert_allclose(views.numpy(), np.stack(expected), atol=1e-3)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 2.0])
def test_blur__is_near_pils(sigma: float) -> None:
    """PIL's three box blurs approximate the same Gaussian."""
    images = smooth_images(1)
    views = blurred(planes(images), sigma)
    expected = Image.fromarray(images[0]).filter(ImageFilter.GaussianBlur(sigma))
    # Each of PIL's passes is rounded to 8 bits.
    assert np.abs(pixels(views)[0] - np.asarray(expected, dtype=np.float32)).mean() < 1


def test_solarize__is_pils() -> None:
    """Solarize inverts values from 128 on."""
    image = smooth_images(1)
    views = augment_float.solarize(planes(image), torch.tensor([True]))
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image[0]), 128))
    np.testing.assert_array_equal(pixels(views)[0], expected)


def pil_appearance(image: Image.Image, draws: ViewParams, view: int) -> Image.Image:
    """The reference's chain for one view: 8 bits after every step."""
    from torchvision.transforms import functional

    change = {
        BRIGHTNESS: functional.adjust_brightness,
        CONTRAST: functional.adjust_contrast,
        SATURATION: functional.adjust_saturation,
        HUE: functional.adjust_hue,
    }
    if draws.jitters[0, view]:
        for operation in draws.jitter_order[0, view].tolist():
            image = change[operation](image, float(draws.jitter_factors[0, view, operation]))
    if draws.grays[0, view]:
        image = image.convert("L").convert("RGB")
    if draws.blur_sigma_px[0, view]:
        image = image.filter(ImageFilter.GaussianBlur(float(draws.blur_sigma_px[0, view])))
    if draws.solarizes[0, view]:
        image = ImageOps.solarize(image, 128)
    return image


def test_appearance__is_near_the_pil_chain() -> None:
    """The whole chain, batched and in float, gives what PIL gives view by view."""
    import_torchvision()
    images, draws = smooth_images(4), draws_of(4, num_local=6, solarize=0.0)
    changed = pixels(changed_appearance(planes(images).repeat_interleave(8, 0), draws))
    changed = changed.reshape(4, 8, 112, 112, 3)
    for image in range(4):
        for view in range(8):
            expected = pil_appearance(Image.fromarray(images[image]), draws.images(slice(image, image + 1)), view)
            difference = np.abs(changed[image, view] - np.asarray(expected, dtype=np.float32))
            # PIL loses up to 1 in each of six roundings. It turns the hue by whole 255ths of the circle, each moving a
            # channel of full chroma by 6; brightness and contrast follow.
            assert difference.mean() < 3
            assert np.quantile(difference, 0.99) < 20


def test_appearance__solarizes_the_drawn_views() -> None:
    """Solarize comes last, on the views that drew it."""
    draws = draws_of(6, solarize=1.0, num_local=0)
    views = planes(smooth_images(6)).repeat_interleave(2, 0)
    solarized = changed_appearance(views, draws)
    plain = changed_appearance(views, replace(draws, solarizes=draws.solarizes & False))
    assert torch.equal(solarized[::2], plain[::2])
    expected = torch.where(plain[1::2] >= 127.5, 255 - plain[1::2], plain[1::2])
    assert torch.equal(solarized[1::2], expected)


def test_appearance__of_a_view_in_any_batch() -> None:
    """A view's bits do not depend on the views beside it, and the input is left alone."""
    draws = draws_of(5)
    clean = planes(smooth_images(5)).repeat_interleave(10, 0)
    before = clean.clone()
    together = changed_appearance(clean, draws)
    assert torch.equal(clean, before)
    for start, end in ((0, 1), (1, 3), (3, 5)):
        part = changed_appearance(clean[10 * start : 10 * end], draws.images(slice(start, end)))
        assert torch.equal(part, together[10 * start : 10 * end])
    alone = changed_appearance(clean[7:8], draws.images(slice(0, 1)).views(slice(7, 8)))
    assert torch.equal(alone, together[7:8])


def test_appearance__without_anything_drawn() -> None:
    """Views that drew nothing keep their numbers."""
    draws = draws_of(2, jitter=0.0, gray=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)
    views = planes(smooth_images(2)).repeat_interleave(10, 0)
    assert torch.equal(changed_appearance(views, draws), views)

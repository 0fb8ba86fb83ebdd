"""Crop and appearance of views in 8 bits on CPU, by kernels of torch and OpenCV.

A view is 37 KB here, a quarter of its size in float32, and stays in the core's cache from the first operation to the
last. As in the reference, every operation rounds to 8 bits. The readable definitions are in float32 (`augment_float`,
`extract_patches`) and used on CUDA; tests hold each operation here to one or two steps of 8 bits from them. Each view
is processed by itself, so nothing depends on its batch. Shape letters: B images, V views of each, M views, H, W their
sides, n landmarks, p patch side.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.transforms.params import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParams

Pixels = NDArray[np.uint8]

LUMA = (0.299, 0.587, 0.114)
# Gaussians are truncated at three standard deviations: 0.3 % of the weight is beyond.
BLUR_REACH = 3.0
SOLARIZE_THRESHOLD = 128

# Color matrices: identity, and conversion to gray.
_COLOR = np.eye(3)
_GRAY = np.array([LUMA, LUMA, LUMA])
# OpenCV filters 8-bit images with weights of 8 bits.
_WEIGHT_UNIT = 256
_SOLARIZED = np.where(np.arange(256) >= SOLARIZE_THRESHOLD, 255 - np.arange(256), np.arange(256))
_SOLARIZED = _SOLARIZED.astype(np.uint8)
# The value outside of a view: the middle of the range, rounded.
_OUTSIDE = (128, 128, 128, 128)


def crop_views(images: Tensor, boxes: NDArray[np.int32], flips: NDArray[np.bool_], size: int) -> Tensor:
    """`augment_float.crop_views` by torch's 8-bit kernel, six times as fast on CPU.

    The two differ by 1 of 255 in some pixels.

    Returns:
        uint8 [B·V, 3, size, size], channels last.
    """
    planes = images.permute(0, 3, 1, 2)
    views = torch.empty((flips.size, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    params = zip(boxes.reshape(-1, 4).tolist(), flips.reshape(-1).tolist(), strict=True)
    for number, ((top, left, height, width), flip) in enumerate(params):
        # Slices, not numbers: torch recognizes channels last, for which the kernel is twice as fast, in four dimensions
        # only.
        image, target = number // flips.shape[1], views[number : number + 1]
        box = planes[image : image + 1, :, top : top + height, left : left + width]
        view = F.interpolate(box, (size, size), mode="bicubic", antialias=True)
        target.copy_(view.flip(-1) if flip else view)
    return views


def change_appearance(views: Tensor, params: ViewParams) -> Tensor:
    """`augment_float.change_appearance` in 8 bits: uint8 [M, 3, H, W] to the same."""
    changed = change_pixels(views.permute(0, 2, 3, 1).contiguous().numpy(), params)
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def change_pixels(views: Pixels, params: ViewParams) -> Pixels:
    """`change_appearance` of arrays.

    Args:
        views: uint8 [M, H, W, 3], not modified.
        params: of B images and V views with B·V = M.

    Returns:
        uint8 [M, H, W, 3].
    """
    jitters, grays, solarizes = (
        flags.reshape(-1).tolist() for flags in (params.jitters, params.grays, params.solarizes)
    )
    orders = params.jitter_order.reshape(-1, 4).tolist()
    factors = params.jitter_factors.reshape(-1, 4).tolist()
    kernels = blur_kernels(params.blur_sigma_px.reshape(-1))
    changed = np.empty_like(views)
    for row, view in enumerate(views):
        if jitters[row]:
            for operation in orders[row]:
                if factors[row][operation] != _NEUTRAL[operation]:
                    view = _JITTER[operation](view, factors[row][operation])
        if grays[row]:
            # One channel until the end: blur and solarize would give three equal ones.
            view = _pixels(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))
        kernel = kernels[row]
        if kernel is not None:
            view = blur(view, kernel)
        if solarizes[row]:
            view = solarize(view)
        if grays[row]:
            cv2.cvtColor(view, cv2.COLOR_GRAY2RGB, dst=changed[row])
        else:
            changed[row] = view
    return changed


def brighten(view: Pixels, factor: float) -> Pixels:
    """Multiply by the factor ≥ 0."""
    return _pixels(cv2.convertScaleAbs(view, alpha=factor))


def contrast(view: Pixels, factor: float) -> Pixels:
    """Move away from (factor > 1) or towards the view's mean gray."""
    # The luma of the mean color: computing it of every pixel would take a third of the total time.
    red, green, blue, _ = cv2.mean(view)
    pivot = math.floor(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 0.5)
    return _pixels(cv2.addWeighted(view, factor, view, 0.0, pivot * (1 - factor)))


def saturate(view: Pixels, factor: float) -> Pixels:
    """Move away from (factor > 1) or towards the pixel's own gray."""
    return _pixels(cv2.transform(view, factor * _COLOR + (1 - factor) * _GRAY))


def shift_hue(view: Pixels, shift: float) -> Pixels:
    """Shift the hue by a fraction of the circle, keeping HSV's value and saturation."""
    # In float32: 8 bits resolve 1.4 degrees of hue, as PIL does, and are slower.
    hsv = cv2.cvtColor(view.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * (shift % 1)
    return _pixels(cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)))


_JITTER = {BRIGHTNESS: brighten, CONTRAST: contrast, SATURATION: saturate, HUE: shift_hue}
# Factors that change nothing: those of an operation with a strength of 0.
_NEUTRAL = {BRIGHTNESS: 1.0, CONTRAST: 1.0, SATURATION: 1.0, HUE: 0.0}


def blur(view: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Convolve rows and columns of [H, W] or [H, W, 3] with a kernel; edge pixels are repeated."""
    return _pixels(cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))


def blur_kernels(sigma_px: NDArray[np.float32]) -> list[NDArray[np.float64] | None]:
    """Return Gaussian kernels for OpenCV's 8-bit filters: multiples of 1/256 with sum one.

    Args:
        sigma_px: [M], standard deviations; 0: no blur.

    Returns:
        M kernels of odd length; None where the blur changes nothing.
    """
    kernels: list[NDArray[np.float64] | None] = [None] * len(sigma_px)
    rows = np.flatnonzero(sigma_px)
    weights, reach = gaussian_weights(sigma_px[rows])
    whole = np.rint(weights * _WEIGHT_UNIT)
    whole[:, 0] = _WEIGHT_UNIT - 2 * whole[:, 1:].sum(axis=1)
    kernel = np.hstack((whole[:, :0:-1], whole)) / _WEIGHT_UNIT
    middle = whole.shape[1] - 1
    for index, (row, taps) in enumerate(zip(rows.tolist(), reach.tolist(), strict=True)):
        if kernel[index, middle] < 1:
            kernels[row] = kernel[index, middle - taps : middle + taps + 1]
    return kernels


def gaussian_weights(sigma_px: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return halves of Gaussian kernels, truncated at `BLUR_REACH` standard deviations, sum one.

    Args:
        sigma_px: [M], standard deviations, > 0.

    Returns:
        Weights [M, taps] from the center outwards, 0 beyond a kernel's own radius, and the radii [M], in pixels.
    """
    sigma = sigma_px.astype(np.float64)
    reach = np.ceil(BLUR_REACH * sigma).astype(np.int64)
    tap = np.arange(reach.max(initial=0) + 1)
    weights = np.exp(-0.5 * (tap / sigma[:, None]) ** 2)
    weights[tap > reach[:, None]] = 0
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
    return weights, reach


def solarize(view: Pixels) -> Pixels:
    """Invert values of 128 and more."""
    return _pixels(cv2.LUT(view, _SOLARIZED))


def _pixels(found: Any) -> Pixels:
    """Add the type that OpenCV's arrays lack."""
    pixels: Pixels = found
    return pixels


def sample_patches(views: Pixels, landmarks: NDArray[np.float32], patch_size: int) -> Pixels:
    """Sample p×p patches around landmarks bilinearly: `views.extract_tokens` in 8 bits.

    OpenCV 5 samples exact positions; OpenCV 4 rounds them to 1/32 pixel.

    Args:
        views: uint8 [M, S, S, 3].
        landmarks: float32 [M, n, 2], pixels, (x, y); positions outside the view are allowed.
        patch_size: p, in pixels.

    Returns:
        uint8 [M, n, p·p·3], the first axis of a patch along x, as in `extract_patches`.
    """
    assert views.shape[1:] == (views.shape[1], views.shape[1], 3), views.shape
    offsets = np.arange(patch_size, dtype=np.float32) - np.float32(patch_size / 2 + 0.5)
    columns = landmarks[..., 0, None] + np.repeat(offsets, patch_size)
    rows = landmarks[..., 1, None] + np.tile(offsets, patch_size)
    samples = np.empty((*columns.shape, 3), dtype=np.uint8)
    for view, x, y, target in zip(views, columns, rows, samples, strict=True):
        # Four channels, so that a pixel is one word: 0.8 × the time, conversions included.
        four = cv2.cvtColor(view, cv2.COLOR_RGB2RGBA)
        four = cv2.remap(four, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, _OUTSIDE)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=target)
    return samples.reshape(*landmarks.shape[:2], 3 * patch_size**2)
